"""A budget is one hashable value, and structures and distributions state what they can do."""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import says
from jaxprune._recipe import budget as budget_lib
from jaxprune._recipe.budget import Recipe
from jaxprune._recipe.traits import Traits, traits_of

HALF = (Fraction(1, 2),)
PATHS = ("a/kernel", "b/kernel")


def leaves(*shapes, dtype=jnp.float32):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]


def made(recipe=None, paths=PATHS, shapes=((4, 4), (2, 3)), dtype=jnp.float32, n_parts=1):
    """A budget that is computed anew."""
    budget_lib._budget.cache_clear()
    recipe = Recipe.of(HALF) if recipe is None else recipe
    return recipe.budget(paths, leaves(*shapes, dtype=dtype), n_parts)


def test_budgets_made_from_the_same_values_are_equal():
    first, second = made(), made()
    assert first is not second
    assert first == second
    assert hash(first) == hash(second)
    assert len({first, second}) == 1
    assert first != "budget"


@pytest.mark.parametrize(
    "other",
    (
        dict(recipe=Recipe.of((Fraction(1, 4),))),
        dict(recipe=Recipe.of(HALF, exclude="b/.*")),
        dict(paths=("a/kernel", "c/kernel")),
        dict(shapes=((4, 4), (3, 2))),
        dict(dtype=jnp.bfloat16),
        dict(n_parts=2),
    ),
    ids=lambda other: next(iter(other)),
)
def test_budgets_made_from_other_values_differ(other):
    assert made() != made(**other)


def test_a_budget_is_asked_for_once_and_cannot_change():
    recipe = Recipe.of(HALF)
    budget = made(recipe)
    assert recipe.budget(PATHS, leaves((4, 4), (2, 3))) is budget
    assert budget.paths == PATHS
    with pytest.raises(ValueError, match="read-only"):
        budget.pools.n_drop[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.chosen = ()


@pytest.mark.skip_in("disable_jit", reason="nothing is compiled")
def test_an_equal_budget_compiles_nothing_anew():
    def count(budget):
        calls.append(budget)
        return jnp.zeros(())

    calls = []
    compiled = jax.jit(count, static_argnums=0)
    compiled(made())
    compiled(made())
    assert len(calls) == 1


@dataclasses.dataclass(frozen=True)
class Rows:
    """A user's structure with the five methods alone: a unit is a row of the leaf."""

    def n_units(self, shape):
        return shape[0]

    def n_groups(self, shape):
        del shape
        return 1

    def unit_scores(self, scores):
        return scores.reshape(scores.shape[0], -1).max(1)

    def unit_mask(self, mask):
        return mask.reshape(mask.shape[0], -1)[:, 0]

    def expand(self, unit_mask, shape):
        return jnp.broadcast_to(unit_mask.reshape(-1, *[1] * (len(shape) - 1)), shape)


@dataclasses.dataclass(frozen=True)
class Weights(jaxprune.Unstructured):
    """A user's structure that says that each weight is a unit of its own."""


@dataclasses.dataclass(frozen=True)
class Pairs(jaxprune.NM):
    """A user's structure that decides within groups by itself: it keeps 1 of every 2."""

    n: int = 1
    m: int = 2


@dataclasses.dataclass(frozen=True)
class SharedRows(Rows):
    """A user's structure whose rows are kept or dropped in all leaves together."""

    coupled_group: str = "rows"


def test_a_structure_that_says_nothing_gets_the_defaults():
    assert traits_of(Rows()) == Traits()
    assert traits_of(Rows()).coupled_group is None


def rising(shape):
    return jnp.arange(1, 1 + np.prod(shape), dtype=jnp.float32).reshape(shape)


def test_a_users_structure_is_pruned_like_a_built_in_one():
    params = {"w": rising((4, 3)), "v": rising((2, 2, 2))}
    masks = jaxprune.prune_params(params, 0.5, structure=Rows())[1]
    assert masks["w"].tolist() == [[False] * 3, [False] * 3, [True] * 3, [True] * 3]
    assert masks["v"][:, 0, 0].tolist() == [False, True]
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), structure=Rows())
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for path, mask in jaxprune.get_masks(state).items():
        np.testing.assert_array_equal(mask, masks[path])


def test_a_users_structure_may_decide_elementwise_in_groups_or_over_leaves():
    params = {"w": rising((4, 2)), "v": -rising((4, 3))}
    expected = jaxprune.prune_params(params, 0.5)[1]
    elementwise = jaxprune.prune_params(params, 0.5, structure=Weights())[1]
    np.testing.assert_array_equal(elementwise["v"], expected["v"])
    pairs = jaxprune.prune_params(params, 0.5, structure=Pairs())[1]
    assert pairs["w"].tolist() == [[False] * 2, [True] * 2] * 2
    shared = jaxprune.prune_params(params, 0.5, structure=SharedRows())[1]
    assert shared["w"][:, 0].tolist() == shared["v"][:, 0].tolist() == [False, False, True, True]


def test_a_structure_with_one_final_sparsity_refuses_others():
    parts = "w:", "Pairs(n=1, m=2", "0.9", "0.5", "overrides={'w': 0.5}"
    with pytest.raises(ValueError, match=says(*parts)):
        jaxprune.plan({"w": jnp.ones((4, 4))}, 0.9, structure=Pairs())


def test_a_structure_must_be_hashable():
    class Unhashable(Rows):
        __hash__ = None

    with pytest.raises(TypeError, match=says("structure", "frozen dataclass")):
        jaxprune.plan({"w": jnp.ones((4, 4))}, 0.5, structure=Unhashable())


def test_a_users_pooled_distribution_is_known_by_its_attribute():
    pooled = jaxprune.Distribution("mine", jaxprune.global_pool.assign, pooled=True)
    with pytest.raises(ValueError, match=says("rigl", "mine", "distribution=jaxprune.erk")):
        jaxprune.rigl(0.5, 10, inner=optax.sgd(0.1), distribution=pooled)
    with pytest.raises(
        ValueError, match=says("per_slice:", "mine", "pass the distribution itself")
    ):
        jaxprune.per_slice(".*", pooled)
    assert jaxprune.min_density(0.1, pooled).pooled


def test_a_rule_behind_another_is_unused_whatever_it_decides():
    rules = {".*kernel": jaxprune.Channel(), "a/kernel": jaxprune.Unstructured()}
    recipe = Recipe.of(HALF, structure=rules, overrides={".*": 0.5, "a/.*": 0.25, "z": 0.25})
    structure, *overrides = sorted(made(recipe).unused, reverse=True)
    assert structure.startswith("structure: 'a/kernel'")
    assert [line.split()[1] for line in overrides] == ["'z'", "'a/.*'"]


FALLING = jaxprune.SparsitySchedule(
    0, 4, 2, (Fraction(9, 10), Fraction(1, 2), Fraction(1, 4)), may_fall=True
)


def test_an_override_of_a_schedule_that_falls_never_drops_all():
    """It scales every target: 0.5 for one that ends at 0.25 made 1.8 of 0.9, and emptied leaves."""
    params = {"a": jnp.ones((10, 10)), "b": jnp.ones((10, 10)), "bias": jnp.ones(4)}
    prune = lambda override: jaxprune.prune(FALLING, regrow="zero", overrides={"a": override})
    with pytest.raises(ValueError, match=says("a:", "0.5", "0.25", "0.9", "1.8", "below 0.278")):
        prune(0.5).init(params)
    state = prune(0.27).init(params)
    kept = []
    for _ in range(5):
        _, state = prune(0.27).update(params, state, params)
        kept.append(int(state.masks["a"].sum()))
    assert kept == [3, 3, 46, 46, 73]
    with pytest.raises(ValueError, match=says("a:", "below 0.278")):
        jaxprune.plan(params, [FALLING, FALLING], regrow="zero", overrides={"a": 0.5})


def test_a_leaf_that_would_be_emptied_before_the_last_fire_is_refused():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((10, 10)), "bias": jnp.ones(4)}
    with pytest.raises(ValueError, match=says("a:", "(2, 2)", "all of its 4 weights", "0.9")):
        jaxprune.prune(FALLING, regrow="zero").init(params)
    jaxprune.prune(FALLING, regrow="zero", exclude="a").init(params)
