"""What users get wrong, and what the error message says about it.

An error has three parts: where it is (an argument, or the path of a leaf), what was passed against
what is needed, and what to type instead. Each case names these parts and not the sentence around
them, so that the prose can be improved without touching a test. Whole messages are in `SNAPSHOTS`.
"""

import ast
import dataclasses
import functools
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import assert_says, ones, says
from jaxprune._base.arguments import BadType, BadValue

ADAM = optax.adam(1e-3)
OPTAX_SCHEDULE = optax.linear_schedule(0.0, 0.5, 10)
HALF = jaxprune.one_shot_schedule(0.5)
MISPLACED = ("chain", "prune(schedule, inner=optimizer)", "jaxprune.apply_masks(params, opt_state)")
REPAIR = "jaxprune.apply_masks(params, opt_state)"


@functools.cache
def params():
    """A pruned leaf and two that are not."""
    kernel = jnp.arange(1, 9, dtype=jnp.float32).reshape(2, 4)
    return {"w": kernel, "b": jnp.ones((4,), jnp.float32), "n": jnp.arange(3, dtype=jnp.int32)}


@functools.cache
def start():
    """The state that `prune(HALF)` starts from."""
    return jaxprune.prune(HALF).init(params())


@functools.cache
def half_pruned():
    """Params and state after one update: the first row of `w` is dropped."""
    tx = jaxprune.prune(HALF)
    updates = jax.tree.map(jnp.zeros_like, params())
    updates, state = tx.update(updates, tx.init(params()), params())
    return optax.apply_updates(params(), updates), state


def injected(factory, argument):
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        return optax.inject_hyperparams(factory)(argument).init(params())


def case(name, call, kind, parts):
    """A wrong call, and what its error must say.

    Args:
      name: of the test.
      call: a function without arguments that makes the mistake.
      kind: the type of the exception.
      parts: where the mistake is (the argument, or the path of the leaf and a colon); the
        offending value as the message shows it, and what it conflicts with; what to type instead,
        or what is needed where there are many ways. Each is a fragment of the message, a tuple of
        fragments, or None where the message has nothing short to say.
    """
    return pytest.param(call, kind, parts, id=name)


def error_of(call, kind):
    """The text of the error that `call` raises; every error must read as plain sentences."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.type in (kind, BadValue, BadType)
    text = str(caught.value)
    assert text.endswith((".", "?"))
    assert ".." not in text.replace("...", "")
    assert "  " not in text
    assert "\n" not in text
    assert "Tracer" not in text
    return text


def fragments(*parts):
    """The fragments of parts, each of which is one, a tuple of them, or None."""
    return [f for part in parts for f in ((part,) if isinstance(part, str) else part or ())]


def init(tree, schedule=HALF, **rules):
    return jaxprune.prune(schedule, **rules).init(tree)


def update(updates=None, state=None, tree=None, **arguments):
    tree = params() if tree is None else tree
    updates = params() if updates is None else updates
    state = start() if state is None else state
    return jaxprune.prune(HALF, **arguments).update(updates, state, tree)


def cubic(final_sparsity=0.5, begin_step=0, end_step=10, every=2, **more):
    return jaxprune.cubic_schedule(final_sparsity, begin_step, end_step, every, **more)


def traced(function):
    """Calls a function on a traced 0.5."""
    return jax.make_jaxpr(function)(0.5)


def moved(*positions):
    """The half-pruned params with other values at some places of the dropped row."""
    tree, state = half_pruned()
    w = np.array(tree["w"])
    for column, value in positions:
        w[0, column] = value
    with jax.debug_nans(False):  # it also raises for NaN in what is copied to a device
        return {**tree, "w": jnp.asarray(w)}, state


# --- numbers that are not a fraction of zeros, wherever one is asked for

# The value, the type of the error, the value as shown, and the fix or what is needed.
NOT_SPARSITIES = {
    "percent": (90, ValueError, "90", "Did you mean 0.9?"),
    "percent_float": (99.5, ValueError, "99.5", "Did you mean 0.995?"),
    "one": (1.0, ValueError, "1.0", "[0, 1)"),
    "above_one": (1.5, ValueError, "1.5", "[0, 1)"),
    "negative": (-0.5, ValueError, "-0.5", "[0, 1)"),
    "nan": (float("nan"), ValueError, "nan", "[0, 1)"),
    "inf": (float("inf"), ValueError, "inf", "[0, 1)"),
    "numpy": (np.float32(1.25), ValueError, "1.25", "[0, 1)"),
    "fraction": (Fraction(3, 2), ValueError, "3/2", "[0, 1)"),
    "string": ("0.5", TypeError, "'0.5'", "[0, 1)"),
    "none": (None, TypeError, "None", "[0, 1)"),
    "bool": (True, TypeError, "True", "[0, 1)"),
    "complex": (0.5j, TypeError, "0.5j", "[0, 1)"),
    "list": ([0.5], TypeError, "[0.5]", "[0, 1)"),
}
TAKES_SPARSITY = {
    "final_sparsity": lambda s: cubic(s),
    "initial_sparsity": lambda s: cubic(initial_sparsity=s),
    "sparsity": lambda s: jaxprune.prune_params(params(), s),
    "overrides['w']": lambda s: jaxprune.prune(HALF, overrides={"w": s}),
    "targets[1]": lambda s: jaxprune.SparsitySchedule(0, 10, 10, (Fraction(0), s)),
}


@pytest.mark.parametrize("argument", TAKES_SPARSITY)
@pytest.mark.parametrize("value, kind, got, fix", NOT_SPARSITIES.values(), ids=NOT_SPARSITIES)
def test_every_sparsity_argument_is_validated(argument, value, kind, got, fix):
    assert_says(error_of(lambda: TAKES_SPARSITY[argument](value), kind), argument, got, fix)


# --- steps that are not steps, wherever one is asked for

NOT_STEPS = {
    "negative": (-1, ValueError, "-1", "0"),
    "float": (1e3, TypeError, "1000.0", "Did you mean 1000?"),
    "fractional": (1.5, TypeError, "1.5", "int"),
    "bool": (True, TypeError, "True", "int"),
    "string": ("10", TypeError, "'10'", "int"),
    "none": (None, TypeError, "None", "int"),
    "too_large": (2**31, ValueError, "2147483648", "2147483646"),
}
TAKES_STEP = {
    "begin_step": lambda t: cubic(begin_step=t),
    "end_step": lambda t: jaxprune.linear_schedule(0.5, 0, t),
    "step": lambda t: jaxprune.one_shot_schedule(0.5, t),
}


@pytest.mark.parametrize("argument", TAKES_STEP)
@pytest.mark.parametrize("value, kind, got, fix", NOT_STEPS.values(), ids=NOT_STEPS)
def test_every_step_argument_is_validated(argument, value, kind, got, fix):
    assert_says(error_of(lambda: TAKES_STEP[argument](value), kind), argument, got, fix)


# --- everything else, one case at a time


def poly(**arguments):
    return jaxprune.polynomial_schedule(0.5, 0, 10, **arguments)


def read_off(fn, begin=0, end=10, every=5):
    return jaxprune.from_optax_schedule(fn, begin, end, every)


def constant(value):
    return lambda step: value


SCHEDULES = [
    case(
        "sparsity_traced",
        lambda: traced(cubic),
        TypeError,
        ("final_sparsity", "traced", ("a Python float", "static_args")),
    ),
    case(
        "sparsity_on_device",
        lambda: cubic(jnp.float32(0.5)),
        TypeError,
        ("final_sparsity", "Array(0.5, dtype=float32)", ("a Python float", "static_args")),
    ),
    case(
        "step_traced",
        lambda: traced(lambda t: cubic(begin_step=t)),
        TypeError,
        ("begin_step", "traced", "a Python int"),
    ),
    case(
        "begin_after_end",
        lambda: cubic(begin_step=20),
        ValueError,
        ("end_step", ("begin_step=20", "end_step=10"), "swap"),
    ),
    case("every_zero", lambda: cubic(every=0), ValueError, ("every", "0", "1")),
    case("every_negative", lambda: cubic(every=-1), ValueError, ("every", "-1", "1")),
    case("every_float", lambda: cubic(every=0.5), TypeError, ("every", "0.5", "int")),
    case("every_bool", lambda: cubic(every=True), TypeError, ("every", "True", "int")),
    case(
        "too_many_fires",
        lambda: cubic(end_step=200_000, every=1),
        ValueError,
        ("every=1", ("200001 fires", "100000"), "every=200"),
    ),
    case(
        "initial_above_final",
        lambda: cubic(initial_sparsity=0.75),
        ValueError,
        ("initial_sparsity", ("0.75", "0.5"), "final_sparsity"),
    ),
    case("power_zero", lambda: poly(power=0), ValueError, ("power", "0", "positive")),
    case("power_nan", lambda: poly(power=float("nan")), ValueError, ("power", "nan", "finite")),
    case("power_inf", lambda: poly(power=float("inf")), ValueError, ("power", "inf", "finite")),
    case("power_string", lambda: poly(power="3"), TypeError, ("power", "'3'", "number")),
    case("power_bool", lambda: poly(power=True), TypeError, ("power", "True", "number")),
    case(
        "read_off_falling",
        lambda: read_off(optax.linear_schedule(0.75, 0.25, 10)),
        ValueError,
        ("from_optax_schedule", ("0.75 at step 0", "0.5 at step 5"), "fraction of zeros"),
    ),
    case(
        "read_off_percent",
        lambda: read_off(optax.linear_schedule(0, 90, 10)),
        ValueError,
        (("from_optax_schedule", "fn(5)"), "45.0", "Did you mean 0.45?"),
    ),
    case(
        "read_off_one",
        lambda: read_off(optax.linear_schedule(0, 1.0, 10)),
        ValueError,
        (("from_optax_schedule", "fn(10)"), "1.0", "[0, 1)"),
    ),
    case(
        "read_off_nan",
        lambda: read_off(constant(jnp.nan)),
        ValueError,
        (("from_optax_schedule", "fn(0)"), "nan", "[0, 1)"),
    ),
    case(
        "read_off_nothing",
        lambda: read_off(constant(None)),
        TypeError,
        (("from_optax_schedule", "fn(0)"), "None", "[0, 1)"),
    ),
    case(
        "read_off_vector",
        lambda: read_off(constant(np.float32([0.5, 0.5]))),
        TypeError,
        (("from_optax_schedule", "fn(0)"), "array([0.5, 0.5], dtype=float32)", "[0, 1)"),
    ),
    case(
        "read_off_number",
        lambda: read_off(0.5),
        TypeError,
        (("from_optax_schedule", "fn"), "0.5", "one_shot_schedule"),
    ),
    case(
        "read_off_optimizer",
        lambda: read_off(ADAM),
        TypeError,
        (("from_optax_schedule", "fn"), "GradientTransformationExtraArgs", "one_shot_schedule"),
    ),
    case(
        "read_off_begin_after_end",
        lambda: read_off(constant(0.5), begin=20),
        ValueError,
        ("end_step", ("begin_step=20", "end_step=10"), "swap"),
    ),
    case(
        "too_few_targets",
        lambda: jaxprune.SparsitySchedule(0, 10, 5, (Fraction(1, 2),)),
        ValueError,
        ("targets", ("3", "1"), "cubic_schedule"),
    ),
    case(
        "falling_targets",
        lambda: jaxprune.SparsitySchedule(0, 10, 5, (0.1, 0.5, 0.25)),
        ValueError,
        ("targets", ("0.5 at step 5", "0.25 at step 10"), None),
    ),
    case(
        "one_target",
        lambda: jaxprune.SparsitySchedule(0, 0, 1, 0.5),
        TypeError,
        ("targets", "0.5", "tuple"),
    ),
]


@dataclasses.dataclass
class Unhashable:
    """A callable that compares by value and therefore has no hash."""

    floor: float = 0.0

    def __call__(self, *arguments):
        return True


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
]


def keys():
    return jax.random.split(jax.random.key(0), 4).reshape(2, 2)


def big(*shape):
    return {"a": {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}, "b": ones(4)}


def scored(score, **more):
    return init({"w": ones(2, 4), "b": ones(4)}, score=score, **more)


LEAVES = [
    case(
        "int32",
        lambda: init({"w": ones(2, 2), "a": {"n": ones(2, 2, dtype=jnp.int32)}}, include=".*"),
        ValueError,
        ("a/n:", "int32", "exclude='a/n'"),
    ),
    case(
        "bool",
        lambda: jaxprune.prune_params(
            {"w": ones(2, 2), "m": ones(2, dtype=bool)}, 0.5, include=".*"
        ),
        ValueError,
        ("m:", "bool", "exclude='m'"),
    ),
    case(
        "prng_key",
        lambda: jaxprune.plan({"w": ones(2, 2), "k": keys()}, HALF, include=("w", "k")),
        ValueError,
        ("k:", "key<fry>", "exclude='k'"),
    ),
    case(
        "int32_in_masks_from_params",
        lambda: jaxprune.masks_from_params(params(), include=".*"),
        ValueError,
        ("n:", "int32", "exclude='n'"),
    ),
    case(
        "float8_without_a_zero",
        lambda: init({"w": ones(2, 2), "s": ones(2, 2, dtype=jnp.float8_e8m0fnu)}),
        ValueError,
        ("s:", "float8_e8m0fnu", "exclude='s'"),
    ),
    case(
        "int32_root",
        lambda: init(ones(2, 2, dtype=jnp.int32), include=".*"),
        ValueError,
        ("(root):", "int32", "exclude=''"),
    ),
    case(
        "emptied",
        lambda: init({"a": {"w": ones(1, 2)}, "w": ones(4, 4), "b": ones(4)}, cubic(0.9)),
        ValueError,
        ("a/w:", ("(1, 2)", "0.9"), ("exclude='a/w'", "overrides={'a/w': ...}")),
    ),
    case(
        "emptied_by_an_override",
        lambda: init({"a": {"w": ones(1, 2)}, "w": ones(4, 4)}, overrides={"a/w": 0.8}),
        ValueError,
        ("a/w:", ("(1, 2)", "0.8"), ("exclude='a/w'", "overrides={'a/w': ...}")),
    ),
    case(
        "emptied_root",
        lambda: jaxprune.prune_params(ones(1, 2), 0.9),
        ValueError,
        ("(root):", ("(1, 2)", "0.9"), ("exclude=''", "overrides={'': ...}")),
    ),
    case(
        "emptied_at_a_path_that_is_no_regex",
        lambda: init({"conv[1]+": ones(1, 2), "w": ones(4, 4)}, cubic(0.9)),
        ValueError,
        (
            "conv[1]+:",
            ("(1, 2)", "0.9"),
            (r"exclude='conv\\[1\\]\\+'", r"overrides={'conv\\[1\\]\\+': ...}"),
        ),
    ),
    case(
        "too_many_weights_to_shuffle",
        lambda: jax.eval_shape(jaxprune.prune(HALF, ties="hashed").init, big(2**16, 2**15)),
        ValueError,
        ("a/w:", ("2147483648", "2**31 - 2"), 'ties="index"'),
    ),
    case(
        "nothing_by_default",
        lambda: init({"b": ones(4), "n": ones(2, 2, dtype=jnp.int32), "name": "mlp"}),
        ValueError,
        ("nothing to prune", ("b (1-D)", "n (dtype int32)", "name (not an array)"), "include='.*'"),
    ),
    case(
        "nothing_of_many",
        lambda: jaxprune.prune_params({f"b{i}": ones(4) for i in range(10)}, 0.5),
        ValueError,
        ("nothing to prune", ("b0 (1-D)", "b7 (1-D)", "2 more"), "include='.*'"),
    ),
    case(
        "nothing_included",
        lambda: init({"fc": {"kernel": ones(2, 2), "bias": ones(2)}}, include="kernel"),
        ValueError,
        ("nothing to prune", ("fc/bias (", "fc/kernel ("), "include='.*kernel'"),
    ),
    case(
        "everything_excluded",
        lambda: jaxprune.plan({"w": ones(2, 2), "b": ones(2)}, HALF, exclude=".*"),
        ValueError,
        ("nothing to prune", ("b (excluded by '.*')", "w (excluded by '.*')"), "include='.*'"),
    ),
    case(
        "flatten",
        lambda: optax.flatten(jaxprune.prune(HALF)).init({"w": ones(2, 2), "b": ones(2)}),
        ValueError,
        (
            "nothing to prune",
            "(root) (1-D)",
            "optax.chain(optax.flatten(optimizer), jaxprune.prune(schedule))",
        ),
    ),
    case(
        "score_of_another_shape",
        lambda: scored(lambda params, grads, key: jnp.sum(params)),
        ValueError,
        (("w:", "score"), ("float32 of shape ()", "float32 of shape (2, 4)"), "jaxprune.magnitude"),
    ),
    case(
        "score_of_integers",
        lambda: scored(lambda params, grads, key: jnp.ones(params.shape, jnp.int32)),
        ValueError,
        (
            ("w:", "score"),
            ("int32 of shape (2, 4)", "float32 of shape (2, 4)"),
            "jaxprune.magnitude",
        ),
    ),
    case(
        "score_of_nothing",
        lambda: scored(lambda params, grads, key: None),
        ValueError,
        (("w:", "score"), ("NoneType", "float32 of shape (2, 4)"), "jaxprune.magnitude"),
    ),
]

UPDATES = [
    case(
        "no_params",
        lambda: jaxprune.prune(HALF).update(params(), start()),
        ValueError,
        ("jaxprune.prune", None, "tx.update(updates, state, params)"),
    ),
    case(
        "update_none_at_a_pruned_leaf",
        lambda: update({**params(), "w": None}),
        ValueError,
        ("w:", "None", "exclude='w'"),
    ),
    case(
        "update_of_another_shape",
        lambda: update({**params(), "w": ones(4, 2)}),
        ValueError,
        ("w:", ("update", "(4, 2)", "(2, 4)"), "gradients"),
    ),
    case(
        "update_without_a_leaf",
        lambda: update({"w": ones(2, 4), "n": ones(3)}),
        ValueError,
        ("jaxprune.prune", ("updates", "params have b"), "gradients"),
    ),
    case(
        "update_with_another_leaf",
        lambda: update({**params(), "c": {"kernel": ones(2, 2)}}),
        ValueError,
        ("jaxprune.prune", "updates have c/kernel", "gradients"),
    ),
    case(
        "update_nested_deeper",
        lambda: update({**params(), "w": {"kernel": ones(2, 4)}}),
        ValueError,
        ("jaxprune.prune", ("params have w", "updates have w/kernel"), "gradients"),
    ),
    case(
        "update_in_another_container",
        lambda: jaxprune.prune(HALF).update(
            (ones(2, 4), ones(4)), init([ones(2, 4), ones(4)]), [ones(2, 4), ones(4)]
        ),
        ValueError,
        ("jaxprune.prune", ("updates", "paths"), "gradients"),
    ),
    case(
        "params_of_another_model",
        lambda: update({"v": ones(2, 4)}, tree={"v": ones(2, 4)}),
        ValueError,
        ("jaxprune.prune", ("params have v", "masks", "b, n, w"), "the params"),
    ),
    case(
        "inner_that_loses_a_leaf",
        lambda: update(inner=optax.stateless(lambda updates, params: {"w": updates["w"]})),
        ValueError,
        (("jaxprune.prune", "`inner`"), "params have b, n", "gradients"),
    ),
    case(
        "state_of_a_chain",
        lambda: update(state=(start(), optax.EmptyState())),
        TypeError,
        ("jaxprune.prune", ("PruneState", "tuple"), ("init", "update", "tx.init(params)")),
    ),
    case(
        "state_restored_as_a_dict",
        lambda: update(state=start()._asdict()),
        TypeError,
        ("jaxprune.prune", ("PruneState", "dict"), ("init", "update", "tx.init(params)")),
    ),
    case(
        "masks_of_another_shape",
        lambda: update(state=with_masks(w=jnp.ones((4, 2), jnp.uint8))),
        ValueError,
        ("w:", ("mask", "(4, 2)", "(2, 4)"), "model"),
    ),
    case(
        "masks_of_another_shape_at_a_leaf_that_is_not_pruned",
        lambda: update(state=with_masks(b=jnp.ones((5,), jnp.uint8))),
        ValueError,
        ("b:", ("mask", "(5,)", "(4,)"), "model"),
    ),
    case(
        "masks_without_a_leaf",
        lambda: update(state=with_masks(w=None)),
        ValueError,
        ("jaxprune.prune", ("masks", "params have w"), "the params"),
    ),
    case(
        "thresholds_of_another_model",
        lambda: update(state=start()._replace(thresholds=jnp.zeros((5,), jnp.float32))),
        ValueError,
        ("thresholds", ("(5,)", "3 leaves"), "model"),
    ),
]


def with_masks(**masks):
    return start()._replace(masks={**start().masks, **masks})


def two_prunes(tree=None):
    other = init(tree) if tree is not None else start()
    return (start(), other)


STATES = [
    case(
        "no_state",
        lambda: jaxprune.get_state(ADAM.init(params())),
        ValueError,
        ("prune state", "tuple", "tx.init(params)"),
    ),
    case(
        "no_state_but_params",
        lambda: jaxprune.get_masks(params()),
        ValueError,
        ("prune state", "dict", "tx.init(params)"),
    ),
    case(
        "no_state_for_metrics",
        lambda: jaxprune.metrics(None),
        ValueError,
        ("prune state", "NoneType", "tx.init(params)"),
    ),
    case(
        "two_states",
        lambda: jaxprune.get_state(two_prunes()),
        ValueError,
        ("prune states", "2", ("get_masks", "apply_masks")),
    ),
    case(
        "two_states_for_metrics",
        lambda: jaxprune.metrics(two_prunes()),
        ValueError,
        ("prune states", "2", ("get_masks", "apply_masks")),
    ),
    case(
        "masks_of_two_models",
        lambda: jaxprune.get_masks(two_prunes({"v": ones(2, 4), "b": ones(4), "n": ones(3)})),
        ValueError,
        ("prune states", "trees", None),
    ),
    case(
        "masks_of_two_shapes",
        lambda: jaxprune.get_masks(two_prunes({"w": ones(4, 4), "b": ones(4), "n": ones(3)})),
        ValueError,
        ("prune states", "trees", None),
    ),
    case(
        "apply_unknown_path",
        lambda: jaxprune.apply_masks(params(), {"head": {"w": ones(2, 4)}}),
        ValueError,
        ("head/w:", "b, n, w", "jaxprune.prune"),
    ),
    case(
        "apply_to_other_params",
        lambda: jaxprune.apply_masks({f"w{i}": ones(2, 4) for i in range(10)}, start()),
        ValueError,
        ("b:", ("w0, w1, w2, w3, w4, w5, w6, w7,", "2 more"), "optimizer"),
    ),
    case(
        "apply_another_shape",
        lambda: jaxprune.apply_masks(params(), {"w": ones(4, 2)}),
        ValueError,
        ("w:", ("mask", "(4, 2)", "(2, 4)"), "model"),
    ),
    case(
        "apply_another_shape_at_the_root",
        lambda: jaxprune.apply_masks(ones(2, 4), ones(4, 2)),
        ValueError,
        ("(root):", ("mask", "(4, 2)", "(2, 4)"), "model"),
    ),
    case(
        "apply_nothing",
        lambda: jaxprune.apply_masks(params(), None),
        ValueError,
        ("mask", "NoneType", "jaxprune.prune"),
    ),
    case(
        "apply_a_state_without_masks",
        lambda: jaxprune.apply_masks(params(), optax.sgd(0.1).init(params())),
        ValueError,
        ("mask", "tuple", "jaxprune.prune"),
    ),
    case(
        "apply_the_state_of_another_optimizer",
        lambda: jaxprune.apply_masks(params(), optax.trace(0.9).init(params())),
        ValueError,
        ("trace/b:", "b, n, w", "jaxprune.prune"),
    ),
    case(
        "summarize_another_shape",
        lambda: jaxprune.summarize(params(), {"w": ones(3)}),
        ValueError,
        ("w:", ("mask", "(3,)", "(2, 4)"), "model"),
    ),
    case(
        "straight_through_another_shape",
        lambda: jaxprune.straight_through(
            {"fc": {"w": ones(2, 4)}, "b": ones(4)}, {"fc": {"w": ones(4)}, "b": ones(4)}
        ),
        ValueError,
        ("fc/w:", ("mask", "(4,)", "(2, 4)"), "jaxprune.get_masks(opt_state)"),
    ),
    case(
        "check_no_state",
        lambda: jaxprune.check(params(), ADAM.init(params())),
        ValueError,
        ("prune state", "tuple", "tx.init(params)"),
    ),
    case(
        "check_swapped",
        lambda: jaxprune.check(start(), params()),
        ValueError,
        ("prune state", "dict", "tx.init(params)"),
    ),
    case(
        "check_moved",
        lambda: jaxprune.check(*moved((0, 0.5), (2, -0.5))),
        ValueError,
        ("w:", "2 of 4", MISPLACED),
    ),
    case(
        "check_one_moved",
        lambda: jaxprune.check(*moved((0, 1e-45))),  # subnormal: XLA on CPU treats it as zero
        ValueError,
        ("w:", "1 of 4", MISPLACED),
    ),
    case(
        "check_nan",
        lambda: jaxprune.check(*moved((1, jnp.nan))),
        ValueError,
        ("w:", ("1 of 4", "finite"), REPAIR),
    ),
    case(
        "check_inf_and_moved",
        lambda: jaxprune.check(*moved((1, -jnp.inf), (2, 1.0), (3, jnp.nan))),
        ValueError,
        ("w:", ("3 of 4", "2", "finite"), REPAIR),
    ),
    case(
        "check_violations",
        lambda: jaxprune.check(
            half_pruned()[0], half_pruned()[1]._replace(violations=jnp.int32(3))
        ),
        ValueError,
        ("dropped weight", "3", MISPLACED),
    ),
    case(
        "check_other_params",
        lambda: jaxprune.check({"v": ones(2, 4)}, start()),
        ValueError,
        ("b:", "v", "optimizer"),
    ),
    case(
        "check_another_shape",
        lambda: jaxprune.check({**params(), "w": ones(4, 2)}, start()),
        ValueError,
        ("w:", ("mask", "(2, 4)", "(4, 2)"), "model"),
    ),
]


def scores(n=3):
    return jnp.arange(n, dtype=jnp.float32)


def shape_of(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


SELECTION = [
    case(
        "n_keep_negative",
        lambda: jaxprune.topk_mask(scores(), -1),
        ValueError,
        ("topk_mask: `n_keep`", "-1", "[0, 3]"),
    ),
    case(
        "n_keep_above_size",
        lambda: jaxprune.topk_mask(scores(), 4),
        ValueError,
        ("topk_mask: `n_keep`", "4", "[0, 3]"),
    ),
    case(
        "n_keep_float",
        lambda: jaxprune.topk_mask(scores(), 1.0),
        TypeError,
        ("topk_mask: `n_keep`", "1.0", "integer"),
    ),
    case(
        "n_keep_string",
        lambda: jaxprune.topk_mask(scores(), "1"),
        TypeError,
        ("topk_mask: `n_keep`", "'1'", "integer"),
    ),
    case(
        "n_keep_bool",
        lambda: jaxprune.topk_mask(scores(), True),
        TypeError,
        ("topk_mask: `n_keep`", "True", "integer"),
    ),
    case(
        "n_keep_list",
        lambda: jaxprune.topk_mask(scores(), [1]),
        TypeError,
        ("topk_mask: `n_keep`", "[1]", "integer"),
    ),
    case(
        "n_keep_vector",
        lambda: jaxprune.topk_mask(scores(), np.int32([1, 2])),
        TypeError,
        ("topk_mask: `n_keep`", "array([1, 2], dtype=int32)", "integer"),
    ),
    case(
        "n_keep_of_one_leaf",
        lambda: jaxprune.topk_masks([scores(), scores()], [1, 7]),
        ValueError,
        ("topk_masks: n_keep[1]", "7", "[0, 3]"),
    ),
    case(
        "n_keep_of_all",
        lambda: jaxprune.topk_masks([scores(), scores()], 7, pool="global"),
        ValueError,
        ("topk_masks: `n_keep`", "7", "[0, 6]"),
    ),
    case(
        "n_keep_list_of_all",
        lambda: jaxprune.topk_masks([scores(), scores()], [1, 1], pool="global"),
        TypeError,
        ("topk_masks: `n_keep`", "[1, 1]", "integer"),
    ),
    case(
        "too_few_counts",
        lambda: jaxprune.topk_masks([scores(), scores()], [1]),
        ValueError,
        ("topk_masks: `n_keep`", ("2", "[1]"), 'pool="global"'),
    ),
    case(
        "one_count",
        lambda: jaxprune.topk_masks([scores(), scores()], 2),
        ValueError,
        ("topk_masks: `n_keep`", "2", 'pool="global"'),
    ),
    case(
        "pool",
        lambda: jaxprune.topk_masks([scores()], [1], pool="layer"),
        ValueError,
        ("topk_masks: `pool`", "'layer'", ('"leaf"', '"global"')),
    ),
    case(
        "scores_int",
        lambda: jaxprune.topk_mask(jnp.arange(3, dtype=jnp.int32), 1),
        TypeError,
        ("topk_mask: `scores`", "int32 of shape (3,)", ".astype(jnp.float32)"),
    ),
    case(
        "scores_complex",
        lambda: jaxprune.topk_masks([scores(), ones(2, dtype=jnp.complex64)], [1, 1]),
        TypeError,
        ("topk_masks: scores[1]", "complex64 of shape (2,)", ".astype(jnp.float32)"),
    ),
    case(
        "scores_tree",
        lambda: jaxprune.topk_masks({"a": scores()}, [1]),
        TypeError,
        ("topk_masks: `scores`", "dict", ("topk_mask", "jax.tree.leaves(scores)")),
    ),
    case(
        "too_many_scores_to_shuffle",
        lambda: jax.eval_shape(
            lambda *s: jaxprune.topk_masks(s, 1, pool="global", ties="hashed"),
            *[shape_of(2**15, 2**15)] * 2,
        ),
        ValueError,
        ("pool", ("2147483648", "2**31 - 2"), 'ties="index"'),
    ),
]

LATER = [
    case(
        "two_leaves_of_one_path",
        lambda: jaxprune.plan({"a/b": ones(2, 2), "a": {"b": ones(2, 2)}}, 0.5),
        ValueError,
        ("a/b:", "two", "'/'"),
    ),
    case(
        "inner_that_changes_a_shape",
        lambda: update(
            inner=optax.stateless(lambda updates, params: {**updates, "w": updates["w"][0]})
        ),
        ValueError,
        (("w:", "`inner`"), ("(4,)", "(2, 4)"), "gradients"),
    ),
    case(
        "schedule_not_called",
        lambda: jaxprune.prune(jaxprune.cubic_schedule),
        TypeError,
        ("schedule", repr(jaxprune.cubic_schedule), "jaxprune.cubic_schedule(0.9, ...)"),
    ),
    case(
        "restored_step_of_floats",
        lambda: update(state=start()._replace(prune_step=jnp.zeros(()))),
        ValueError,
        ("prune_step", ("int32", "float32 of shape ()"), "tx.init(params)"),
    ),
]
CASES = [*SCHEDULES, *ARGUMENTS, *LEAVES, *UPDATES, *STATES, *SELECTION, *LATER]


@pytest.mark.parametrize("call, kind, parts", CASES)
def test_the_error_says_where_and_what_to_type_instead(call, kind, parts):
    assert_says(error_of(call, kind), *fragments(*parts))


# --- the most common mistakes, with their whole messages: these change with every change of words

MISTAKES = {entry.id: entry.values[:2] for entry in CASES}
SNAPSHOTS = {
    "sparsity_traced": "final_sparsity must be a real number in [0, 1), got a traced value. "
    "Sparsity is decided on the host, before tracing: pass a Python float; under "
    "optax.inject_hyperparams, name the argument in static_args.",
    "plan_percent": "schedule is a fraction of zeros in [0, 1), got 90. Did you mean 0.9?",
    "schedule_is_an_optimizer": "schedule must be a jaxprune.SparsitySchedule, got a "
    "GradientTransformationExtraArgs. Pass the optimizer by name: prune(schedule, "
    "inner=optimizer).",
    "nothing_included": "nothing to prune: none of the 2 leaves is chosen: fc/bias (not matched by "
    "include), fc/kernel (not matched by include). A regex must match the whole path: "
    "write include='.*kernel', not 'kernel'.",
    "emptied": "a/w: shape (1, 2) would lose all of its 2 weights at sparsity 0.9. Leave it out "
    "with exclude='a/w', or lower its sparsity with overrides={'a/w': ...}.",
    "no_params": "jaxprune.prune needs the params: call tx.update(updates, state, params).",
    "no_state": "no prune state in a value of type tuple. Pass the optimizer state of a "
    "transformation that contains jaxprune.prune: what tx.init(params) or tx.update returned.",
    "check_moved": "w: 2 of 4 dropped weights are not zero. Something changes the updates after "
    "prune: make jaxprune.prune the last link of the chain, or wrap the optimizer with "
    "prune(schedule, inner=optimizer). If the params were restored without their optimizer state, "
    "or are an average, use jaxprune.apply_masks(params, opt_state).",
}


@pytest.mark.parametrize("name, text", SNAPSHOTS.items(), ids=SNAPSHOTS)
def test_the_whole_message_of_a_common_mistake(name, text):
    assert error_of(*MISTAKES[name]) == text


# --- the suggestions of errors work

ADVICE = re.compile(r"exclude=('[^']*')")


@pytest.mark.parametrize("path", ("fc", "a.b", "conv[1]+", "(x)", "w*", "", "a-b c"))
def test_the_exclude_that_an_error_suggests_excludes_that_leaf(path):
    tree = {path: ones(1, 2), "kernel": ones(4, 4), "bias": ones(4)}
    with pytest.raises(ValueError, match="would lose all") as caught:
        jaxprune.plan(tree, 0.9)
    exclude = ast.literal_eval(ADVICE.search(str(caught.value)).group(1))
    report = jaxprune.plan(tree, 0.9, exclude=exclude)
    assert {leaf.path: leaf.n_zero for leaf in report.leaves} == {path: 0, "kernel": 14, "bias": 0}


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


# --- valid input that looks invalid

GOOD_SPARSITIES = {
    "int": (0, 0),
    "minus_zero": (-0.0, 0),
    "float": (0.9, Fraction(9, 10)),
    "float16": (np.float16(0.9), Fraction(9, 10)),
    "float32": (np.float32(0.9), Fraction(9, 10)),
    "float64": (np.float64(0.9), Fraction(9, 10)),
    "fraction": (Fraction(1, 3), Fraction(1, 3)),
}


@pytest.mark.parametrize("value, expected", GOOD_SPARSITIES.values(), ids=GOOD_SPARSITIES)
def test_any_real_number_is_a_sparsity(value, expected):
    assert cubic(value).final_sparsity == expected


def test_a_bfloat16_is_taken_at_its_exact_value():
    schedule = read_off(constant(jnp.bfloat16(0.9)))
    assert set(schedule.targets) == {Fraction(float(jnp.bfloat16(0.9)))} == {Fraction(115, 128)}


@pytest.mark.parametrize("dtype", (np.int8, np.int32, np.int64, np.uint64))
def test_numpy_integers_are_steps(dtype):
    schedule = cubic(0.5, dtype(0), dtype(10), dtype(4))
    assert schedule == cubic(0.5, 0, 10, 4)
    assert schedule.fires(jnp.arange(12)).tolist() == [t in (0, 4, 8, 10) for t in range(12)]


def test_a_missing_gradient_is_fine_where_nothing_is_pruned():
    updates, state = update({**params(), "b": None})
    assert updates["b"] is None
    assert jaxprune.get_masks(state)["w"].tolist() == [[False] * 4, [True] * 4]


def test_an_empty_tree_has_nothing_to_prune_and_is_no_error():
    assert jaxprune.prune_params({}, 0.5) == ({}, {})
    assert jaxprune.masks_from_params({}) == {}
    assert init({}).masks == {}
    assert jaxprune.plan({}, 0.5).size == 0
    assert jaxprune.apply_masks({}, {}) == {}
    assert jaxprune.topk_masks([], []) == jaxprune.topk_masks([], 0, pool="global") == []


def test_states_that_mask_different_subtrees_are_merged():
    tree = {"fc": {"w": ones(2, 4), "b": ones(4)}, "head": {"w": ones(4, 2), "b": ones(2)}}
    hidden = {"fc": True, "head": False}  # one placeholder replaces all of `head`
    shown = {"fc": {"w": True, "b": True}, "head": {"w": True, "b": True}}
    tx = optax.chain(
        optax.masked(jaxprune.prune(HALF), hidden),
        optax.masked(jaxprune.prune(jaxprune.one_shot_schedule(0.25)), shown),
    )
    _, state = tx.update(tree, tx.init(tree), tree)
    masks = jaxprune.get_masks(state)
    assert jax.tree.structure(masks) == jax.tree.structure(tree)
    assert jax.tree.map(lambda m: int(jnp.sum(~m)), masks) == {
        "fc": {"w": 4, "b": 0},
        "head": {"w": 2, "b": 0},
    }
    merged = jaxprune.apply_masks(tree, state)
    jax.tree.map(lambda p, m: np.testing.assert_array_equal(p != 0, m), merged, masks)


def test_the_error_for_a_score_of_one_argument_names_all_three():
    with pytest.raises(TypeError, match=says("score", "(params, grads, key)", "w:")):
        update(score=lambda params: jnp.abs(params))


def test_exclude_none_excludes_nothing():
    assert str(jaxprune.plan(params(), 0.5, exclude=None)) == str(jaxprune.plan(params(), 0.5))


def test_a_sparsity_just_below_one_is_not_shown_as_100_percent():
    shape = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    report = jaxprune.plan({"w": shape, "b": ones(3)}, Fraction(999_999, 1_000_000))
    assert report.leaves[1].n_zero == 999_999
    assert "100.00%" not in str(report)
    assert "99.99%" in str(report)
