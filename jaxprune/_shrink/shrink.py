"""Networks that are physically smaller: units that are zero are cut out of every leaf they are in.

What belongs together and what may go comes from `axes`. Two proofs follow. The smaller model is
program again, and must be the same program on smaller shapes: a constant that was derived from a
size, such as 1 / sqrt(head_dim), shows there. Then both are run, and must agree.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import shown_path
from jaxprune._shrink.flax_sizes import resize_nnx, shrunk_apply, split_nnx
from jaxprune._shrink.groups import Group, accepted, cut, find_groups
from jaxprune._shrink.program import Program, follow, program_of, values_of


@dataclasses.dataclass(frozen=True)
class AxisGroup:
    """Axes that belong together: they are as long as each other, or parts of one another.

    Attributes:
      members: (path, axis) of every axis that its units are on.
      size: number of units.
      kept: how many of them are left.
      reason: why it is not smaller, where it is refused; else empty.
    """

    members: tuple[tuple[str, int], ...]
    size: int
    kept: int
    reason: str = ""

    @property
    def name(self) -> str:
        """Its axes, as reports and errors show them."""
        shown = ", ".join(f"{shown_path(path)}[{axis}]" for path, axis in self.members[:4])
        more = len(self.members) - 4
        return f"{shown} and {more} more" if more > 0 else shown


@dataclasses.dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` did; prints as a table.

    Attributes:
      groups: all groups of axes, those that were refused included.
      shapes: path -> (shape before, shape now) of every leaf that is smaller.
      size_before: numbers in all leaves.
      size: numbers in all leaves now.
      difference: the largest difference of any output, over the largest output.

    Example:
      >>> report = ShrinkReport((), {}, size_before=10, size=4, difference=0.0)
      >>> report.refused
      ()
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

    groups: tuple[AxisGroup, ...]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    size_before: int
    size: int
    difference: float

    @property
    def refused(self) -> tuple[AxisGroup, ...]:
        """The groups that were left as they were for a reason."""
        return tuple(group for group in self.groups if group.reason)

    def __str__(self) -> str:
        head = f"shrink: {self.size_before:,} numbers before, {self.size:,} now"
        rows = [(f"{g.size} -> {g.kept}", g.name, g.reason) for g in self.groups]
        width = max((len(row[0]) for row in rows), default=0)
        lines = [f"{n:>{width}}  {name}{why and ': ' + why}" for n, name, why in rows]
        return "\n".join([head, *lines])


def shrink(
    apply_fn: Callable[..., Any], variables: Any, *example_inputs: Any, rtol: float | None = None
) -> tuple[Any, ShrinkReport]:
    """Cuts units that are zero out of all params that they are in, and shows that nothing changed.

    A unit is a neuron, a channel, a hidden unit of a recurrent cell, a head of attention: an index
    that several axes of several leaves share, found from the jaxpr of `apply_fn`. It goes if the
    network cannot tell: wherever a product sums over it, the activation or the weights it meets are
    zero, whatever the input. A kernel column of zeros does it where the bias is zero, and so are
    scale and bias of a batch norm that follows. Of a group that is zero throughout, one unit stays.

    Groups that can't be proven are refused: they stay as they are and the report says why. Such are
    those that a LayerNorm, a mean or a softmax runs over, those with a constant derived from their
    size, as q and k in attention have with 1 / sqrt(head_dim), grouped convolutions other than
    depthwise, and what a primitive without a rule touches.

    An optimizer state does not fit any more: make a new one.

    Args:
      apply_fn: a function `(variables, *inputs) -> outputs`, such as `model.apply`, in the mode of
        inference. Give keywords by a lambda: `lambda v, x: model.apply(v, x, train=False)`.
      variables: a tree of arrays: params, and batch statistics where there are any.
      example_inputs: what to run it on: typical values, and the batch size does not matter.
      rtol: the largest difference of an output that passes, relative to the largest output; by
        default the square root of the machine epsilon. Both are run with full precision.

    Returns:
      Smaller variables, for `shrunk_apply(apply_fn, variables, *inputs)`, and a report. In plain
      JAX, or with a linen model of the new sizes, `apply_fn(variables, *inputs)` does as well.

    Raises:
      ValueError: every group is refused; or the outputs differ, are not finite, or change their
        shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]
      >>> params = {"w": jnp.array([[1.0, 0.0, 2.0]]), "b": jnp.zeros(3), "v": jnp.ones((3, 2))}
      >>> small, report = shrink(mlp, params, jnp.ones((4, 1)))
      >>> {name: leaf.shape for name, leaf in small.items()}
      {'b': (2,), 'v': (2, 2), 'w': (1, 2)}
    """

    def apply_small(variables: Any, *inputs: Any) -> Any:
        return shrunk_apply(apply_fn, variables, *inputs)

    return _shrink(apply_fn, apply_small, variables, example_inputs, rtol)


def shrink_nnx(model: Any, *example_inputs: Any, rtol: float | None = None) -> ShrinkReport:
    """`shrink` of an NNX model, in place.

    Args:
      model: an `nnx.Module` that is called with the inputs, in the mode of inference:
        `model.eval()` first.
      example_inputs: as for `shrink`.
      rtol: as for `shrink`.

    Returns:
      The report. The model has smaller params, and its layers remember smaller sizes.

    Raises:
      ValueError: as `shrink`; the model is left as it was.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.Sequential(
      ...     nnx.Linear(2, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
      ... )
      >>> model.layers[0].kernel[...] = model.layers[0].kernel[...].at[:, 5:].set(0.0)
      >>> report = shrink_nnx(model, jnp.ones((1, 2)))
      >>> model.layers[0].out_features, model.layers[2].kernel.shape
      (5, (5, 3))
    """
    from flax import nnx

    state, apply_fn, apply_small = split_nnx(model)
    small, report = _shrink(apply_fn, apply_small, state, example_inputs, rtol)
    nnx.update(model, small)
    resize_nnx(model)
    return report


def _shrink(
    apply_fn: Callable[..., Any],
    apply_small: Callable[..., Any],
    variables: Any,
    inputs: Sequence[Any],
    rtol: float | None,
) -> tuple[Any, ShrinkReport]:
    program = program_of(apply_fn, variables, inputs)
    tracer = follow(program, values_of(program))
    groups = find_groups(tracer.units())
    if not groups or all(group.reason for group in groups):
        why = "; ".join(f"{_shown(program, g).name}: {g.reason}" for g in groups[:8])
        raise ValueError(f"nothing to shrink: {why or 'no param has an axis'}.")

    small = cut(program, accepted(program, tracer, groups, apply_small, inputs))
    difference = _check_outputs(apply_fn, apply_small, variables, small, inputs, rtol)
    return small, _report(program, groups, small, difference)


def _check_outputs(
    apply_fn: Callable[..., Any],
    apply_small: Callable[..., Any],
    variables: Any,
    small: Any,
    inputs: Sequence[Any],
    rtol: float | None,
) -> float:
    """Runs both; the largest difference, relative to the largest output of its array.

    Raises:
      ValueError: it is too large, or there is nothing to compare.
    """
    with jax.default_matmul_precision("highest"):
        before = jax.tree_util.tree_leaves(jax.jit(apply_fn)(variables, *inputs))
        after = jax.tree_util.tree_leaves(jax.jit(apply_small)(small, *inputs))
    worst = 0.0
    for x, y in zip(before, after, strict=True):
        inexact = jnp.issubdtype(x.dtype, jnp.inexact)
        limit = float(jnp.finfo(x.dtype).eps) ** 0.5 if inexact else 0.0
        limit = rtol if rtol is not None and inexact else limit
        wide = complex if jnp.issubdtype(x.dtype, jnp.complexfloating) else np.float64
        x, y = np.asarray(x).astype(wide), np.asarray(y).astype(wide)
        if np.isnan(x).any():
            raise ValueError("shrink: there are NaN in the outputs: nothing can be compared.")
        finite = np.isfinite(x)
        largest = np.abs(x[finite]).max(initial=0.0)
        with np.errstate(invalid="ignore"):
            error = np.abs(np.where(x == y, 0, x - y)).max(initial=0.0)
        difference = error / largest if largest else error
        if not difference <= limit:
            raise ValueError(
                f"shrink: the outputs differ by {error:.3g}, where the largest is {largest:.3g} "
                f"and {limit:.3g} of it is allowed. The model reads something that its jaxpr does "
                "not show; please report it."
            )
        worst = max(worst, float(difference))
    return worst


def _shown(program: Program, group: Group) -> AxisGroup:
    by_rank = sorted(group.members, key=lambda member: -np.ndim(program.leaves[member[0]]))
    members = tuple((program.paths[leaf], axis) for leaf, axis in by_rank)
    n = len(group.units)
    return AxisGroup(members, n, n - len(group.gone), group.reason)


def _report(
    program: Program, groups: Sequence[Group], small: Any, difference: float
) -> ShrinkReport:
    shapes = {}
    leaves = jax.tree_util.tree_leaves(small)
    for path, old, new in zip(program.paths, program.leaves, leaves, strict=True):
        if np.shape(old) != np.shape(new):
            shapes[path] = (tuple(np.shape(old)), tuple(np.shape(new)))
    before, now = (sum(math.prod(np.shape(x)) for x in tree) for tree in (program.leaves, leaves))
    shown = tuple(_shown(program, group) for group in groups)
    return ShrinkReport(shown, shapes, before, now, difference)


# Their examples run, although by `__module__` they belong to `jaxprune`.
__test__ = {"ShrinkReport": ShrinkReport}
