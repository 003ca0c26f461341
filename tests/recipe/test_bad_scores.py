"""Scores that do not return one number for each weight, or that lack their gradients."""

import functools

import jax.numpy as jnp
import pytest

import jaxprune
from bad_input import ADAM, HALF, assert_error, case, init, params, update
from helpers import assert_says, says


def summing(increment):
    """The start of pruning by the sum of these increments."""
    return lambda: init(params(), score=jaxprune.Accumulated("taylor", increment), inner=ADAM)


def total(tree):
    return jnp.sum(tree["w"])


def once(score):
    return jaxprune.prune_params(params(), 0.5, score=score)


def table(score):
    return jaxprune.sensitivity(total, params(), (0.5,), score=score)


def first_gradient(params, grads, key):
    return grads[0] * jnp.ones_like(params)


EXAMPLE = "lambda params, grads: (params * grads)**2"
HOW = ("inner=optimizer", "grads=jax.grad(loss)(params)")

SCORES = [
    case(
        "the_name_of_a_sum_is_a_number",
        lambda: jaxprune.Accumulated(3, lambda params, grads: params),
        TypeError,
        ("Accumulated: name", "3", 'Accumulated("taylor"'),
    ),
    case(
        "increments_that_are_one_number",
        summing(lambda params, grads: jnp.sum(params * grads)),
        ValueError,
        ("w:", ("taylor", "float32 of shape ()", "(2, 4)"), EXAMPLE),
    ),
    case(
        "increments_of_columns",
        summing(lambda params, grads: jnp.sum(params * grads, 0)),
        ValueError,
        ("w:", ("taylor", "float32 of shape (4,)", "(2, 4)"), EXAMPLE),
    ),
    case(
        "no_increments",
        summing(lambda params, grads: None),
        ValueError,
        ("w:", ("taylor", "NoneType"), EXAMPLE),
    ),
    case(
        "increments_that_are_a_float",
        summing(lambda params, grads: 1.0),
        ValueError,
        ("w:", ("taylor", "float32 of shape ()"), EXAMPLE),
    ),
    case(
        "complex_increments",
        summing(lambda params, grads: params * 1j),
        ValueError,
        ("w:", ("taylor", "complex64"), EXAMPLE),
    ),
    case(
        "integer_increments",
        summing(lambda params, grads: (params > grads).astype(jnp.int32)),
        ValueError,
        ("w:", ("taylor", "int32 of shape (2, 4)"), EXAMPLE),
    ),
    case(
        "increments_from_three_arguments",
        summing(lambda params, grads, key: params),
        TypeError,
        ("score: taylor", ("(params, grads) of w", "'key'"), EXAMPLE),
    ),
    case(
        "increments_from_one_argument",
        summing(lambda params: params),
        TypeError,
        ("score: taylor", ("(params, grads) of w", "1 positional argument"), EXAMPLE),
    ),
    case(
        "increments_by_numpy",
        summing(lambda params, grads: float(params[0, 0]) * grads),
        TypeError,
        ("score: taylor", "(params, grads) of w", EXAMPLE),
    ),
    case(
        "a_sum_without_a_hash",
        lambda: init(params(), score=jaxprune.Accumulated("taylor", Unhashable())),
        TypeError,
        ("score: taylor", "cannot be hashed", "Accumulated(name, lambda params, grads:"),
    ),
    case(
        "a_class_with_increments",
        lambda: jaxprune.prune(HALF, score=Unhashable),
        TypeError,
        ("score", "the class Unhashable", "Unhashable(...)"),
    ),
    case(
        "gradients_as_scores_without_gradients",
        lambda: once(lambda w, g, k: g),
        ValueError,
        ("w:", "'<lambda>' needs gradients", HOW),
    ),
    case(
        "products_with_gradients_without_gradients",
        lambda: once(lambda w, g, k: jnp.abs(w * g)),
        ValueError,
        ("w:", "'<lambda>' needs gradients", HOW),
    ),
    case(
        "parts_of_gradients_without_gradients",
        lambda: once(first_gradient),
        ValueError,
        ("w:", "'first_gradient' needs gradients", HOW),
    ),
    case(
        "a_table_by_gradients_without_gradients",
        lambda: table(lambda w, g, k: g),
        ValueError,
        ("w:", "'<lambda>' needs gradients", HOW),
    ),
    case(
        "an_update_by_gradients_without_gradients",
        lambda: update(score=lambda w, g, k: g),
        ValueError,
        ("w:", "'<lambda>' needs gradients", HOW),
    ),
    case(
        "fewer_scores_without_gradients",
        lambda: once(lambda w, g, k: w if g is not None else w[0]),
        ValueError,
        ("w:", "float32 of shape (4,)", "jaxprune.magnitude"),
    ),
    case(
        "a_table_by_saliency_without_gradients",
        lambda: table(jaxprune.saliency),
        ValueError,
        ("sensitivity: score=saliency", "grads=None", "sensitivity(loss, params, sparsities,"),
    ),
    case(
        "a_table_by_movement",
        lambda: table(jaxprune.movement),
        ValueError,
        ("sensitivity: score movement", "there are none here", "Use jaxprune.prune"),
    ),
    case(
        "a_part_of_saliency_without_gradients",
        lambda: once(reading_gradients(functools.partial(jaxprune.saliency, key=None))),
        ValueError,
        ("prune_params: score=", "grads=None", "grads=jax.grad(loss)(params)"),
    ),
]


class Unhashable:
    """An increment that no cache can hold."""

    __hash__ = None

    def __call__(self, params, grads):
        return params * grads

    def increment(self, params, grads):
        return params * grads


def reading_gradients(score):
    score.reads_grads = True
    return score


@pytest.mark.parametrize("call, kind, parts", SCORES)
def test_an_error_about_a_score_says_which_leaf_and_what_to_write(call, kind, parts):
    assert_error(call, kind, parts)


def test_an_error_of_a_score_names_the_leaf():
    def broken(params, grads, key=None):
        raise RuntimeError("broken")

    for score, name in ((jaxprune.Accumulated("taylor", broken), "taylor"), (broken, "broken")):
        with pytest.raises(RuntimeError, match="broken") as caught:
            init(params(), score=score, inner=ADAM)
        assert_says(" ".join(caught.value.__notes__), "w:", name)


def test_gradients_from_elsewhere_are_enough_for_a_score_that_returns_them():
    tx = jaxprune.prune(HALF, score=lambda w, g, k: g)
    tree = params()
    _, state = tx.update(tree, tx.init(tree), tree, grads=tree)
    assert jaxprune.get_masks(state)["w"].astype(int).tolist() == [[0] * 4, [1] * 4]


def test_another_name_for_movement_is_refused_where_it_would_be_squared():
    score = jaxprune.Accumulated("mine", jaxprune.movement.increment)
    with pytest.raises(ValueError, match=says("score: mine is negative", "Channel(norm=1)")):
        jaxprune.plan(
            {"fc": jnp.ones((4, 6)), "bias": jnp.ones(6)},
            jaxprune.prune(
                jaxprune.one_shot_schedule(0.5), structure=jaxprune.Channel(), score=score
            ),
        )
