"""Distributions of users: wrong fields, and functions that return no pools for the leaves."""

import dataclasses
import pickle
from fractions import Fraction

import numpy as np
import pytest

import jaxprune
from bad_input import assert_error, case, params
from helpers import assert_says
from jaxprune import Pools

assign_uniform = jaxprune.uniform.assign


def mine(**fields):
    return jaxprune.Distribution("mine", **{"assign": assign_uniform} | fields)


def planned(assign, tree=None, **options):
    """A plan by a distribution that assigns so; params() has one pruned leaf, of 8 weights."""
    tree = params() if tree is None else tree
    return jaxprune.plan(tree, 0.5, distribution=mine(assign=assign), **options)


def returning(pool_of=(0,), n_units=(8,), n_drop=((4,),)):
    """An assign that returns these pools; the right ones are the default."""
    n_drop = np.array(n_drop) if isinstance(n_drop, tuple) else n_drop
    return lambda leaves, floor: Pools(pool_of, n_units, n_drop)


def planned_at(targets, assign, **arguments):
    """The plan of a schedule with one of these sparsities at each step."""
    schedule = jaxprune.SparsitySchedule(0, len(targets) - 1, 1, targets, **arguments)
    regrow = "zero" if arguments else False
    return jaxprune.plan(params(), schedule, regrow=regrow, distribution=mine(assign=assign))


def wrong(name, assign, kind, *parts):
    """A case of a plan by a distribution that assigns so."""
    return case(name, lambda: planned(assign), kind, ("distribution mine: assign", *parts))


DISTRIBUTIONS = [
    case("floor", lambda: mine(floor=2), ValueError, ("mine: floor", "2", "0.02")),
    case("floor_text", lambda: mine(floor="0.1"), TypeError, ("mine: floor", "'0.1'", "float")),
    case(
        "norm", lambda: mine(normalized="l3"), TypeError, ("mine: normalized", "'l3'", "Pass 'l2'")
    ),
    case("norm_number", lambda: mine(normalized=1), TypeError, ("mine: normalized", "1", "'l2'")),
    case(
        "no_assign",
        lambda: mine(assign=None),
        TypeError,
        ("mine: assign", "None", "jaxprune.uniform.assign"),
    ),
    case(
        "swapped",
        lambda: jaxprune.Distribution(assign_uniform, "mine"),
        TypeError,
        ("Distribution: name", "the function _uniform", "Swap the first two arguments:"),
    ),
    case(
        "name_number",
        lambda: jaxprune.Distribution(3, assign_uniform),
        TypeError,
        ("Distribution: name", "3", 'Distribution("mine", assign)'),
    ),
    case(
        "assign_of_one_argument",
        lambda: mine(assign=lambda leaves: None),
        TypeError,
        ("mine: assign", "(leaves, floor)", "jaxprune.uniform.assign"),
    ),
    case(
        "assign_unhashable",
        lambda: mine(assign=Unhashable()),
        TypeError,
        ("mine: assign", "cannot be hashed", "lambda leaves, floor: assign(leaves, floor)"),
    ),
    case("pooled", lambda: mine(pooled="no"), TypeError, ("mine: pooled", "'no'", "True or False")),
    case(
        "whole_leaves",
        lambda: mine(needs_whole_leaves=0),
        TypeError,
        ("mine: needs_whole_leaves", "0", "True or False"),
    ),
    case(
        "stacked",
        lambda: mine(stacked={"w": 0}),
        TypeError,
        ("mine: stacked", "{'w': 0}", "jaxprune.per_slice("),
    ),
    case(
        "stacked_along_a_name",
        lambda: mine(stacked=(("w", "a"),)),
        TypeError,
        ("mine: the axis of 'w'", "'a'", "int"),
    ),
    case(
        "stacked_regex",
        lambda: mine(stacked=(("*w", 0),)),
        ValueError,
        ("mine: stacked", "'*w'", '".*kernel"'),
    ),
    wrong("none", lambda leaves, floor: None, TypeError, "None", "Pools(pool_of"),
    wrong("counts", lambda leaves, floor: [4], TypeError, "[4]", "Pools(pool_of"),
    wrong("pool_of", returning(pool_of=None), TypeError, "pool_of=None", "tuple of ints"),
    wrong("units", returning(n_units=(8.0,)), TypeError, "n_units=(8.0,)", "tuple of ints"),
    wrong(
        "two_for_one",
        returning(pool_of=(0, 0)),
        ValueError,
        ("2 numbers", "1 leaf"),
        "the pool of each leaf",
    ),
    wrong("no_such_pool", returning(pool_of=(1,)), ValueError, "a pool 1", "from 0"),
    wrong(
        "other_units",
        returning(n_units=(9,)),
        ValueError,
        ("n_units[0]=9", "8 units"),
        "the sum of their n_units",
    ),
    wrong("drop_list", returning(n_drop=[[4]]), TypeError, "n_drop=[[4]]", "np.int64"),
    wrong("drop_half", returning(n_drop=((4.5,),)), TypeError, "array([[4.5]])", "np.int64"),
    wrong("drop_flat", returning(n_drop=(4,)), ValueError, "shape (1,)", "shape (1, 1)"),
    wrong("drop_more", returning(n_drop=((9,),)), ValueError, "n_drop[0, 0]=9", "from 0 to 8"),
    wrong("drop_less", returning(n_drop=((-1,),)), ValueError, "n_drop[0, 0]=-1", "from 0 to 8"),
    case(
        "drop_of_each_fire_alone",
        lambda: planned_at((0.5, 0.75), returning(n_drop=((4,), (2,)))),
        ValueError,
        ("distribution mine: assign", "n_drop[1, 0]=2 after n_drop[0, 0]=4", "earlier fires"),
    ),
    case(
        "drop_in_unequal_groups",
        lambda: planned(returning(n_drop=((3,),)), structure=jaxprune.NM(1, 2)),
        ValueError,
        ("w: distribution mine", "4 groups", "leaf.n_groups"),
    ),
]


class Unhashable:
    __hash__ = None

    def __call__(self, leaves, floor):
        return assign_uniform(leaves, floor)


@pytest.mark.parametrize("call, kind, parts", DISTRIBUTIONS)
def test_an_error_about_a_distribution_names_it_and_says_what_to_write(call, kind, parts):
    assert_error(call, kind, parts)


def test_the_right_pools_are_accepted():
    assert {leaf.path: leaf.n_zero for leaf in planned(returning()).leaves}["w"] == 4


def test_a_pool_may_have_fewer_zeros_where_a_target_falls():
    report = planned_at((0.75, 0.5), returning(n_drop=((6,), (4,))), may_fall=True)
    assert {leaf.path: leaf.n_zero for leaf in report.leaves}["w"] == 4


def test_a_floor_is_exact_whatever_number_it_was():
    for floor in (0.1, np.float32(0.1), Fraction(1, 10)):
        assert mine(floor=floor).floor == Fraction(1, 10)
    copy = pickle.loads(pickle.dumps(mine(floor=0.1)))
    assert dataclasses.replace(copy, name="other").floor == Fraction(1, 10)


def test_an_error_inside_assign_names_the_distribution():
    def broken(leaves, floor):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken") as caught:
        planned(broken)
    assert_says(" ".join(caught.value.__notes__), "distribution mine", "1 leaf")
