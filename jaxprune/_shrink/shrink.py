"""`shrink`: removes units that the network does not need, and returns a smaller dense network.

The steps: trace the model (`program`, `tracer`), find the units that are zero (`units`, `groups`),
check that the model without them is the same program (`same_program`), cut them out of the params,
run both models and compare the outputs.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import shown
from jaxprune._base.paths import shown_path
from jaxprune._shrink.flax_sizes import Model, function_model, nnx_model, resize_nnx
from jaxprune._shrink.groups import Group, accept, group_units, without_removed
from jaxprune._shrink.units import units_of
from jaxprune._trace.program import Program, known_values, program_of, trace


@dataclasses.dataclass(frozen=True)
class AxisGroup:
    """Param axes that can only shrink together, such as all axes over the neurons of one layer.

    Attributes:
      members: (path, axis) of every axis.
      size: number of units before: neurons, channels, heads.
      kept: number of units now.
      reason: why none could be removed; empty if the group was not refused.
    """

    members: tuple[tuple[str, int], ...]
    size: int
    kept: int
    reason: str = ""

    @property
    def name(self) -> str:
        """Its first four axes, as reports and errors show them."""
        shown = ", ".join(f"{shown_path(path)}[{axis}]" for path, axis in self.members[:4])
        more = len(self.members) - 4
        return f"{shown} and {more} more" if more > 0 else shown


@dataclasses.dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` did; prints as a table.

    Attributes:
      groups: all groups of axes, refused ones included.
      shapes: path -> (shape before, shape now) of every leaf that is smaller.
      size_before: how many numbers all leaves had together.
      size: how many they have now.
      difference: the largest difference between the outputs of both models, relative to the largest
        output.

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
        """The groups that keep their size for the reason that they give."""
        return tuple(group for group in self.groups if group.reason)

    def __str__(self) -> str:
        head = f"shrink: {self.size_before:,} numbers before, {self.size:,} now"
        sizes = [f"{group.size} -> {group.kept}" for group in self.groups]
        width = max(map(len, sizes), default=0)
        lines = [
            f"{size:>{width}}  {group.name}" + (f": {group.reason}" if group.reason else "")
            for size, group in zip(sizes, self.groups, strict=True)
        ]
        return "\n".join([head, *lines])


def shrink(
    apply_fn: Callable[..., Any], variables: Any, *example_inputs: Any, rtol: float | None = None
) -> tuple[Any, ShrinkReport]:
    """Removes zero units from all params, and checks that the outputs stay the same.

    A unit is a neuron, a channel, a hidden unit of a recurrent cell or a head of attention: one
    index of several axes in several leaves, which `shrink` finds from the jaxpr of `apply_fn`. A
    unit is removed if the output does not depend on it: in every product that sums over it, the
    activation or the weights are zero there, whatever the input. For example, a column of a kernel
    is zero, and so are its bias and the scale and bias of the batch norm that follows. If all units
    of a group are zero, one of them stays.

    Groups of units that can't be removed safely are refused: they keep their size, and the report
    gives the reason. Refused are

    - axes under a LayerNorm, a mean or a softmax, which depend on how many entries there are;
    - axes whose length is part of a constant, such as head_dim of query and key in attention, which
      are scaled by 1 / sqrt(head_dim), and hard-coded lengths (compute them from array shapes);
    - axes that must be as long as an input, or as a constant array in the code (make it a param);
    - channels of grouped convolutions, except depthwise ones;
    - axes that pass through a primitive for which jaxprune has no rule.

    The optimizer state does not fit the smaller params: initialize a new one.

    Args:
      apply_fn: a function `(variables, *inputs) -> outputs` in inference mode, such as
        `model.apply`. Pass keyword arguments through a lambda:
        `lambda v, x: model.apply(v, x, train=False)`.
      variables: a tree of arrays: params, and batch statistics if there are any.
      example_inputs: typical inputs, of any batch size, to run both models on.
      rtol: the largest difference of the outputs that is allowed, relative to the largest output;
        by default the square root of the machine epsilon. Both models run at full matmul precision.

    Returns:
      The smaller variables, to run with `shrunk_apply(apply_fn, variables, *inputs)`, and a report.
      In plain JAX, and with a linen model that declares the new sizes,
      `apply_fn(variables, *inputs)` works too.

    Raises:
      ValueError: all groups are refused; or the outputs of the two models differ or contain NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]
      >>> params = {"w": jnp.array([[1.0, 0.0, 2.0]]), "b": jnp.zeros(3), "v": jnp.ones((3, 2))}
      >>> small, report = shrink(mlp, params, jnp.ones((4, 1)))
      >>> {name: leaf.shape for name, leaf in small.items()}
      {'b': (2,), 'v': (2, 2), 'w': (1, 2)}
    """
    return _shrink(function_model("shrink", apply_fn, variables, example_inputs), rtol)


def shrink_nnx(model: Any, *example_inputs: Any, rtol: float | None = None) -> ShrinkReport:
    """`shrink` for an NNX model, in place.

    Args:
      model: an `nnx.Module` whose call takes the inputs, in inference mode: call `model.eval()`
        first.
      example_inputs: as for `shrink`.
      rtol: as for `shrink`.

    Returns:
      The report. The model now has smaller params, and its layers remember the smaller sizes.

    Raises:
      ValueError: as `shrink`; the model is then unchanged.

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

    small, report = _shrink(nnx_model("shrink_nnx", model, example_inputs), rtol)
    nnx.update(model, small)
    resize_nnx(model)
    return report


def _shrink(model: Model, rtol: float | None) -> tuple[Any, ShrinkReport]:
    is_number = isinstance(rtol, numbers.Real) and not isinstance(rtol, bool)
    if rtol is not None and not (is_number and rtol >= 0):
        raise ValueError(f"shrink: rtol must be a number of at least 0, got {shown(rtol)}.")
    for x in jax.tree.leaves((model.variables, model.inputs)):
        if isinstance(x, (jax.core.Tracer, jax.ShapeDtypeStruct)):
            raise TypeError(
                f"shrink: needs the values of variables and inputs, got {shown(x)}. Pass arrays, "
                "outside jit."
            )
    program = program_of(model.apply_fn, model.variables, model.inputs)
    tracer = trace(program, known_values(program))
    groups = group_units(units_of(tracer))
    if not groups or all(group.reason for group in groups):
        reasons = [f"{_axis_group(program, g).name}: {g.reason}" for g in groups[:8]]
        raise ValueError(
            f"shrink: no axis of the params can shrink: {'; '.join(reasons) or 'there is none'}."
        )
    small = without_removed(program, accept(model, program, tracer, groups))
    difference = _largest_difference(model, small, rtol)
    return small, _report(program, groups, small, difference)


def _largest_difference(model: Model, small: Any, rtol: float | None) -> float:
    """Runs both models; the largest difference of an output, relative to the largest in its array.

    Raises:
      ValueError: it is larger than allowed, or an output of the original model is NaN.
    """
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(model.apply_fn)(model.variables, *model.inputs)
        small_outputs = jax.jit(model.apply_resized)(small, *model.inputs)
    leaves, small_leaves = map(jax.tree_util.tree_leaves, (outputs, small_outputs))
    differences = [_difference(x, y, rtol) for x, y in zip(leaves, small_leaves, strict=True)]
    return max(differences, default=0.0)


def _difference(before: jax.Array, after: jax.Array, rtol: float | None) -> float:
    """`_largest_difference` of one output array."""
    dtype = before.dtype
    limit = 0.0
    if jnp.issubdtype(dtype, jnp.inexact):
        limit = float(jnp.finfo(dtype).eps) ** 0.5 if rtol is None else rtol
    wide = complex if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64
    x, y = np.asarray(before).astype(wide), np.asarray(after).astype(wide)
    if np.isnan(x).any():
        raise ValueError(
            "shrink: the outputs contain NaN, so the smaller model can't be checked against them. "
            "Pass params and example inputs for which the outputs are finite."
        )
    largest = np.abs(x[np.isfinite(x)]).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        error = np.abs(np.where(x == y, 0, x - y)).max(initial=0.0)
    difference = error / largest if largest else error
    if not difference <= limit:
        raise ValueError(
            f"shrink: the outputs of the two models differ by {error:.3g}. The largest output is "
            f"{largest:.3g}, and {limit:.3g} of it is allowed. Pass a larger `rtol` if this is "
            "rounding. Otherwise the model does something that its jaxpr does not show: please "
            "report it."
        )
    return float(difference)


def _axis_group(program: Program, group: Group) -> AxisGroup:
    """A group for users: paths in place of leaf numbers, leaves of most axes first."""
    axes = sorted(group.axes, key=lambda axis: -np.ndim(program.leaves[axis.leaf]))
    members = tuple((program.paths[leaf], axis) for leaf, axis in axes)
    size = len(group.units)
    return AxisGroup(members, size, size - len(group.removed), group.reason)


def _report(
    program: Program, groups: Sequence[Group], small: Any, difference: float
) -> ShrinkReport:
    shapes = {}
    leaves = jax.tree_util.tree_leaves(small)
    for path, old, new in zip(program.paths, program.leaves, leaves, strict=True):
        if np.shape(old) != np.shape(new):
            shapes[path] = (tuple(np.shape(old)), tuple(np.shape(new)))
    before, now = (sum(math.prod(np.shape(x)) for x in tree) for tree in (program.leaves, leaves))
    axis_groups = tuple(_axis_group(program, group) for group in groups)
    return ShrinkReport(axis_groups, shapes, before, now, difference)


# Their examples run, although by `__module__` they belong to `jaxprune`.
__test__ = {"ShrinkReport": ShrinkReport}
