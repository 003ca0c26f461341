"""What `shrink` and `channel_groups` report: groups of axes, refused ones with their reasons."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxprune._base.paths import listed, shown_path
from jaxprune._base.plurals import counted
from jaxprune._base.text_table import Table, folded
from jaxprune._shrink.constant_units import ConstantUnits, constant_units
from jaxprune._shrink.costs import Cost, LayerCost, total
from jaxprune._shrink.groups import READS_RANDOM, Group
from jaxprune._shrink.units import LeafAxis
from jaxprune._trace.program import INFERENCE_MODE, Program
from jaxprune._trace.random_numbers import draws_random

_FEW = 3  # groups that errors list although they have the same reason


@dataclasses.dataclass(frozen=True)
class AxisGroup:
    """Param axes that can only shrink together, such as all axes over the neurons of one layer.

    Attributes:
      members: (path, axis) of every axis.
      size: number of units before: neurons, channels, heads.
      kept: number of units now.
      reason: why the group could not be removed; empty if there was no such reason.
      place: where in the model the reason is: the primitive, the module and the line; empty where
        that is unknown.
      changes: what changes in the function without the removed units, which only `allow` permits;
        empty if nothing does.

    Example:
      >>> print(AxisGroup((("fc/kernel", 1),), 4, 4, "it is an axis of the output"))
      fc/kernel[1]: it is an axis of the output
    """

    members: tuple[tuple[str, int], ...]
    size: int
    kept: int
    reason: str = ""
    place: str = ""
    changes: str = ""

    @property
    def name(self) -> str:
        """Its first four axes, as reports and errors show them."""
        shown = ", ".join(f"{shown_path(path)}[{axis}]" for path, axis in self.members[:4])
        more = len(self.members) - 4
        return f"{shown} and {more} more" if more > 0 else shown

    def __str__(self) -> str:
        place = f" ({self.place})" if self.place else ""
        if self.changes:
            return f"{self.name}: the function changes: {self.changes}"
        return f"{self.name}: {self.reason}{place}" if self.reason else self.name

    def to_dict(self) -> dict[str, Any]:
        """The group as a dictionary for JSON.

        Example:
          >>> AxisGroup((("fc/kernel", 1),), 4, 4, "it is an axis of the output").to_dict()[
          ...     "members"
          ... ]
          [['fc/kernel', 1]]
        """
        members = [[path, axis] for path, axis in self.members]
        words = {"reason": self.reason, "place": self.place, "changes": self.changes}
        return {"members": members, "size": self.size, "kept": self.kept, **words}


@dataclasses.dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` did; prints as a table.

    Attributes:
      groups: all groups of axes, refused ones included.
      shapes: path -> (shape before, shape now) of every leaf that is smaller.
      size_before: how many numbers all leaves had together; keys and their counters in an NNX
        model do not count.
      size: how many they have now.
      difference: the largest difference between the outputs of both models, relative to the largest
        output.
      layers: the cost of each layer before and now: a `LayerCost` with a name and two `Cost`s of
        numbers, bytes, and multiply-adds for the example inputs.
      constant: units that stay only because of biases or the like, although their kernels are zero:
        `n_units`, and the `paths` of the leaves that are not zero there.

    Example:
      >>> report = ShrinkReport((), {}, size_before=10, size=4, difference=0.0)
      >>> report.refused
      ()
    """

    groups: tuple[AxisGroup, ...]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    size_before: int
    size: int
    difference: float
    layers: tuple[LayerCost, ...] = ()
    constant: ConstantUnits = dataclasses.field(default_factory=ConstantUnits)

    @property
    def cost_before(self) -> Cost:
        """Numbers, bytes and multiply-adds of the whole model before."""
        return total(layer.before for layer in self.layers)

    @property
    def cost(self) -> Cost:
        """Numbers, bytes and multiply-adds of the whole model now."""
        return total(layer.now for layer in self.layers)

    def by_layer(self) -> str:
        """A table of the layers: numbers, bytes and multiply-adds, before and now."""
        header = ("layer", "numbers", "bytes", "multiply-adds")
        rows = []
        for name, before, now in self.layers:
            pairs = [f"{old:,} -> {new:,}" for old, new in zip(before, now, strict=True)]
            rows.append([name, *pairs])
        return Table(header, rows, numbers=header[1:], flexible=("layer",)).text()

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON.

        `pandas.DataFrame(report.to_dict()["layers"])` is the table of `by_layer`.

        Returns:
          `size_before`, `size`, `difference`, `groups`, `shapes` (path to the shape before and now)
          and `layers`, each with its `name` and its `numbers`, `bytes` and `multiply_adds`, also
          before. A difference that is not finite is None.

        Example:
          >>> ShrinkReport((), {}, size_before=10, size=4, difference=0.0).to_dict()["size"]
          4
        """
        shapes = {path: [list(shape) for shape in pair] for path, pair in self.shapes.items()}
        layers = [
            {"name": name}
            | {f"{unit}_before": n for unit, n in before._asdict().items()}
            | now._asdict()
            for name, before, now in self.layers
        ]
        difference = float(self.difference)
        return {
            "size_before": self.size_before,
            "size": self.size,
            "difference": difference if math.isfinite(difference) else None,
            "groups": [group.to_dict() for group in self.groups],
            "shapes": shapes,
            "layers": layers,
        }

    @property
    def refused(self) -> tuple[AxisGroup, ...]:
        """The groups that could not be removed, each with its `reason`."""
        return tuple(group for group in self.groups if group.reason)

    def __repr__(self) -> str:
        hint = folded(self._hint, indent="  ") if self._hint else []
        return "\n".join([self._head, *groups_text(self._sizes, self.groups), *hint])

    def _repr_html_(self) -> str:
        head = f"{self._head}. {self._hint}".rstrip(". ")
        return groups_html(head, self._sizes, self.groups)

    @property
    def _hint(self) -> str:
        """What to do about units that stay although no group was refused for another reason."""
        if self.constant.n_units:
            return _constant_hint(self.constant)
        if all(group.reason for group in self.groups) or self.size != self.size_before:
            return ""
        return (
            "Nothing was removed, because in no group a whole unit is zero. Prune whole units "
            "first: groups = jaxprune.channel_groups(...), then structure=groups, "
            "include=tuple(groups)"
        )

    @property
    def _head(self) -> str:
        return f"shrink: {self.size_before:,} numbers before, {self.size:,} now"

    @property
    def _sizes(self) -> list[str]:
        return [f"{group.size} -> {group.kept}" for group in self.groups]


def _constant_hint(constant: ConstantUnits) -> str:
    """Why constant units stay, and what to type so that they are zero."""
    n = constant.n_units
    units = f"{counted(n, 'unit')} {'has' if n == 1 else 'have'}"
    return (
        f"{units} kernels of zeros but stayed, because of nonzero values in "
        f"{listed(constant.paths)}. If you pruned these channels, fine-tuning changed these "
        "values: start again from the pruned params, and keep their zeros with "
        "jaxprune.keep_zeros(optimizer, include=tuple(groups)), where groups = "
        "jaxprune.channel_groups(...)"
    )


def groups_text(sizes: Sequence[str], groups: Sequence[AxisGroup]) -> list[str]:
    """The lines of a report, with the size of each group at the left; long ones are folded."""
    width = max(map(len, sizes), default=0)
    indent = " " * (width + 2)
    return [
        line
        for size, group in zip(sizes, groups, strict=True)
        for line in folded(f"{size:>{width}}  {group}", indent=indent)
    ]


def groups_html(head: str, sizes: Sequence[str], groups: Sequence[AxisGroup]) -> str:
    """The same as HTML for a notebook."""
    rows = [
        (size, group.name, group.reason or group.changes, group.place)
        for size, group in zip(sizes, groups, strict=True)
    ]
    header = ("units", "axes", "reason", "place")
    return Table(header, rows, head, numbers=("units",), flexible=header[1:]).html()


def axis_groups(program: Program, groups: Iterable[Group]) -> tuple[AxisGroup, ...]:
    """Groups for users: paths in place of leaf numbers, leaves of most axes first.

    An axis that is reshaped, say to heads and head_dim, can shrink in two ways, each of which is a
    group. Where both are refused they are reported as one, and where one is not, it is reported.
    """
    ways: dict[tuple[LeafAxis, ...], list[Group]] = {}
    for group in groups:
        ways.setdefault(group.axes, []).append(group)
    shown: list[AxisGroup] = []
    for same_axes in ways.values():
        possible = [group for group in same_axes if not group.reason]
        for group in possible or same_axes[:1]:
            reasons = dict.fromkeys(way.reason for way in same_axes if not possible)
            shown.append(_axis_group(program, group, "; ".join(reasons)))
    return tuple(shown)


def _axis_group(program: Program, group: Group, reason: str) -> AxisGroup:
    axes = sorted(group.axes, key=lambda axis: -np.ndim(program.leaves[axis.leaf]))
    members = tuple((program.paths[leaf], axis) for leaf, axis in axes)
    size = len(group.units)
    kept = size - len(group.removed)
    return AxisGroup(members, size, kept, reason, group.place, group.changes)


def refusals(program: Program, groups: Iterable[Group]) -> str:
    """All refused groups, for an error; only the first if many have the same reason."""
    by_reason: dict[tuple[str, str], list[AxisGroup]] = {}
    for group in axis_groups(program, groups):
        if group.reason:
            by_reason.setdefault((group.reason, group.place), []).append(group)
    reasons = "; ".join(map(_refused, by_reason.values())) or "no product sums over any of them"
    in_training = _IN_TRAINING if draws_random(program.jaxpr.jaxpr) else ""
    reasons = reasons.replace(READS_RANDOM, "") if in_training else reasons
    has_arrays = any(map(np.ndim, program.jaxpr.consts))
    return f"{reasons}.{in_training}{_CLOSED_OVER if has_arrays else ''}"


def _refused(alike: Sequence[AxisGroup]) -> str:
    """Groups that are refused for one reason."""
    if len(alike) <= _FEW:
        return "; ".join(map(str, alike))
    name = alike[0].name
    return str(alike[0]).replace(name, f"{name} and {len(alike) - 1} other groups", 1)


_IN_TRAINING = (
    " The model draws random numbers, whose shapes can't change. If they are those of dropout: "
    f"{INFERENCE_MODE}"
)
_CLOSED_OVER = (
    " Arrays that the function closes over are constants, whose shapes can't change. If they "
    "belong to the model, as batch_stats do, pass them in its first argument, with the params."
)


def report_of(
    program: Program,
    groups: Sequence[Group],
    leaves: Sequence[Any],
    layers: Sequence[LayerCost],
    difference: float,
) -> ShrinkReport:
    """The report about a model that was shrunk to these leaves."""
    shapes = {}
    for path, old, new in zip(program.paths, program.leaves, leaves, strict=True):
        if np.shape(old) != np.shape(new):
            shapes[path] = (tuple(np.shape(old)), tuple(np.shape(new)))
    before = total(layer.before for layer in layers).numbers
    now = total(layer.now for layer in layers).numbers
    shown = axis_groups(program, groups)
    constant = constant_units(program, groups)
    return ShrinkReport(shown, shapes, before, now, difference, tuple(layers), constant)


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# these classes belong to `jaxprune`.
AxisGroup.__module__ = ShrinkReport.__module__ = "jaxprune"
__test__ = {"AxisGroup": AxisGroup, "ShrinkReport": ShrinkReport}
