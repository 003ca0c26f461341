"""Which indices of which axes of which leaves belong together, found from a model's jaxpr.

Every axis of every array in the program is followed back to the params: each of its indices carries
the label of a unit, and where the program needs two axes to be of one length, their units are
joined. Beside the labels goes what is known of the values: which slices hold one constant whatever
the input is. An index can go from all arrays at once if nothing freezes its unit, and if wherever a
product sums over it one of the two factors is zero there. The rules of the primitives are in
`axis_rules`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

FIXED_BY_INPUT = "it meets an input, or a constant, of its size"
FIXED_BY_OUTPUT = "it is an axis of the output"
WINDOW = "it is the window of a convolution"
LENGTH = "scan runs over it"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of one array.

    Attributes:
      size: its length.
      labels: int64[size], the unit of each index; None where the length is fixed from outside, as
        that of a batch is.
      known: float64[size], the value that the whole slice at an index holds, NaN where it is not
        known to hold one; None where nothing is known.
    """

    size: int
    labels: np.ndarray | None = None
    known: np.ndarray | None = None

    def value(self) -> np.ndarray:
        """`known`, spelt out."""
        return np.full(self.size, np.nan) if self.known is None else self.known

    def zero(self) -> np.ndarray:
        """Where the slice is known to be zero: bool[size]."""
        return self.value() == 0

    def at(self, index: Any) -> "Axis":
        """The axis of the array that has these indices of this one."""
        labels = None if self.labels is None else self.labels[index]
        known = None if self.known is None else self.known[index]
        size = len(np.empty(self.size, np.int8)[index])
        return Axis(size, labels, known)

    def only(self, keep: np.ndarray) -> "Axis":
        """The axis, with what is known of other indices forgotten."""
        return dataclasses.replace(self, known=np.where(keep, self.value(), np.nan))

    def unknown(self) -> "Axis":
        """The axis, with nothing known."""
        return dataclasses.replace(self, known=None)


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of one array of the program.

    Attributes:
      axes: one per axis.
      scalar: the value of an array without axes, NaN where it is not known.
      weights: whether it is computed from params alone.
    """

    axes: tuple[Axis, ...] = ()
    scalar: float = np.nan
    weights: bool = False

    @staticmethod
    def of(axes: Sequence[Axis]) -> "Value":
        """An array with these axes."""
        return Value(tuple(axes))

    def everywhere(self) -> float:
        """The constant that the whole array holds, or NaN."""
        for axis in self.axes:
            if axis.known is not None and axis.size and np.all(axis.known == axis.known[0]):
                return float(axis.known[0])
        return np.nan if self.axes else self.scalar


class Unit(NamedTuple):
    """What stays or goes at once.

    Attributes:
      label: one of its labels, the same for all; see `Tracer.label_of`.
      members: (leaf, axis, index) of every slice of a param that it consists of.
      reasons: why it can't go; empty where it could.
      read: whether any product sums over it.
      zero: whether one factor is zero wherever a product sums over it.
      consumed: (leaf, axis) of the params that such products take it up with.
    """

    label: int
    members: tuple[tuple[int, int, int], ...]
    reasons: tuple[str, ...]
    read: bool
    zero: bool
    consumed: frozenset[tuple[int, int]]


# Where an equation is: its number, and before it that of the one around it with (param, number) of
# the program that it is in.
Place = tuple[Any, ...]
# Of a leaf and an axis, the value of each slice, as in `Axis`; of axis -1, the value of a scalar.
Known = Callable[[int, int], np.ndarray | None]


class _Sets:
    """Disjoint sets of labels."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def find(self, label: int) -> int:
        """The least label of the set."""
        root = label
        while (above := self._parent.get(root, root)) != root:
            root = above
        while (above := self._parent.get(label, label)) != root:
            self._parent[label], label = root, above
        return root

    def union(self, a: np.ndarray, b: np.ndarray) -> None:
        """Joins sets, index by index."""
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            i, j = self.find(i), self.find(j)
            if i != j:
                self._parent[max(i, j)] = min(i, j)


class Tracer:
    """Labels and what was found of them, while a program is followed."""

    def __init__(self, rules: dict[str, Callable[..., list[Value]]]):
        self.rules = rules
        self._n_labels = 0
        self._units = _Sets()
        self._twins = _Sets()  # labels that met before any data did: one axis of joined kernels
        self._in_weights = False
        self._place: Place = ()
        self.made: dict[Place, tuple[list[Value], list[Value]]] = {}  # by each equation, of what
        self._frozen: list[tuple[np.ndarray, str]] = []
        self._read: list[tuple[np.ndarray, np.ndarray]] = []
        self._consumed: list[np.ndarray] = []
        self.members: list[tuple[int, int, int]] = []  # of the first labels, those of the params

    def fresh(self, size: int) -> np.ndarray:
        """Labels of units that are not met anywhere else yet."""
        self._n_labels += size
        return np.arange(self._n_labels - size, self._n_labels)

    def param(self, leaf: int, shape: tuple[int, ...], known: Known) -> Value:
        """A leaf of the params. Axes of length 1 stay."""
        axes = []
        for k, size in enumerate(shape):
            labels = None
            if size > 1:
                labels = self.fresh(size)
                self.members += [(leaf, k, i) for i in range(size)]
            axes.append(Axis(size, labels, known(leaf, k)))
        scalar = None if shape else known(leaf, -1)
        return Value(tuple(axes), np.nan if scalar is None else float(scalar[0]), weights=True)

    def union(self, a: np.ndarray, b: np.ndarray) -> None:
        """Joins units, index by index."""
        if a is not b:
            self._units.union(a, b)
            if self._in_weights:
                self._twins.union(a, b)

    def freeze(self, labels: np.ndarray | None, why: str) -> None:
        """Keeps units, for a reason that users read."""
        if labels is not None:
            self._frozen.append((labels, why))

    def freeze_all(self, values: Iterable[Value], why: str) -> None:
        """Keeps all units of some arrays."""
        for value in values:
            for axis in value.axes:
                self.freeze(axis.labels, why)

    def join(self, axes: Sequence[Axis], primitive: str) -> Axis:
        """The axis that is all of these: one length, one set of units. Nothing is known of it."""
        labelled = [axis.labels for axis in axes if axis.labels is not None]
        if len(labelled) < len(axes):
            for labels in labelled:
                self.freeze(labels, f"{FIXED_BY_INPUT} ({primitive})")
            return Axis(axes[0].size)
        for labels in labelled[1:]:
            self.union(labelled[0], labels)
        return Axis(axes[0].size, labelled[0])

    def read(self, axes: tuple[Axis, Axis], weights: tuple[bool, bool], primitive: str) -> None:
        """A product sums over two axes, one of each factor, and they are gone from what follows."""
        labels = self.join(axes, primitive).labels
        if labels is None:
            return
        self._read.append((labels, axes[0].zero() | axes[1].zero()))
        for axis, is_weight, other in zip(axes, weights, weights[::-1], strict=True):
            if is_weight and not other and axis.labels is not None:
                self._consumed.append(axis.labels)

    def units(self) -> list[Unit]:
        """The units that params take part in, in the order of the leaves."""
        members: dict[int, list[tuple[int, int, int]]] = {}
        for label, member in enumerate(self.members):
            members.setdefault(self._units.find(label), []).append(member)
        reasons: dict[int, dict[str, None]] = {}
        for labels, why in self._frozen:
            for root in {self._units.find(label) for label in labels.tolist()}:
                reasons.setdefault(root, {})[why] = None
        zero: dict[int, bool] = {}
        for labels, ok in self._read:
            for label, fine in zip(labels.tolist(), ok.tolist(), strict=True):
                root = self._units.find(label)
                zero[root] = zero.get(root, True) and fine
        taken_up = {self._twins.find(i) for labels in self._consumed for i in labels.tolist()}
        consumed: dict[int, set[tuple[int, int]]] = {}
        for label, (leaf, axis, _) in enumerate(self.members):
            if self._twins.find(label) in taken_up:
                consumed.setdefault(self._units.find(label), set()).add((leaf, axis))
        return [
            Unit(
                root,
                tuple(mine),
                tuple(reasons.get(root, ())),
                root in zero,
                zero.get(root, False),
                frozenset(consumed.get(root, ())),
            )
            for root, mine in members.items()
        ]

    def label_of(self, labels: np.ndarray) -> np.ndarray:
        """The label that stands for each unit."""
        return np.array([self._units.find(label) for label in labels.tolist()], int)

    def within(self, eqn: Any, key: str, args: Sequence[Value], number: int = 0) -> list[Value]:
        """Follows a program that is a param of an equation, or one of several in it."""
        jaxpr = eqn.params[key]
        jaxpr = jaxpr[number] if isinstance(jaxpr, tuple) else jaxpr
        place, self._place = self._place, (*self._place, key, number)
        outs = self.run(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), args)
        self._place = place
        return outs

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Value]) -> list[Value]:
        """Follows a program, equation by equation."""
        env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {var: constant(x) for var, x in zip(jaxpr.constvars, consts, strict=True)}

        def read(var: Any) -> Value:
            return constant(var.val) if is_literal(var) else env[var]

        around = self._place
        for number, eqn in enumerate(jaxpr.eqns):
            ins = [read(var) for var in eqn.invars]
            self._place = (*around, number)
            outs = self._apply(eqn, ins)
            self.made[self._place] = ins, outs
            env |= zip(eqn.outvars, outs, strict=True)
        self._place = around
        return [read(var) for var in jaxpr.outvars]

    def _apply(self, eqn: Any, ins: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        weights = bool(ins) and all(v.weights or not np.isnan(v.everywhere()) for v in ins)
        self._in_weights = weights
        shapes = [tuple(var.aval.shape) for var in eqn.outvars]
        outs = self.rules[name](self, eqn, ins) if name in self.rules else []
        if [tuple(axis.size for axis in out.axes) for out in outs] != shapes:
            self.freeze_all(ins, f"unknown primitive {name}")
            outs = [fixed(shape) for shape in shapes]
        return [dataclasses.replace(out, weights=weights or out.weights) for out in outs]


def is_literal(var: Any) -> bool:
    """Whether an operand is a number in the program."""
    return hasattr(var, "val")


def constant(x: Any) -> Value:
    """An array that is in the program itself: its shape is fixed, its values are known."""
    try:
        x = np.asarray(x, np.float64)
    except (TypeError, ValueError):  # a PRNG key
        return fixed(np.shape(x))
    known = [constant_slices(x, k) for k in range(x.ndim)]
    axes = tuple(Axis(n, None, k) for n, k in zip(x.shape, known, strict=True))
    return Value(axes, float(x) if x.ndim == 0 else np.nan)


def fixed(shape: Sequence[int]) -> Value:
    """An array whose shape and values come from outside."""
    return Value(tuple(Axis(int(n)) for n in shape))


def constant_slices(x: np.ndarray, axis: int) -> np.ndarray | None:
    """The value of each slice along an axis that holds one value, NaN elsewhere."""
    if not x.size:
        return None
    others = tuple(i for i in range(x.ndim) if i != axis)
    low, high = x.min(others), x.max(others)
    known = np.where(low == high, low, np.nan)
    return None if np.isnan(known).all() else known
