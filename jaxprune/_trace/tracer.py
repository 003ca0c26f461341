"""Finds out which axes of a model must have equal lengths, by following its jaxpr.

Neuron 1 of a hidden layer is column 1 of one kernel, entry 1 of its bias and row 1 of the next
kernel. That follows from the program. The tracer reads it off in one pass over the equations.

**Labels.** Every index of every param axis gets an integer, its label. Each equation passes the
labels of its operands on to its results, so that each axis of each intermediate array has labels
too, or None where its length can't change: inputs and constants have no labels. (Axes of length 1
have none either.)

**Units.** Where an equation needs two axes to have the same length, as `x + b` does, the tracer
joins them: label by label, it puts the two into one set. Such a set of labels is a unit. The slices
of params in a unit can only be removed together.

**Factors.** Where an axis is split, as in (12,) -> (3, 4), no index of it can be removed alone, but
every fourth can, or four neighbours: its labels get those of the two new axes as factors, and go
when one of them goes (see `label_sets`). Merging axes does the reverse.

**Frozen units.** A unit that meets something whose length can't change is frozen, with a reason
that users can read: it is joined to an axis without labels, a mean runs over it, or it passes
through a primitive without a rule.

**Known values.** Besides labels, an axis can have `known`: for each index, the one value that all
entries of that slice hold, whatever the inputs are. For a param, `known` is read from its entries.
The rules pass it on: if column 1 of `w` is zero, then so is column 1 of `x @ w` and of
`relu(x @ w)`, while column 1 of `sigmoid(x @ w)` is 0.5.

**Contractions.** A matrix product or a convolution sums over an axis of both factors, and the axis
ends there. The tracer joins the two axes and records where one of the factors is known to be zero:
at these indices the term of the sum is zero, so the result is the same without them.

An example: `relu(x @ w + b) @ v`, two hidden neurons, `w = [[3, 0]]`, `b = [1, 0]`,
`v = [[5], [6]]`. Axis 0 of `w` and axis 1 of `v` have length 1; the other axes of the params are

    axis    labels  known
    w[1]    0 1     3 0
    b[0]    2 3     1 0
    v[0]    4 5     5 6

and the equations do this to the hidden axis (? is unknown):

    equation        labels  known   joins           contraction
    h = x @ w       0 1     ? 0
    h = h + b       0 1     ? 0     0-2, 1-3
    h = relu(h)     0 1     ? 0
    h @ v                           0-4, 1-5        zero at 1, since h is

The units are {0, 2, 4} and {1, 3, 5}. The second is not frozen, and it is zero in the only product
that sums over it: w[:, 1], b[1] and v[1] can be removed without changing the output.

What a primitive does to the axes is a function in a table, `axis_rules.RULES`. What the records
mean for removing units is decided in `_shrink`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxprune._trace.label_sets import LabelSets
from jaxprune._trace.records import (
    CUT_UP,
    FIXED_BY_INPUT,
    Contraction,
    EquationArrays,
    EquationPath,
    FrozenLabels,
    KnownValues,
    LeafSlice,
    Tiling,
)
from jaxprune._trace.traced_arrays import (
    Axis,
    TracedArray,
    constant_array,
    fixed_array,
    zeros_of_product,
)

# What a primitive does to the axes: of the tracer, the equation and its operands, the results.
Rule = Callable[["Tracer", Any, Sequence[TracedArray]], list[TracedArray]]


class Tracer:
    """Follows a program and records what its equations require of the labels.

    Attributes:
      members: the slice of a param that each label was made for. Params come first, so label i
        belongs to `members[i]`; later labels belong to no param.
      units: labels that must stay or go together.
      families: for each label that a split made, the first label of its axis.
      weight_sets: like `units`, but joined only by equations of params alone. They connect the
        parts of one effective kernel, such as a kernel and the norm that divides it.
      frozen: labels that must stay.
      contractions: axes that products sum over.
      produced: labels of kernels along axes that their products do not sum over.
      tilings: axes that are cut into parts of equal length.
      weight_links: pairs of label arrays of reshaped weights: where a product sums over the first
        label, it sums over the second, from which the first was made.
      equations: the operands and the results of every equation.
      freeze_sums: whether axes that a sum or a mean runs over must stay.
    """

    def __init__(self, rules: dict[str, Rule], *, freeze_sums: bool = True):
        self.freeze_sums = freeze_sums
        self.members: list[LeafSlice] = []
        self.units = LabelSets()
        self.weight_sets = LabelSets()
        self.frozen: list[FrozenLabels] = []
        self.contractions: list[Contraction] = []
        self.produced: list[np.ndarray] = []
        self.tilings: list[Tiling] = []
        self.weight_links: list[tuple[np.ndarray, np.ndarray]] = []
        self.families: dict[int, int] = {}
        self.equations: dict[EquationPath, EquationArrays] = {}
        self._rules = rules
        self._n_labels = 0
        self._path: EquationPath = ()
        self._from_params = False  # whether the current equation has only params as operands

    # For whoever starts a trace

    def param(self, leaf: int, shape: tuple[int, ...], known: KnownValues) -> TracedArray:
        """A leaf of the params, with new labels for its axes but those of length 1.

        All params must be made before the program is run.
        """
        axes = []
        for k, size in enumerate(shape):
            labels = None
            if size > 1:
                labels = self.new_labels(size)
                self.members += [LeafSlice(leaf, k, i) for i in range(size)]
            axes.append(Axis(size, labels, known(leaf, k)))
        scalar = None if shape else known(leaf, -1)
        value = np.nan if scalar is None else float(scalar[0])
        return TracedArray(tuple(axes), value, from_params=True)

    def run(
        self, jaxpr: Any, consts: Sequence[Any], operands: Sequence[TracedArray]
    ) -> list[TracedArray]:
        """Follows a program, equation by equation, and returns its outputs."""
        env: dict[Any, TracedArray] = dict(zip(jaxpr.invars, operands, strict=True))
        env |= {var: constant_array(x) for var, x in zip(jaxpr.constvars, consts, strict=True)}

        def array_of(var: Any) -> TracedArray:
            return constant_array(var.val) if is_literal(var) else env[var]

        outer_path = self._path
        for number, eqn in enumerate(jaxpr.eqns):
            operands = [array_of(var) for var in eqn.invars]
            self._path = (*outer_path, number)
            results = self._apply_rule(eqn, operands)
            self.equations[self._path] = EquationArrays(operands, results)
            env |= zip(eqn.outvars, results, strict=True)
        self._path = outer_path
        return [array_of(var) for var in jaxpr.outvars]

    def _apply_rule(self, eqn: Any, operands: list[TracedArray]) -> list[TracedArray]:
        name = eqn.primitive.name
        self._from_params = from_params = bool(operands) and all(
            array.from_params or not np.isnan(array.single_value()) for array in operands
        )
        shapes = [tuple(var.aval.shape) for var in eqn.outvars]
        results = self._rules[name](self, eqn, operands) if name in self._rules else []
        if [tuple(axis.size for axis in array.axes) for array in results] != shapes:
            self.freeze_all(operands, f"it passes through {name}, which has no rule in jaxprune")
            results = [fixed_array(shape) for shape in shapes]
        return [
            dataclasses.replace(array, from_params=from_params or array.from_params)
            for array in results
        ]

    # For the rules

    def new_labels(self, size: int) -> np.ndarray:
        """Labels that are in no unit yet."""
        self._n_labels += size
        return np.arange(self._n_labels - size, self._n_labels)

    @property
    def n_labels(self) -> int:
        """How many labels there are: 0 to `n_labels - 1`."""
        return self._n_labels

    def join_labels(self, a: np.ndarray, b: np.ndarray) -> None:
        """Joins the units of `a[i]` and `b[i]`, for every i."""
        if a is not b:
            for labels in self.units.union(a, b):
                self.freeze(labels, CUT_UP)
            if self._from_params:
                self.weight_sets.union(a, b)

    def merge(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Labels of an axis that several axes were merged into.

        Args:
          parts: for each of the axes, its label at each index of the merged axis.

        Returns:
          New labels. An index of the merged axis goes when its index of any of the axes goes.
        """
        merged = self.new_labels(len(parts[0]))
        for label, factors in zip(merged.tolist(), np.stack(parts, 1).tolist(), strict=True):
            self.units.set_factors(label, tuple(factors))
        if self._from_params:
            self.weight_links += [(merged, part) for part in parts]
        return merged

    def split(self, labels: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray | None]:
        """Labels of the axes that one axis was split into; None for an axis that must stay.

        Removing an index of one of these axes removes every index of the old axis that is there.

        Args:
          labels: of the old axis.
          sizes: the lengths of the new axes.
        """
        axes = self._factored(np.array(self.units.find_all(labels)).reshape(sizes))
        if self._from_params:
            indices = np.unravel_index(np.arange(len(labels)), sizes)
            pairs = zip(axes, indices, strict=True)
            self.weight_links += [(axis[i], labels) for axis, i in pairs if axis is not None]
        return axes

    def _factored(self, grid: np.ndarray) -> list[np.ndarray | None]:
        """`split` of a grid of labels that represent their units."""
        factors = [self.units.factors(label) for label in grid.ravel().tolist()]
        if factors[0] is not None and len({len(f) if f else 0 for f in factors}) == 1:
            roots = [self.units.find_all(np.array(f)) for f in zip(*factors, strict=True)]
            by_factor = [self._factored(np.array(f).reshape(grid.shape)) for f in roots]
            return [self._product(labels) for labels in zip(*by_factor, strict=True)]
        axes: list[np.ndarray | None] = [None] * grid.ndim
        varying = [k for k in range(grid.ndim) if (grid != grid.take([0], k)).any()]
        if not varying:
            self.freeze(grid.ravel(), CUT_UP)
        elif len(varying) == 1:
            axes[varying[0]] = np.moveaxis(grid, varying[0], 0).reshape(grid.shape[varying[0]], -1)[
                :, 0
            ]
        else:
            for k in varying:
                labels = axes[k] = self.new_labels(grid.shape[k])
                self.families |= dict.fromkeys(labels.tolist(), int(labels[0]))
            self._set_factors(grid, axes)
        return axes

    def _set_factors(self, grid: np.ndarray, axes: Sequence[np.ndarray | None]) -> None:
        """Gives each label of a grid its factors, the labels of the axes at its indices."""
        indices = np.unravel_index(np.arange(grid.size), grid.shape)
        pairs = zip(axes, indices, strict=True)
        parts = [axis[i].tolist() for axis, i in pairs if axis is not None]
        for label, *factors in zip(grid.ravel().tolist(), *parts, strict=True):
            for conflict in self.units.set_factors(label, tuple(factors)):
                self.freeze(conflict, CUT_UP)

    def _product(self, labels: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """Labels of an axis whose index goes when that of any of these goes."""
        labelled = [part for part in labels if part is not None]
        return labelled[0] if len(labelled) == 1 else self.merge(labelled) if labelled else None

    def tile(self, labels: np.ndarray | None, n_parts: int, *, forced: bool = False) -> None:
        """Records that an axis is cut into parts of equal length."""
        if labels is not None and n_parts > 1:
            self.tilings.append(Tiling(labels.reshape(n_parts, -1), self._path, forced))

    def join(self, axes: Sequence[Axis], place: str) -> Axis:
        """Joins axes that must have the same length, and returns the joined axis.

        An axis without labels freezes the others. The result has no known values.

        Args:
          axes: of one length.
          place: the primitive, or what else users should read in the reason for freezing.
        """
        labelled = [axis.labels for axis in axes if axis.labels is not None]
        if len(labelled) < len(axes):
            for labels in labelled:
                self.freeze(labels, f"{FIXED_BY_INPUT} in {place}")
            return Axis(axes[0].size)
        for labels in labelled[1:]:
            self.join_labels(labelled[0], labels)
        return Axis(axes[0].size, labelled[0])

    def freeze(self, labels: np.ndarray | None, reason: str) -> None:
        """Records that units must stay. Users read the reason after the axis, as in `w[0]: ...`."""
        if labels is not None:
            self.frozen.append(FrozenLabels(labels, reason, self._path))

    def freeze_all(self, arrays: Iterable[TracedArray], reason: str) -> None:
        """Freezes all axes of these arrays."""
        for array in arrays:
            for axis in array.axes:
                self.freeze(axis.labels, reason)

    def contract(
        self, axes: tuple[Axis, Axis], from_params: tuple[bool, bool], primitive: str
    ) -> None:
        """Joins and records two axes that a product sums over, one of each factor.

        Args:
          axes: of the left and of the right factor.
          from_params: `TracedArray.from_params` of both factors.
          primitive: its name, for the reason if an axis without labels freezes the other.
        """
        labels = self.join(axes, primitive).labels
        if labels is None:
            return
        weight_labels = None
        if from_params[0] != from_params[1]:
            weight_labels = axes[from_params.index(True)].labels
        zero = zeros_of_product(axes[0].known_values(), axes[1].known_values()) == 0
        self.contractions.append(Contraction(labels, zero, weight_labels))

    def produce(self, array: TracedArray, axes: Iterable[Axis]) -> None:
        """Records axes of a factor that its product does not sum over, if it is a kernel."""
        if array.from_params:
            self.produced += [axis.labels for axis in axes if axis.labels is not None]

    def run_inner(
        self, eqn: Any, key: str, operands: Sequence[TracedArray], number: int = 0
    ) -> list[TracedArray]:
        """Follows a program that an equation holds in its param `key`.

        Args:
          eqn: the equation.
          key: the name of the param.
          operands: of the inner program.
          number: which program, where the param is a tuple of them.
        """
        jaxpr = eqn.params[key]
        jaxpr = jaxpr[number] if isinstance(jaxpr, tuple) else jaxpr
        outer_path, self._path = self._path, (*self._path, key, number)
        results = self.run(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), operands)
        self._path = outer_path
        return results


def is_literal(var: Any) -> bool:
    """Whether an operand of an equation is a number written into the program."""
    return hasattr(var, "val")


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are its carry."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # from jax 0.11 on
    return len(consts), len(carry)
