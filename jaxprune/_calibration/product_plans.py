"""Where the moments of each product's inputs belong in the moments of a leaf: tables in NumPy.

A product multiplies inputs by an array that holds entries of a leaf (a `View`). It sums over some
axes of that array. Each index of these axes is a row of the leaf's matrices (in, out), and each
index of a batch axis may be one of the leaf's slices. `plans_of` computes these rows and slices
once; adding up moments while the model runs (`collector`) is then indexing.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune._calibration.kernel_view import KernelView
from jaxprune._trace.leaf_views import Digits, Lookup, UnclearError, split, table
from jaxprune._trace.tracer import EquationPath
from jaxprune._trace.use_roles import use_of
from jaxprune._trace.view_tracer import Product

_SUMMED = ("in", "window")


class Place(NamedTuple):
    """What an index adds to the place in the moments of a leaf.

    Attributes:
      slices: int[size], to the number of the slice.
      rows: int[size], to the row.
      columns: int[size], to the column.
      present: bool[size], at which indices there are entries of the leaf.
    """

    slices: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    present: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ProductPlan:
    """How the moments of the inputs of one product are added to those of a leaf.

    Attributes:
      path: of the leaf.
      operand: which operand of the equation holds entries of the leaf.
      summed: the axes of that operand that make the rows.
      repeated: axes summed over along which the same entries of the leaf repeat.
      batch: the batch axes that make slices or groups.
      rows: int[n], the row of each index of `summed`, flattened; -1 if it is not from the leaf.
      slices: int[n_batch], the slice, or group of one, of each index of `batch`, flattened; -1 if
        it is not from the leaf.
      row_starts: int[n_batch], what each index of `batch` adds to the row.
      loops: for each scan around the product, its path and what each iteration adds.
      lookups: for each position that the program computes, where, and what each position adds.
      n_groups: groups of a convolution.
    """

    path: str
    operand: int
    summed: tuple[int, ...]
    repeated: tuple[int, ...]
    batch: tuple[int, ...]
    rows: np.ndarray
    slices: np.ndarray
    row_starts: np.ndarray
    loops: tuple[tuple[EquationPath, Place], ...]
    lookups: tuple[tuple[EquationPath, int, Place], ...]
    n_groups: int


class LeafPlans(NamedTuple):
    """The products of a leaf.

    Attributes:
      view: how the leaf forms matrices, with groups of outputs.
      plans: path of an equation -> plans.
    """

    view: KernelView
    plans: dict[EquationPath, list[ProductPlan]]


def leaf_plans(
    path: str, view: KernelView, products: Mapping[EquationPath, Sequence[Product]]
) -> LeafPlans:
    """The plans of a leaf.

    Args:
      path: of the leaf.
      view: how it forms matrices.
      products: of the leaf, by the path of the equation.

    Raises:
      UnclearError: the inputs of a product can't be assigned to rows; the text says why.
    """
    strides = _strides(view)
    drafts = [
        (where, draft)
        for where, several in products.items()
        for product in several
        if use_of(product, view.shape) is not None
        for draft in [_Draft.of(product, strides)]
    ]
    n_groups = _number_of_groups([draft for _, draft in drafts], view)
    view = view._replace(n_groups=n_groups)
    plans: dict[EquationPath, list[ProductPlan]] = {}
    for where, draft in drafts:
        plans.setdefault(where, []).append(draft.plan(path, view))
    return LeafPlans(view, plans)


class _Strides(NamedTuple):
    """For each axis of a leaf, what one index adds to the slice, the row and the column."""

    slices: dict[int, int]
    rows: dict[int, int]
    columns: dict[int, int]


def _strides(view: KernelView) -> _Strides:
    def of(*roles: str) -> dict[int, int]:
        axes = view.axes(*roles)
        return {k: math.prod(view.shape[i] for i in axes if i > k) for k in axes}

    return _Strides(of("stack"), of("in", "window"), of("out"))


def _place(digits: Digits, strides: _Strides) -> Place:
    """What each index of an axis adds."""
    digit = table(digits)

    def added(by_axis: Mapping[int, int]) -> np.ndarray:
        parts = [step * by_axis[axis] for axis, step in digit.steps.items() if axis in by_axis]
        return sum(parts, np.zeros(digit.size, int))

    return Place(added(strides.slices), added(strides.rows), added(strides.columns), digit.mask())


def _joined(axes: Iterable[Digits], strides: _Strides) -> Place:
    """What each index of several axes adds, flattened in their order."""
    return _place(tuple(digit for digits in axes for digit in digits), strides)


class _Draft(NamedTuple):
    """A plan before it is known how many groups the outputs of the leaf have."""

    product: Product
    summed: tuple[int, ...]
    repeated: tuple[int, ...]
    batch: tuple[int, ...]
    rows: Place
    starts: Place
    base: Place
    loops: tuple[tuple[EquationPath, Place], ...]
    lookups: tuple[tuple[EquationPath, int, Place], ...]

    @staticmethod
    def of(product: Product, strides: _Strides) -> "_Draft":
        """The tables of a product."""
        view = product.view
        axes = list(view.axes)
        if any(lookup.n_positions > 1 for lookup in view.lookups):
            raise UnclearError("each input looks up entries of its own")
        if any(
            digit.varies(k) for _, digits in view.inner for digit in digits for k in strides.rows
        ):
            raise UnclearError("its inputs are multiplied by another param first")
        roles = list(product.roles)
        groups: Digits = ()
        if product.n_groups > 1:
            out = roles.index("out")
            groups, axes[out] = _split_groups(axes[out], product.n_groups)
        summed = tuple(k for k, role in enumerate(roles) if role in _SUMMED)
        repeated = tuple(k for k in summed if _is_blank(axes[k]) and roles[k] == "in")
        if product.primitive == "conv_general_dilated":
            repeated = ()
        summed = tuple(k for k in summed if k not in repeated)
        batch = tuple(k for k, r in enumerate(roles) if r == "stack" and not _is_blank(axes[k]))
        of_batch = [groups] if product.n_groups > 1 else [axes[k] for k in batch]
        slices, rows, columns = (
            np.array([sum(view.start[k] * n for k, n in by_axis.items())]) for by_axis in strides
        )
        return _Draft(
            product,
            summed,
            repeated,
            batch,
            _joined((axes[k] for k in summed), strides),
            _joined(of_batch, strides),
            Place(slices, rows, columns, np.ones(1, bool)),
            tuple((where, _place(digits, strides)) for where, digits in view.loops),
            tuple((x.path, x.axis, _looked_up(x, strides)) for x in view.lookups),
        )

    def plan(self, path: str, view: KernelView) -> ProductPlan:
        """The plan, for a leaf with a given number of groups of outputs."""
        n_columns, n_groups = view.n_columns, view.n_groups
        slices = (self.starts.slices + self.base.slices) * n_groups
        if n_groups > 1:
            slices = slices + (self.starts.columns + self.base.columns) // n_columns
        rows = self.rows.rows + self.base.rows
        if (self.rows.slices != 0).any():
            raise UnclearError("an axis that is summed over is a stack in another product")
        return ProductPlan(
            path,
            self.product.operand,
            self.summed,
            self.repeated,
            self.batch,
            np.where(self.rows.present, rows, -1),
            np.where(self.starts.present, slices, -1),
            self.starts.rows,
            tuple((where, _in_groups(place, n_groups)) for where, place in self.loops),
            tuple((where, k, _in_groups(place, n_groups)) for where, k, place in self.lookups),
            self.product.n_groups,
        )


def _looked_up(lookup: Lookup, strides: _Strides) -> Place:
    """What each position adds: the coordinates at position 0 are in the view already."""
    place = _place(lookup.digits, strides)
    slices, rows, columns = (values - values[0] for values in place[:3])
    is_even = all((np.diff(x) == np.diff(x)[:1]).all() for x in (slices, rows, columns))
    if not place.present.all() or (lookup.size > 1 and not is_even):
        raise UnclearError("it is looked up in an array that holds other entries, too")
    return Place(slices, rows, columns, place.present)


def _in_groups(place: Place, n_groups: int) -> Place:
    return place._replace(slices=place.slices * n_groups)


def _is_blank(digits: Digits) -> bool:
    """Whether the same entries of the leaf repeat along an axis."""
    return all(not digit.steps and digit.present is None for digit in digits)


def _split_groups(digits: Digits, n_groups: int) -> tuple[Digits, Digits]:
    """The groups of output channels, and the channels of a group."""
    size = math.prod(digit.size for digit in digits)
    groups, channels = split(digits, (n_groups, size // n_groups))
    return groups, channels


def _number_of_groups(drafts: Sequence[_Draft], view: KernelView) -> int:
    """Into how many groups of neighbours the outputs of a leaf are cut by its products."""
    n_groups = {len(np.unique(draft.starts.columns[draft.starts.present])) for draft in drafts}
    if len(n_groups) > 1:
        raise UnclearError("its outputs form groups in one product, and not in another")
    n = n_groups.pop() if n_groups else 1
    for draft in drafts if n > 1 else ():
        columns = np.unique(draft.starts.columns + draft.base.columns)
        if view.n_columns % n or (columns != np.arange(n) * (view.n_columns // n)).any():
            raise UnclearError("outputs with inputs of their own are not neighbours")
    return n
