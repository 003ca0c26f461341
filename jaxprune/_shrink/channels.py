"""`channel_groups`: which channels must be pruned together, so that `shrink` can remove them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune._base.argument_types import Changes
from jaxprune._base.flax_import import import_flax
from jaxprune._base.paths import leaves_with_paths, rule_for, spec_of
from jaxprune._recipe.coupled import Coupled
from jaxprune._shrink.allow import allowed
from jaxprune._shrink.balance import extra_units, tie
from jaxprune._shrink.cut import units_of_labels
from jaxprune._shrink.fit import accept
from jaxprune._shrink.flax_sizes import Model, function_model, nnx_model
from jaxprune._shrink.groups import Group, group_units
from jaxprune._shrink.not_zero import choose_pruned
from jaxprune._shrink.report import (
    AxisGroup,
    axis_groups,
    groups_html,
    groups_text,
    refusals,
)
from jaxprune._shrink.units import LeafAxis, Unit, units_of
from jaxprune._trace.program import Program, program_of, trace
from jaxprune._trace.records import LeafSlice, Tiling
from jaxprune._trace.tracer import Tracer

_TAKEN = "another group has its leaves: a leaf is pruned along one axis, that of the larger group"
_MIXED = "two axes of one leaf belong to it: only one axis of a leaf can be pruned"
_SINGLE = "it has only one unit, which stays"


class ChannelGroups(dict[str, Coupled]):
    """A dict from a regex for each leaf to its structure, as `channel_groups` returns it.

    `print` shows all groups of coupled channels, with the reasons why some can't be pruned.

    Args:
      structures: the entries of the dict.
      groups: see below.
      readers: see below.

    Attributes:
      groups: all groups of axes, refused ones included. `kept` is the number of units.
      readers: (path, structure) for every axis along which a leaf only reads channels, such as the
        rows of the next kernel. `activation_score` scores channels by these weights.

    Example:
      >>> ChannelGroups({}, ()).refused
      ()
    """

    def __init__(
        self,
        structures: Mapping[str, Coupled],
        groups: Sequence[AxisGroup],
        readers: Sequence[tuple[str, Coupled]] = (),
    ):
        super().__init__(structures)
        self.groups = tuple(groups)
        self.readers = tuple(readers)

    def __reduce__(self) -> Any:
        return ChannelGroups, (dict(self), self.groups, self.readers)

    @property
    def refused(self) -> tuple[AxisGroup, ...]:
        """The groups that can't be pruned, each with its reason and its place in the model."""
        return tuple(group for group in self.groups if group.reason)

    def to_dict(self) -> dict[str, Any]:
        """The groups as a dictionary for JSON, refused ones included.

        Example:
          >>> ChannelGroups({}, ()).to_dict()
          {'groups': []}
        """
        return {"groups": [group.to_dict() for group in self.groups]}

    def __str__(self) -> str:
        return "\n".join([self._head, *groups_text(self._sizes, self.groups)])

    def _repr_html_(self) -> str:
        return groups_html(self._head, self._sizes, self.groups)

    @property
    def _head(self) -> str:
        n_refused = len(self.refused)
        n_left = len(self.groups) - n_refused
        return f"channel_groups: {n_left} group{'s' * (n_left != 1)}, and {n_refused} refused"

    @property
    def _sizes(self) -> list[str]:
        return [f"{group.size:,} units" for group in self.groups]


def channel_groups(
    apply_fn: Callable[..., Any],
    variables: Any,
    *example_inputs: Any,
    allow: Sequence[Changes] = (),
) -> ChannelGroups:
    """A structure that prunes whole channels, so that `shrink` can remove them.

    All slices that belong to a channel are dropped together: a column of a kernel, its bias, the
    scale and bias of its batch norm, and the same channel of other layers that a residual adds to
    it. A hidden unit of a recurrent cell includes its columns in all gates, a head of attention its
    query, key and value. The score of a channel is the Euclidean norm of all these weights, and all
    leaves of a group share one budget, which counts channels. Weights that only read a channel,
    such as its rows in the next kernel, are not pruned: they are multiplied by zeros. Channels that
    are not zero when their weights are, such as those behind a sigmoid, are pruned where they are
    read, in the rows of the next kernel. Where an axis is split into parts that must keep equal
    lengths, index i of every part belongs to channel i.

    A leaf whose axes belong to several groups is pruned with the group that has more leaves. Axes
    that `shrink` refuses are left out. So is the last layer, whose channels are the outputs.

    Args:
      apply_fn: as for `shrink`, in inference mode.
      variables: as for `shrink`; their values do not matter.
      example_inputs: as for `shrink`.
      allow: as for `shrink`: groups that can only be removed with it are offered, too.

    Returns:
      A dict from a regex for each leaf to its structure. Pass it twice, as `structure` and as
      `include`, because by default biases are not pruned:
      `prune(schedule, structure=groups, include=tuple(groups))`. Its `refused` lists the groups
      that can't be pruned, each with its reason and its place in the model; `print(groups)` shows
      all groups.

    Raises:
      TypeError: `apply_fn` is not a function, or the other arguments are not what it takes.
      ValueError: no channels can be pruned; it lists all groups and why they are refused. Or
        `allow` is not a tuple of known names.

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
    model = function_model("channel_groups", apply_fn, variables, example_inputs)
    paths = leaves_with_paths(variables)[0]
    param_paths = [path for path in paths if path.startswith("params/")]
    return _coupled_structures(model, param_paths or paths, allow)


def channel_groups_nnx(
    model: Any, *example_inputs: Any, allow: Sequence[Changes] = ()
) -> ChannelGroups:
    """`channel_groups` for an NNX model, with the paths that `nnx.Optimizer` uses.

    Args:
      model: an `nnx.Module` in inference mode: call `model.eval()` first.
      example_inputs: arguments of its call.
      allow: as for `channel_groups`.

    Returns:
      As `channel_groups`.

    Raises:
      TypeError: `model` is not an `nnx.Module`, or the other arguments are not what it takes.
      ValueError: as `channel_groups`.
      ModuleNotFoundError: flax is not installed.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(2, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 3, rngs=rngs))
      >>> list(channel_groups_nnx(model, jnp.ones((1, 2))))
      ['(params/)?layers/0/bias', '(params/)?layers/0/kernel']
    """
    nnx = import_flax("channel_groups_nnx", "nnx")
    program = nnx_model("channel_groups_nnx", model, example_inputs)
    paths = leaves_with_paths(nnx.state(model, nnx.Param))[0]
    return _coupled_structures(program, paths, allow)


def _coupled_structures(
    model: Model, param_paths: Iterable[str], allow: Sequence[str]
) -> ChannelGroups:
    allow_means = allowed("channel_groups", allow)
    program = program_of(model.apply_fn, model.variables, model.inputs, model.call)
    params = {program.paths.index(path) for path in param_paths}
    weights = {i for i in params if _is_weight(program.leaves[i])}
    tracer = trace(program, lambda leaf, axis: None, freeze_sums=not allow_means)

    def groups_with(tilings: Sequence[Tiling]) -> list[Group]:
        tie(tracer, tilings)
        return _to_try(program, tracer, weights, tilings)

    groups = accept(model, program, tracer, groups_with, allow_means=allow_means)
    structures: dict[str, Coupled] = {}
    readers: list[tuple[str, Coupled]] = []
    for component in _components([group for group in groups if group.removed]):
        pruned, read = _structures_of(program, component)
        structures |= {f"(params/)?{rule_for(path)}": leaf for path, leaf in pruned}
        readers += read
    if not structures:
        raise ValueError(f"channel_groups: no channels can be pruned: {refusals(program, groups)}")
    for group in groups:  # they still have the units that `accept` tried to remove
        group.removed = []
    return ChannelGroups(structures, axis_groups(program, groups), readers)


def _is_weight(leaf: Any) -> bool:
    """Whether a leaf may be pruned: an array of floating point or complex numbers."""
    spec = spec_of(leaf)
    return spec is not None and bool(jnp.issubdtype(spec.dtype, jnp.inexact))


def _to_try(
    program: Program, tracer: Tracer, weights: set[int], tilings: Sequence[Tiling]
) -> list[Group]:
    """The groups, each with a unit to remove, which shows whether the group can shrink at all."""
    units_of_label = units_of_labels(tracer)
    extra = extra_units(tracer.tilings, units_of_label)
    groups = group_units(program, units_of(tracer))
    for group in groups:
        group.removed = []
        if not group.reason:
            candidates = _candidates([group])
            group.removed = candidates[:1] + [u for u in candidates[1:-1] if u.label in extra]
            if len(candidates) == 1:
                group.refuse(_SINGLE)
    choose_pruned(
        program,
        [group for group in groups if group.removed],
        weights,
        tilings,
        freeze_sums=tracer.freeze_sums,
    )
    return groups


def _candidates(groups: Iterable[Group]) -> list[Unit]:
    """The units that may be removed as soon as they are zero."""
    return [unit for group in groups for unit in group.units if unit.is_candidate]


class _Component(NamedTuple):
    """Groups that share pruned axes, so that they must be pruned by one decision.

    Attributes:
      axes: the pruned axes of all of them.
      groups: the groups.
    """

    axes: frozenset[LeafAxis]
    groups: list[Group]


def _components(groups: Iterable[Group]) -> list[_Component]:
    """Groups in components. Each leaf is in one at most: the one with most axes takes it."""
    components: list[_Component] = []
    for group in _without_overlaps(groups):
        merged = _Component(group.pruned, [group])
        separate = []
        for component in components:
            if component.axes & merged.axes:
                merged = _Component(component.axes | merged.axes, component.groups + merged.groups)
            else:
                separate.append(component)
        components = [*separate, merged]
    taken: set[int] = set()
    chosen = []
    for component in sorted(components, key=lambda component: -len(component.axes)):
        leaves = {axis.leaf for axis in component.axes}
        if len(leaves) < len(component.axes) or leaves & taken:
            for group in component.groups:
                group.refuse(_TAKEN if leaves & taken else _MIXED)
        else:
            taken |= leaves
            chosen.append(component)
    return chosen


def _without_overlaps(groups: Iterable[Group]) -> list[Group]:
    """Groups that share no slice. Of those that do, the one with more axes is taken.

    An axis of channels that is reshaped to heads and head_dim can lose either. Heads come first,
    but an axis of less than four, such as the groups of a channel shuffle, comes last.
    """
    kept: list[tuple[int, Group]] = []
    slices: set[LeafSlice] = set()
    numbered = enumerate(groups)
    for number, group in sorted(numbered, key=lambda g: (-len(g[1].axes), len(g[1].units) < 4)):
        members = {m for unit in group.units for m in unit.members}
        pruned = {m for m in members if LeafAxis(m.leaf, m.axis) in group.pruned}
        if pruned & slices:
            group.refuse(_TAKEN)
        else:
            slices |= pruned
            kept.append((number, group))
    return [group for _, group in sorted(kept, key=lambda pair: pair[0])]


_PathsAndStructures = list[tuple[str, Coupled]]


def _structures_of(
    program: Program, component: _Component
) -> tuple[_PathsAndStructures, _PathsAndStructures]:
    """The structures of the leaves that a component prunes, and of those that read its channels."""
    units = _candidates(component.groups)
    pruned = sorted(component.axes)
    readers = sorted({axis for unit in units for axis in unit.consumers})
    unit_of = {
        axis: np.full(np.shape(program.leaves[axis.leaf])[axis.axis], -1)
        for axis in (*pruned, *readers)
    }
    for number, unit in enumerate(units):
        for member in unit.members:
            axis = LeafAxis(member.leaf, member.axis)
            if axis in unit_of:
                unit_of[axis][member.position] = number
    name = _without_collection(program.paths[pruned[0].leaf])

    def structures(axes: Iterable[LeafAxis]) -> _PathsAndStructures:
        return [
            (
                _without_collection(program.paths[axis.leaf]),
                Coupled(name, axis.axis, tuple(unit_of[axis].tolist()), len(units)),
            )
            for axis in axes
        ]

    return structures(pruned), structures(readers)


def _without_collection(path: str) -> str:
    return path.removeprefix("params/")


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
ChannelGroups.__module__ = "jaxprune"
__test__ = {"ChannelGroups": ChannelGroups}
