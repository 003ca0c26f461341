"""Sets of labels that stay or go together, and labels that go when one of several others goes.

When an axis of length 12 is split into (3, 4), no single index of it can be removed any more: index
5 = (1, 1) goes when row 1 goes, or column 1. Its label then has **factors**: the label of row 1 and
that of column 1. A label without factors is an **atom**; units are sets of atoms.
"""

import numpy as np

Factors = tuple[int, ...]


class LabelSets:
    """Disjoint sets of labels, some of which have factors."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}
        self._factors: dict[int, Factors] = {}  # by the smallest label of the set

    def find(self, label: int) -> int:
        """The smallest label of the set that a label is in."""
        root = label
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while (parent := self._parent.get(label, label)) != root:
            self._parent[label], label = root, parent
        return root

    def find_all(self, labels: np.ndarray) -> list[int]:
        """`find` of each label."""
        return [self.find(label) for label in labels.tolist()]

    def roots(self, n_labels: int) -> np.ndarray:
        """`find` of the labels 0 to `n_labels - 1`, faster than one by one: int64[n_labels]."""
        parent = np.arange(n_labels)
        parent[list(self._parent)] = list(self._parent.values())
        while (parent != (parent := parent[parent])).any():
            pass
        return parent

    def atoms_of_all(self, n_labels: int) -> np.ndarray:
        """`atoms` of the labels 0 to `n_labels - 1`, one row for each; short rows end with -1."""
        roots = self.roots(n_labels)
        atoms = {root: self.atoms(root) for root in self._factors if root < n_labels}
        table = np.full((n_labels, max(map(len, atoms.values()), default=1)), -1)
        table[:, 0] = np.arange(n_labels)
        for root, row in atoms.items():
            table[root, : len(row)] = row
        return table[roots]

    def factors(self, label: int) -> Factors | None:
        """The factors of a label; None if it is an atom."""
        return self._factors.get(self.find(label))

    def atoms(self, label: int) -> Factors:
        """The atoms of a label, in the order of its factors: it goes when one of them goes.

        An atom has itself as its only atom.
        """
        root = self.find(label)
        if root not in self._factors:
            return (root,)
        return tuple(atom for factor in self._factors[root] for atom in self.atoms(factor))

    def union(self, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
        """Merges the sets of `a[i]` and `b[i]`, for every i.

        Returns:
          Arrays of labels that can't be removed, because two merged labels have different numbers
          of factors.
        """
        conflicts = []
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            conflicts += self._union(i, j)
        return conflicts

    def set_factors(self, label: int, factors: Factors) -> list[np.ndarray]:
        """Sets the factors of a label.

        If the label has factors already, the sets of the old and the new factors are merged, the
        first with the first and so on.

        Returns:
          Labels that can't be removed, as `union` returns them.
        """
        root = self.find(label)
        old = self._factors.setdefault(root, factors)
        return [] if old is factors else self._union_factors(old, factors)

    def _union(self, i: int, j: int) -> list[np.ndarray]:
        i, j = self.find(i), self.find(j)
        if i == j:
            return []
        root, child = min(i, j), max(i, j)
        self._parent[child] = root
        factors = self._factors.pop(child, None)
        return [] if factors is None else self.set_factors(root, factors)

    def _union_factors(self, a: Factors, b: Factors) -> list[np.ndarray]:
        if len(a) != len(b):
            a, b = (tuple(atom for label in f for atom in self.atoms(label)) for f in (a, b))
        if len(a) != len(b):
            return [np.array([*a, *b])]
        return [conflict for i, j in zip(a, b, strict=True) for conflict in self._union(i, j)]
