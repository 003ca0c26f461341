"""Which channels are coupled, for pruning: those that `shrink` would cut out together."""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import leaves_with_paths, rule_for
from jaxprune._recipe.coupled import Coupled
from jaxprune._shrink.flax_sizes import shrunk_apply, split_nnx
from jaxprune._shrink.groups import Group, accepted, find_groups
from jaxprune._shrink.program import Program, follow, program_of
from jaxprune._shrink.tracer import Unit

NOT_ZERO = "a unit is not zero where its weights are: look for a sigmoid, or a norm without scale"


def channel_groups(
    apply_fn: Callable[..., Any], variables: Any, *example_inputs: Any
) -> dict[str, Coupled]:
    """The structure under which whole channels are pruned, so that `shrink` can cut them out.

    A neuron goes with its column of the kernel, its bias, scale and bias of its batch norm, and
    with the channels of other layers that a residual adds to it; a hidden unit with its columns in
    all gates; a head of attention with its query, key and value. They are scored together, by the
    Euclidean norm of all their weights, and share a budget: the sparsity counts channels. What only
    takes a channel up, as the next kernel does with its rows, is not pruned, since it meets zeros.

    Where a leaf could lose indices along several axes, the group with more leaves decides. Axes
    that `shrink` refuses are left out, and so are the last layer and whatever else has none.

    Args:
      apply_fn: as for `shrink`, in the mode of inference.
      variables: as for `shrink`; the values do not matter.
      example_inputs: as for `shrink`.

    Returns:
      A regex for each leaf that takes part -> its structure. Pass both the structures and their
      paths, since biases are not pruned by default:
      `prune(schedule, structure=groups, include=tuple(groups))`.

    Raises:
      ValueError: no channel can go.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]
      >>> params = {"w": jnp.array([[3.0, 1.0]]), "b": jnp.array([0.0, 1.0]), "v": jnp.ones((2, 2))}
      >>> groups = channel_groups(mlp, params, jnp.ones((4, 1)))
      >>> sparse, _ = jaxprune.prune_params(params, 0.5, structure=groups, include=tuple(groups))
      >>> sparse["w"].tolist(), sparse["b"].tolist()
      ([[3.0, 0.0]], [0.0, 0.0])
      >>> jaxprune.shrink(mlp, sparse, jnp.ones((4, 1)))[0]["w"].tolist()
      [[3.0]]
    """

    def apply_small(variables: Any, *inputs: Any) -> Any:
        return shrunk_apply(apply_fn, variables, *inputs)

    paths = leaves_with_paths(variables)[0]
    of_params = [path for path in paths if path.startswith("params/")]
    return _found(apply_fn, apply_small, variables, example_inputs, of_params or paths)


def channel_groups_nnx(model: Any, *example_inputs: Any) -> dict[str, Coupled]:
    """`channel_groups` of the params of an NNX model, with paths as `nnx.Optimizer` has them.

    Args:
      model: an `nnx.Module`, in the mode of inference: `model.eval()` first.
      example_inputs: what it is called with.

    Raises:
      ValueError: no channel can go.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(2, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 3, rngs=rngs))
      >>> list(channel_groups_nnx(model, jnp.ones((1, 2))))
      ['(params/)?layers/0/bias', '(params/)?layers/0/kernel']
    """
    from flax import nnx

    state, apply_fn, apply_small = split_nnx(model)
    of_params = leaves_with_paths(nnx.state(model, nnx.Param))[0]
    return _found(apply_fn, apply_small, state, example_inputs, of_params)


def _found(
    apply_fn: Any, apply_small: Any, variables: Any, inputs: Any, of_params: Iterable[str]
) -> dict[str, Coupled]:
    program = program_of(apply_fn, variables, inputs)
    may = [program.paths.index(path) for path in of_params]
    weights = {i for i in may if jnp.issubdtype(program.leaves[i].dtype, jnp.inexact)}
    tracer = follow(program, lambda leaf, axis: None)
    found = find_groups(tracer.units())
    groups = [group for group in found if not group.reason]
    for group in groups:  # one unit each, to see whether it can be cut at all
        group.gone = _open_units([group])[:1] if len(group.units) > 1 else []
    _refuse_what_is_not_zero(program, groups, weights)
    units = _open_units(accepted(program, tracer, groups, apply_small, inputs))
    structures: dict[str, Coupled] = {}
    for component in _components(units, weights):
        structures |= _structures(program, component, weights)
    if not structures:
        why = "; ".join(f"{program.paths[g.members[0][0]]}: {g.reason}" for g in found if g.reason)
        raise ValueError(f"channel_groups: no channel can go: {why or 'no param has an axis'}.")
    return structures


def _open_units(groups: Iterable[Group]) -> list[Unit]:
    return [u for group in groups for u in group.units if u.read and not u.reasons]


def _refuse_what_is_not_zero(program: Program, groups: Iterable[Group], weights: set[int]) -> None:
    """Refuses groups in which a unit is still there once all that computes it is zero."""
    zeros: dict[tuple[int, int], list[int]] = {}
    for unit in (unit for group in groups for unit in group.gone):
        producers = _producers(unit, weights)
        for leaf, axis, index in unit.members:
            if (leaf, axis) in producers:
                zeros.setdefault((leaf, axis), []).append(index)

    def known(leaf: int, axis: int) -> np.ndarray | None:
        if (leaf, axis) not in zeros:
            return None
        values = np.full(np.shape(program.leaves[leaf])[axis], np.nan)
        values[zeros[leaf, axis]] = 0.0
        return values

    zero = {unit.members for unit in follow(program, known).units() if unit.zero}
    for group in groups:
        if group.gone and group.gone[0].members not in zero:
            group.reason, group.gone = NOT_ZERO, []


def _producers(unit: Unit, weights: set[int]) -> list[tuple[int, int]]:
    """(leaf, axis) of the params that a unit is computed by, not of those that take it up."""
    axes = dict.fromkeys((leaf, axis) for leaf, axis, _ in unit.members if leaf in weights)
    return [axis for axis in axes if axis not in unit.consumed]


def _components(units: Iterable[Unit], weights: set[int]) -> list[list[Unit]]:
    """Units that share axes of their producers, those with most leaves first; no leaf twice."""
    parts: list[tuple[set[tuple[int, int]], list[Unit]]] = []
    for unit in units:
        mine, together = set(_producers(unit, weights)), [unit]
        apart = []
        for axes, others in parts:
            if axes & mine:
                mine, together = axes | mine, others + together
            else:
                apart.append((axes, others))
        parts = [*apart, (mine, together)]
    taken: set[int] = set()
    chosen = []
    for axes, together in sorted(parts, key=lambda part: -len(part[0])):
        leaves = {leaf for leaf, _ in axes}
        if axes and len(leaves) == len(axes) and not leaves & taken and len(together) > 1:
            taken |= leaves
            chosen.append(together)
    return chosen


def _structures(program: Program, units: list[Unit], weights: set[int]) -> dict[str, Coupled]:
    """The structure of each leaf in a component."""
    axes = sorted({axis for unit in units for axis in _producers(unit, weights)})
    places = {axis: np.full(np.shape(program.leaves[axis[0]])[axis[1]], -1) for axis in axes}
    for number, unit in enumerate(units):
        for leaf, axis, index in unit.members:
            if (leaf, axis) in places:
                places[leaf, axis][index] = number
    name = _without_params(program.paths[axes[0][0]])
    return {
        f"(params/)?{rule_for(_without_params(program.paths[leaf]))}": Coupled(
            name, axis, tuple(places[leaf, axis].tolist()), len(units)
        )
        for leaf, axis in axes
    }


def _without_params(path: str) -> str:
    return path.removeprefix("params/")
