"""Wrong arguments of `prune`, `plan`, `prune_params` and `masks_from_params`."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from bad_input import (
    ADAM,
    HALF,
    OPTAX_SCHEDULE,
    assert_error,
    case,
    cubic,
    init,
    params,
    traced,
    update,
)
from helpers import ones, says

SHAPE = jax.ShapeDtypeStruct((2, 2), jnp.float32)


@dataclasses.dataclass
class Unhashable:
    """A callable that compares by value and therefore has no hash."""

    floor: float = 0.0

    def __call__(self, *arguments):
        return True


def make_optimizer():
    return jaxprune.prune(HALF)


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
        ("schedule", "the function schedule", "jaxprune.from_optax_schedule("),
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
        ("inner", "the function adamw", "Call it: adamw(...)"),
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
        "include_tree_of_bools",
        lambda: jaxprune.prune(HALF, include={"w": True}),
        TypeError,
        ("include", "{'w': True}", ("A tree of bools is no rule", "'.*kernel'")),
    ),
    case(
        "exclude_compiled",
        lambda: jaxprune.prune(HALF, exclude=re.compile("head/.*")),
        TypeError,
        ("exclude", "re.compile('head/.*')", "Pass its text: 'head/.*'"),
    ),
    case(
        "exclude_compiled_among_others",
        lambda: jaxprune.prune(HALF, exclude=("w", re.compile("head/.*"))),
        TypeError,
        ("exclude", "re.compile('head/.*')", "Pass its text: 'head/.*'"),
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
        ("structure", "the class Unstructured", "jaxprune.Unstructured(...)"),
    ),
    case(
        "structure_of_two_numbers",
        lambda: jaxprune.prune(HALF, structure=(2, 4)),
        TypeError,
        ("structure", "(2, 4)", "jaxprune.NM(2, 4)"),
    ),
    case(
        "structure_of_two_numbers_by_rule",
        lambda: jaxprune.prune(HALF, structure={"w": [1, 4]}),
        TypeError,
        ("structure['w']", "[1, 4]", "jaxprune.NM(1, 4)"),
    ),
    case(
        "score_wanda",
        lambda: jaxprune.prune_params(params(), 0.5, score=jaxprune.wanda),
        TypeError,
        ("score", "jaxprune.wanda is not a score", "jaxprune.wanda(params, inputs, sparsity=0.5)"),
    ),
    case(
        "score_name_of_a_method",
        lambda: jaxprune.prune(HALF, score="SparseGPT"),
        TypeError,
        ("score", "'SparseGPT'", ("jaxprune.sparsegpt(params, inputs,", "jaxprune.layer_inputs")),
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
        ("schedule", "the function schedule", "jaxprune.from_optax_schedule("),
    ),
    case(
        "plan_of_an_optimizer_in_place_of_params",
        lambda: jaxprune.plan(jaxprune.prune(HALF), params()),
        TypeError,
        ("plan: params", ("GradientTransformationExtraArgs", "dict"), ("Swap", "plan(params, tx)")),
    ),
    case(
        "plan_uncalled_optimizer",
        lambda: jaxprune.plan(params(), optax.adam),
        TypeError,
        ("schedule", "the function adam", "Call it: plan(params, optax.adam(...))"),
    ),
    case(
        "plan_uncalled_rigl",
        lambda: jaxprune.plan(params(), jaxprune.rigl),
        TypeError,
        ("schedule", "the function rigl", "Call it: plan(params, jaxprune.rigl(...))"),
    ),
    case(
        "plan_uncalled_function_of_the_user",
        lambda: jaxprune.plan(params(), make_optimizer),
        TypeError,
        ("schedule", "the function make_optimizer", "Call it: plan(params, make_optimizer(...))"),
    ),
    case(
        "prune_uncalled_optimizer",
        lambda: jaxprune.prune(optax.adam),
        TypeError,
        ("schedule", "the function adam", ("Call it", "inner=optax.adam(...)")),
    ),
    case(
        "plan_swapped_with_a_schedule",
        lambda: jaxprune.plan(HALF, params()),
        TypeError,
        ("plan: params", "dict", ("Swap the arguments", "plan(params, schedule)")),
    ),
    case(
        "rule_that_returns_text",
        lambda: init(params(), include=lambda path, leaf: "no"),
        TypeError,
        ("b:", ("must return True or False", "'no'"), "path.endswith('kernel')"),
    ),
    case(
        "rule_that_returns_one",
        lambda: init(params(), exclude=lambda path, leaf: 1),
        TypeError,
        ("b:", ("must return True or False", "1"), "path.endswith('kernel')"),
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
        ("schedule", "the function cubic_schedule", "jaxprune.cubic_schedule(0.9, ...)"),
    ),
    case(
        "optimizer_by_position",
        lambda: jaxprune.prune(HALF, ADAM),
        TypeError,
        ("prune", "GradientTransformationExtraArgs", "inner=optimizer"),
    ),
    case(
        "include_by_position",
        lambda: jaxprune.prune(HALF, "fc/.*"),
        TypeError,
        ("prune", "'fc/.*'", "by name"),
    ),
    case(
        "structure_pattern",
        lambda: jaxprune.prune(HALF, structure="2:4"),
        TypeError,
        ("structure", "'2:4'", "jaxprune.NM(2, 4)"),
    ),
    case(
        "structure_name",
        lambda: jaxprune.prune(HALF, structure="block"),
        TypeError,
        ("structure", "'block'", "jaxprune.Block("),
    ),
    case(
        "structure_name_by_rule",
        lambda: jaxprune.prune(HALF, structure={"w": "channel"}),
        TypeError,
        ("structure['w']", "'channel'", "jaxprune.Channel("),
    ),
    case(
        "distribution_name",
        lambda: jaxprune.prune(HALF, distribution="global"),
        TypeError,
        ("distribution", "'global'", "jaxprune.global_pool"),
    ),
    case(
        "distribution_not_called",
        lambda: jaxprune.prune(HALF, distribution=jaxprune.per_slice),
        TypeError,
        ("distribution", "per_slice", "jaxprune.uniform"),
    ),
    case(
        "score_name",
        lambda: jaxprune.prune(HALF, score="Taylor"),
        TypeError,
        ("score", "'Taylor'", "not its name"),
    ),
    case(
        "exclude_of_one_argument",
        lambda: jaxprune.prune(HALF, exclude=lambda path: True),
        TypeError,
        ("exclude", "<lambda>", "lambda path, leaf:"),
    ),
    case(
        "exclude_class",
        lambda: jaxprune.prune(HALF, exclude=[dict]),
        TypeError,
        ("exclude", "the class dict", "'.*kernel'"),
    ),
    case(
        "exclude_optimizer",
        lambda: jaxprune.prune(HALF, exclude=ADAM),
        TypeError,
        ("exclude", "GradientTransformationExtraArgs", "'.*kernel'"),
    ),
    case(
        "packed_string",
        lambda: jaxprune.prune(HALF, packed="yes"),
        TypeError,
        ("packed", "'yes'", "True or False"),
    ),
    case(
        "regrow_zero", lambda: jaxprune.prune(HALF, regrow=0), ValueError, ("regrow", "0", "False")
    ),
    case(
        "regrow_array",
        lambda: jaxprune.prune(HALF, regrow=ones(2)),
        ValueError,
        ("regrow", "Array([1., 1.], dtype=float32)", "False"),
    ),
    case(
        "seed_key",
        lambda: jaxprune.prune(HALF, seed=jax.random.key(0)),
        TypeError,
        ("seed", "key<fry>", "seed=0"),
    ),
    case(
        "seed_too_large",
        lambda: jaxprune.prune(HALF, seed=2**40),
        ValueError,
        ("seed", "1099511627776", "2**32"),
    ),
    case(
        "seed_negative",
        lambda: jaxprune.prune_params(params(), 0.5, seed=-1),
        ValueError,
        ("seed", "-1", "seed=4294967295"),
    ),
    case(
        "rigl_key",
        lambda: jaxprune.rigl(0.5, 10, inner=ADAM, key=7),
        TypeError,
        ("key", "7", "jax.random.key(7)"),
    ),
    case(
        "rigl_without_optimizer",
        lambda: jaxprune.rigl(0.5, 10, inner=None),
        TypeError,
        ("rigl: inner", "None", "optax.adamw(3e-4)"),
    ),
    case(
        "set_without_optimizer",
        lambda: jaxprune.set_(0.5, 10, inner=None),
        TypeError,
        ("set_: inner", "None", "optax.adamw(3e-4)"),
    ),
    case(
        "static_sparse_without_optimizer",
        lambda: jaxprune.static_sparse(0.5, inner=None),
        TypeError,
        ("static_sparse: inner", "None", "optax.adamw(3e-4)"),
    ),
    case(
        "axis_name_number",
        lambda: jaxprune.prune(HALF, axis_name=0),
        TypeError,
        ("axis_name", "0", 'axis_name="data"'),
    ),
    case(
        "axis_name_outside_a_map",
        lambda: update(axis_name="data"),
        ValueError,
        ("axis_name='data'", None, "jax.shard_map"),
    ),
    case(
        "saliency_without_gradients",
        lambda: jaxprune.prune_params(params(), 0.5, score=jaxprune.saliency),
        ValueError,
        ("prune_params: score=saliency", "grads=None", "grads=jax.grad(loss)(params)"),
    ),
    case(
        "gradients_that_broadcast",
        lambda: jaxprune.prune_params(
            params(), 0.5, score=jaxprune.saliency, grads={**params(), "w": jnp.ones((1, 4))}
        ),
        ValueError,
        ("w:", ("(1, 4)", "(2, 4)"), "gradients with respect to these params"),
    ),
    case(
        "prune_params_shapes",
        lambda: jaxprune.prune_params({"w": SHAPE}, 0.5),
        TypeError,
        ("prune_params: w:", "ShapeDtypeStruct(shape=(2, 2), dtype=float32)", "jaxprune.plan"),
    ),
    case(
        "masks_from_shapes",
        lambda: jaxprune.masks_from_params({"w": SHAPE}),
        TypeError,
        ("masks_from_params: w:", "ShapeDtypeStruct(shape=(2, 2), dtype=float32)", "arrays"),
    ),
    case(
        "increment",
        lambda: jaxprune.Accumulated("sum", None),
        TypeError,
        ("Accumulated: increment", "None", "(params, grads)"),
    ),
    case(
        "magnitude_of_a_tree",
        lambda: jaxprune.magnitude({"w": 1.0}),
        TypeError,
        ("magnitude", "{'w': 1.0}", "jax.tree.map(jaxprune.magnitude, params)"),
    ),
    case(
        "saliency_of_two_shapes",
        lambda: jaxprune.saliency(jnp.ones(2), jnp.ones(3)),
        ValueError,
        ("saliency", ("(2,)", "(3,)"), "gradients with respect to these params"),
    ),
    case(
        "random_score_without_a_key",
        lambda: jaxprune.random_score(jnp.ones(2)),
        ValueError,
        ("random_score", "key=None", "jax.random.key(0)"),
    ),
    case(
        "balanced",
        lambda: jaxprune.Block((1, 4), balanced="yes"),
        TypeError,
        ("Block: balanced", "'yes'", "True or False"),
    ),
    case(
        "norm", lambda: jaxprune.Channel(norm="2"), ValueError, ("Channel: norm", "'2'", "1 or 2")
    ),
    case(
        "pooling",
        lambda: jaxprune.Block((1, 4), pooling="sum"),
        ValueError,
        ("Block: pooling", "'sum'", '"mean" or "max"'),
    ),
]


@pytest.mark.parametrize("true", (True, np.True_, np.array(True), jnp.array(True)))
def test_a_rule_may_return_any_kind_of_bool(true):
    rule = lambda path, leaf: true if path == "w" else ~np.bool_(true)
    report = jaxprune.plan(params(), 0.5, include="w|b", exclude=rule)
    assert {leaf.path: leaf.n_zero for leaf in report.leaves} == {"b": 2, "n": 0, "w": 0}


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


def test_a_rule_and_a_structure_in_a_list_are_no_pair_of_numbers():
    with pytest.raises(TypeError) as caught:
        jaxprune.prune(HALF, structure=["w", jaxprune.NM(2, 4)])
    assert "Pass jaxprune.NM('w'" not in str(caught.value)
