"""Wrong arguments of `prune`, `plan`, `prune_params` and `masks_from_params`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from bad_input import ADAM, HALF, OPTAX_SCHEDULE, assert_error, case, cubic, params, traced, update
from helpers import says


@dataclasses.dataclass
class Unhashable:
    """A callable that compares by value and therefore has no hash."""

    floor: float = 0.0

    def __call__(self, *arguments):
        return True


def injected(factory, argument):
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        return optax.inject_hyperparams(factory)(argument).init(params())


ARGUMENTS = [
    case(
        "schedule_number",
        lambda: jaxprune.prune(0.9),
        TypeError,
        ("schedule", "0.9", ("one_shot_schedule(", "cubic_schedule(")),
    ),
    case(
        "schedule_array",
        lambda: jaxprune.prune(jnp.float32(0.5)),
        TypeError,
        ("schedule", "Array(0.5, dtype=float32)", ("one_shot_schedule(", "cubic_schedule(")),
    ),
    case(
        "schedule_is_an_optimizer",
        lambda: jaxprune.prune(ADAM),
        TypeError,
        ("schedule", "GradientTransformationExtraArgs", "inner=optimizer"),
    ),
    case(
        "schedule_is_an_optax_schedule",
        lambda: jaxprune.prune(OPTAX_SCHEDULE),
        TypeError,
        ("schedule", repr(OPTAX_SCHEDULE), "jaxprune.from_optax_schedule("),
    ),
    case(
        "schedule_none",
        lambda: jaxprune.prune(None),
        TypeError,
        ("schedule", "None", "jaxprune.cubic_schedule("),
    ),
    case(
        "schedule_is_the_params",
        lambda: jaxprune.prune(params()),
        TypeError,
        ("schedule", "dict", "jaxprune.cubic_schedule("),
    ),
    case(
        "inner_number",
        lambda: jaxprune.prune(HALF, inner=3e-4),
        TypeError,
        ("inner", "0.0003", "optax.adamw(3e-4)"),
    ),
    case(
        "inner_not_called",
        lambda: jaxprune.prune(HALF, inner=optax.adamw),
        TypeError,
        ("inner", repr(optax.adamw), "optax.adamw(3e-4)"),
    ),
    case(
        "inner_is_the_schedule",
        lambda: jaxprune.prune(HALF, inner=cubic()),
        TypeError,
        ("inner", "SparsitySchedule", "optax.adamw(3e-4)"),
    ),
    case(
        "include_number",
        lambda: jaxprune.prune(HALF, include=5),
        TypeError,
        ("include", "5", "regex"),
    ),
    case(
        "include_set",
        lambda: jaxprune.prune(HALF, include={"w"}),
        TypeError,
        ("include", "{'w'}", "regex"),
    ),
    case(
        "include_bytes",
        lambda: jaxprune.prune(HALF, include=b"w"),
        TypeError,
        ("include", "b'w'", "regex"),
    ),
    case(
        "include_none_of_them",
        lambda: jaxprune.prune(HALF, include=()),
        ValueError,
        ("include", None, "default"),
    ),
    case(
        "include_glob",
        lambda: jaxprune.prune(HALF, include="*kernel"),
        ValueError,
        ("include", "'*kernel'", '".*kernel"'),
    ),
    case(
        "include_unhashable",
        lambda: jaxprune.prune(HALF, include=Unhashable()),
        TypeError,
        ("include", "Unhashable(floor=0.0)", "lambda path, leaf: rule(path, leaf)"),
    ),
    case(
        "exclude_number",
        lambda: jaxprune.prune(HALF, exclude=5),
        TypeError,
        ("exclude", "5", "regex"),
    ),
    case(
        "exclude_holds_a_number",
        lambda: jaxprune.prune(HALF, exclude=["b", 5]),
        TypeError,
        ("exclude", "5", "regex"),
    ),
    case(
        "exclude_holds_a_list",
        lambda: jaxprune.prune(HALF, exclude=("b", ["w"])),
        TypeError,
        ("exclude", "['w']", "regex"),
    ),
    case(
        "exclude_open_bracket",
        lambda: jaxprune.prune(HALF, exclude=["b", "("]),
        ValueError,
        ("exclude", ("'('", "missing )"), '".*kernel"'),
    ),
    case(
        "overrides_pairs",
        lambda: jaxprune.prune(HALF, overrides=[("w", 0.5)]),
        TypeError,
        ("overrides", "[('w', 0.5)]", '{".*head/kernel": 0.5}'),
    ),
    case(
        "overrides_number",
        lambda: jaxprune.prune(HALF, overrides=0.5),
        TypeError,
        ("overrides", "0.5", '{".*head/kernel": 0.5}'),
    ),
    case(
        "overrides_key",
        lambda: jaxprune.prune(HALF, overrides={5: 0.5}),
        TypeError,
        ("overrides", "5", "regex"),
    ),
    case(
        "overrides_glob",
        lambda: jaxprune.prune(HALF, overrides={"*kernel": 0.5}),
        ValueError,
        ("overrides", "'*kernel'", '".*kernel"'),
    ),
    case(
        "overrides_of_a_schedule_that_ends_at_zero",
        lambda: jaxprune.prune(jaxprune.one_shot_schedule(0.0), overrides={"w": 0.5}),
        ValueError,
        ("overrides", "0", "final_sparsity"),
    ),
    case(
        "distribution_string",
        lambda: jaxprune.prune(HALF, distribution="uniform"),
        TypeError,
        ("distribution", "'uniform'", "jaxprune.uniform"),
    ),
    case(
        "structure_none",
        lambda: jaxprune.prune(HALF, structure=None),
        TypeError,
        ("structure", "None", "jaxprune.Unstructured()"),
    ),
    case(
        "structure_not_called",
        lambda: jaxprune.prune(HALF, structure=jaxprune.Unstructured),
        TypeError,
        ("structure", "<class 'jaxprune.Unstructured'>", "jaxprune.Unstructured()"),
    ),
    case(
        "score_string",
        lambda: jaxprune.prune(HALF, score="magnitude"),
        TypeError,
        ("score", "'magnitude'", "jaxprune.magnitude"),
    ),
    case(
        "score_unhashable",
        lambda: jaxprune.prune(HALF, score=Unhashable()),
        TypeError,
        ("score", "Unhashable(floor=0.0)", "lambda params, grads, key: score(params, grads, key)"),
    ),
    case(
        "inject_hyperparams",
        lambda: injected(jaxprune.prune, HALF),
        TypeError,
        ("score", "Array(0, dtype=int32)", ("jaxprune.magnitude", "static_args=('score',)")),
    ),
    case(
        "inject_hyperparams_of_a_sparsity",
        lambda: injected(lambda s: jaxprune.prune(cubic(s)), 0.5),
        TypeError,
        ("final_sparsity", "Array(0.5, dtype=float32)", ("a Python float", "static_args")),
    ),
    case(
        "plan_percent",
        lambda: jaxprune.plan(params(), 90),
        ValueError,
        ("schedule", "90", "Did you mean 0.9?"),
    ),
    case(
        "plan_none",
        lambda: jaxprune.plan(params(), None),
        TypeError,
        ("schedule", "None", "jaxprune.cubic_schedule("),
    ),
    case(
        "plan_optax_schedule",
        lambda: jaxprune.plan(params(), OPTAX_SCHEDULE),
        TypeError,
        ("schedule", repr(OPTAX_SCHEDULE), "jaxprune.from_optax_schedule("),
    ),
    case(
        "plan_swapped",
        lambda: jaxprune.plan(HALF, params()),
        TypeError,
        ("schedule", "dict", "jaxprune.cubic_schedule("),
    ),
    case(
        "plan_include",
        lambda: jaxprune.plan(params(), HALF, include=5),
        TypeError,
        ("include", "5", "regex"),
    ),
    case(
        "prune_params_swapped",
        lambda: jaxprune.prune_params(0.5, params()),
        TypeError,
        ("sparsity", "dict", "[0, 1)"),
    ),
    case(
        "prune_params_traced_sparsity",
        lambda: traced(lambda s: jaxprune.prune_params(params(), s)),
        TypeError,
        ("sparsity", "traced", ("a Python float", "static_args")),
    ),
    case(
        "prune_params_exclude",
        lambda: jaxprune.prune_params(params(), 0.5, exclude=5),
        TypeError,
        ("exclude", "5", "regex"),
    ),
    case(
        "masks_from_params_include",
        lambda: jaxprune.masks_from_params(params(), include="*"),
        ValueError,
        ("include", "'*'", '".*kernel"'),
    ),
    case(
        "masks_from_params_exclude",
        lambda: jaxprune.masks_from_params(params(), exclude=5),
        TypeError,
        ("exclude", "5", "regex"),
    ),
    case(
        "schedule_not_called",
        lambda: jaxprune.prune(jaxprune.cubic_schedule),
        TypeError,
        ("schedule", repr(jaxprune.cubic_schedule), "jaxprune.cubic_schedule(0.9, ...)"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", ARGUMENTS)
def test_an_error_in_an_argument_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)


@pytest.mark.parametrize("form", (lambda tx: tx, lambda tx: optax.chain(tx, optax.identity())))
def test_inject_hyperparams_works_with_the_argument_that_its_error_names(form):
    def run(tx):
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            state = tx.init(params())
            return tx.update(params(), state, params())

    def factory(schedule, inner, score=jaxprune.magnitude):
        return form(jaxprune.prune(schedule, inner=inner, score=score))

    injected = optax.inject_hyperparams(factory, static_args=("score",))(HALF, optax.sgd(0.1))
    updates, state = run(injected)
    expected, expected_state = run(form(jaxprune.prune(HALF, inner=optax.sgd(0.1))))
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    masks = jaxprune.get_masks(state)
    jax.tree.map(np.testing.assert_array_equal, masks, jaxprune.get_masks(expected_state))
    direct = optax.inject_hyperparams(jaxprune.prune, static_args=("score",))(HALF)
    jax.tree.map(np.testing.assert_array_equal, jaxprune.get_masks(run(direct)[1]), masks)


def test_the_error_for_a_score_of_one_argument_names_all_three():
    with pytest.raises(TypeError, match=says("score", "(params, grads, key)", "w:")):
        update(score=lambda params: jnp.abs(params))


def test_exclude_none_excludes_nothing():
    assert str(jaxprune.plan(params(), 0.5, exclude=None)) == str(jaxprune.plan(params(), 0.5))
