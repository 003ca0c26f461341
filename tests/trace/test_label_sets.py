"""Sets of labels with factors: all at once they are what they are one by one."""

import numpy as np
from hypothesis import given, strategies as st

from jaxprune._trace.label_sets import LabelSets


@given(
    unions=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12),
    columns=st.booleans(),
)
def test_roots_and_atoms_of_all_labels_are_those_of_each(unions, columns):
    sets = LabelSets()
    for i, j in unions:
        sets.union(np.array([i]), np.array([j]))
    for cell in range(12):  # labels 12 to 14 are rows of (3, 4), labels 15 to 18 columns
        sets.set_factors(cell, (12 + cell // 4, 15 + cell % 4) if columns else (12 + cell // 4,))
    assert sets.roots(19).tolist() == [sets.find(label) for label in range(19)]
    rows = [[atom for atom in row if atom >= 0] for row in sets.atoms_of_all(19).tolist()]
    assert rows == [list(sets.atoms(label)) for label in range(19)]


def test_an_index_goes_when_one_of_its_factors_goes():
    sets = LabelSets()
    for cell in range(6):
        sets.set_factors(cell, (6 + cell // 3, 8 + cell % 3))  # (2, 3)
    assert sets.atoms(4) == (7, 9)
    sets.union(np.array([4]), np.array([20]))
    assert sets.atoms(20) == (7, 9)
    assert sets.set_factors(20, (30, 31)) == []
    assert sets.find(30) == 7
    assert sets.find(31) == 9


def test_factors_that_do_not_correspond_are_a_conflict():
    sets = LabelSets()
    sets.set_factors(0, (1, 2))
    (conflict,) = sets.set_factors(0, (3, 4, 5))
    assert conflict.tolist() == [1, 2, 3, 4, 5]
    sets = LabelSets()
    sets.set_factors(0, (1, 2))
    sets.set_factors(2, (6, 7))  # a factor that is split again
    assert sets.set_factors(0, (3, 4, 5)) == []
    assert [sets.find(label) for label in (3, 4, 5)] == [1, 4, 5]
    assert [sets.find(label) for label in (6, 7)] == [4, 5]


def test_a_set_has_the_factors_of_every_label_in_it():
    sets = LabelSets()
    sets.set_factors(5, (1, 2))
    assert sets.union(np.array([3]), np.array([5])) == []
    assert sets.atoms(3) == sets.atoms(5) == (1, 2)
