"""What users get wrong, and the exact words that tell them.

An error has three parts: where (an argument, or the path of a leaf), what was got against what
is needed, and what to type instead. The tables hold whole texts, so that a change of words shows.
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

ADAM = optax.adam(1e-3)
OPTAX_SCHEDULE = optax.linear_schedule(0.0, 0.5, 10)
HALF = jaxprune.one_shot_schedule(0.5)
MISPLACED = (
    "Something changes the updates after prune: make jaxprune.prune the last link of the chain, "
    "or wrap the optimizer with prune(schedule, inner=optimizer). If the params were restored "
    "without their optimizer state, or are an average, take jaxprune.apply_masks(params, "
    "opt_state)."
)
NOT_FINITE = (
    "No update can take NaN or inf to zero: repair the params with "
    "jaxprune.apply_masks(params, opt_state) and look for what made them."
)
ON_THE_HOST = (
    "Sparsity is decided on the host, before tracing: pass a Python float; under "
    "optax.inject_hyperparams, name the argument in static_args."
)
NO_STATE = (
    "Pass the optimizer state of a chain with jaxprune.prune in it, tx.init(params) or what "
    "tx.update returned."
)
OTHER_STRUCTURE = (
    "Pass the params that the state was initialised with, and gradients with respect to them."
)
OTHER_MODEL = "Was the state restored from another model?"
INCLUDE_OTHERS = (
    "By default leaves of inexact dtype with two or more axes are; pass "
    'include=".*" to choose others.'
)


@functools.cache
def params():
    """A pruned leaf and two that are not."""
    kernel = jnp.arange(1, 9, dtype=jnp.float32).reshape(2, 4)
    return {"w": kernel, "b": jnp.ones((4,), jnp.float32), "n": jnp.arange(3, dtype=jnp.int32)}


def ones(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


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


def case(name, call, kind, text):
    return pytest.param(call, kind, text, id=name)


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
    with jax.debug_nans(False):  # it looks for NaN in what is copied to a device, too
        return {**tree, "w": jnp.asarray(w)}, state


# --- numbers that are not a fraction of zeros, wherever one is asked for

NOT_SPARSITIES = {
    "percent": (90, "is a fraction of zeros in [0, 1), got 90. Did you mean 0.9?"),
    "percent_float": (99.5, "is a fraction of zeros in [0, 1), got 99.5. Did you mean 0.995?"),
    "one": (1.0, "is a fraction of zeros in [0, 1), got 1.0. Sparsity 1 would leave no weight."),
    "above_one": (1.5, "is a fraction of zeros in [0, 1), got 1.5."),
    "negative": (-0.5, "is a fraction of zeros in [0, 1), got -0.5."),
    "nan": (float("nan"), "is a fraction of zeros in [0, 1), got nan."),
    "inf": (float("inf"), "is a fraction of zeros in [0, 1), got inf."),
    "numpy": (np.float32(1.25), "is a fraction of zeros in [0, 1), got 1.25."),
    "fraction": (Fraction(3, 2), "is a fraction of zeros in [0, 1), got 3/2."),
    "string": ("0.5", "must be a real number in [0, 1), got '0.5'."),
    "none": (None, "must be a real number in [0, 1), got None."),
    "bool": (True, "must be a real number in [0, 1), got True."),
    "complex": (0.5j, "must be a real number in [0, 1), got 0.5j."),
    "list": ([0.5], "must be a real number in [0, 1), got [0.5]."),
}
TAKES_SPARSITY = {
    "final_sparsity": lambda s: cubic(s),
    "initial_sparsity": lambda s: cubic(initial_sparsity=s),
    "sparsity": lambda s: jaxprune.prune_params(params(), s),
    "overrides['w']": lambda s: jaxprune.prune(HALF, overrides={"w": s}),
    "targets[1]": lambda s: jaxprune.SparsitySchedule(0, 10, 10, (Fraction(0), s)),
}


@pytest.mark.parametrize("argument", TAKES_SPARSITY)
@pytest.mark.parametrize("value, text", NOT_SPARSITIES.values(), ids=NOT_SPARSITIES)
def test_every_sparsity_is_checked_where_it_is_given(argument, value, text):
    with pytest.raises((TypeError, ValueError)) as caught:
        TAKES_SPARSITY[argument](value)
    assert str(caught.value) == f"{argument} {text}"
    assert caught.type is (TypeError if "must be" in text else ValueError)


# --- steps that are not steps, wherever one is asked for

NOT_STEPS = {
    "negative": (-1, ValueError, "must be at least 0, got -1."),
    "float": (1e3, TypeError, "must be an int, got 1000.0. Did you mean 1000?"),
    "fractional": (1.5, TypeError, "must be an int, got 1.5."),
    "bool": (True, TypeError, "must be an int, got True."),
    "string": ("10", TypeError, "must be an int, got '10'."),
    "none": (None, TypeError, "must be an int, got None."),
    "too_large": (2**31, ValueError, "must be at most 2147483646, got 2147483648."),
}
TAKES_STEP = {
    "begin_step": lambda t: cubic(begin_step=t),
    "end_step": lambda t: jaxprune.linear_schedule(0.5, 0, t),
    "step": lambda t: jaxprune.one_shot_schedule(0.5, t),
}


@pytest.mark.parametrize("argument", TAKES_STEP)
@pytest.mark.parametrize("value, kind, text", NOT_STEPS.values(), ids=NOT_STEPS)
def test_every_step_is_checked_where_it_is_given(argument, value, kind, text):
    with pytest.raises(kind) as caught:
        TAKES_STEP[argument](value)
    assert str(caught.value) == f"{argument} {text}"


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
        f"final_sparsity must be a real number in [0, 1), got a traced value. {ON_THE_HOST}",
    ),
    case(
        "sparsity_on_device",
        lambda: cubic(jnp.float32(0.5)),
        TypeError,
        "final_sparsity must be a real number in [0, 1), got Array(0.5, dtype=float32). "
        + ON_THE_HOST,
    ),
    case(
        "step_traced",
        lambda: traced(lambda t: cubic(begin_step=t)),
        TypeError,
        "begin_step must be an int, got a traced value. Steps are decided on the host, before "
        "tracing: pass a Python int.",
    ),
    case(
        "begin_after_end",
        lambda: cubic(begin_step=20),
        ValueError,
        "end_step must be at least begin_step, got begin_step=20 and end_step=10. Did you swap "
        "them?",
    ),
    case("every_zero", lambda: cubic(every=0), ValueError, "every must be at least 1, got 0."),
    case(
        "every_negative", lambda: cubic(every=-1), ValueError, "every must be at least 1, got -1."
    ),
    case("every_float", lambda: cubic(every=0.5), TypeError, "every must be an int, got 0.5."),
    case("every_bool", lambda: cubic(every=True), TypeError, "every must be an int, got True."),
    case(
        "too_many_fires",
        lambda: cubic(end_step=200_000, every=1),
        ValueError,
        "every=1 from step 0 to step 200000 makes 200001 fires; at most 100000 are tabulated. "
        "Recompute the masks less often, every=200 for 1000 times.",
    ),
    case(
        "initial_above_final",
        lambda: cubic(initial_sparsity=0.75),
        ValueError,
        "initial_sparsity must be at most final_sparsity, got 0.75 > 0.5. Masks only shrink: "
        "start lower or end higher.",
    ),
    case(
        "power_zero",
        lambda: poly(power=0),
        ValueError,
        "power must be positive and finite, got 0.",
    ),
    case(
        "power_nan",
        lambda: poly(power=float("nan")),
        ValueError,
        "power must be positive and finite, got nan.",
    ),
    case(
        "power_inf",
        lambda: poly(power=float("inf")),
        ValueError,
        "power must be positive and finite, got inf.",
    ),
    case(
        "power_string",
        lambda: poly(power="3"),
        TypeError,
        "power must be a real number, got '3'.",
    ),
    case(
        "power_bool",
        lambda: poly(power=True),
        TypeError,
        "power must be a real number, got True.",
    ),
    case(
        "read_off_falling",
        lambda: read_off(optax.linear_schedule(0.75, 0.25, 10)),
        ValueError,
        "from_optax_schedule: the sparsity falls from 0.75 at step 0 to 0.5 at step 5, but masks "
        "only shrink. Pass a schedule of the fraction of zeros that never falls.",
    ),
    case(
        "read_off_percent",
        lambda: read_off(optax.linear_schedule(0, 90, 10)),
        ValueError,
        "from_optax_schedule: fn(5) is a fraction of zeros in [0, 1), got 45.0. Did you mean 0.45?",
    ),
    case(
        "read_off_one",
        lambda: read_off(optax.linear_schedule(0, 1.0, 10)),
        ValueError,
        "from_optax_schedule: fn(10) is a fraction of zeros in [0, 1), got 1.0. Sparsity 1 would "
        "leave no weight.",
    ),
    case(
        "read_off_nan",
        lambda: read_off(constant(jnp.nan)),
        ValueError,
        "from_optax_schedule: fn(0) is a fraction of zeros in [0, 1), got nan.",
    ),
    case(
        "read_off_nothing",
        lambda: read_off(constant(None)),
        TypeError,
        "from_optax_schedule: fn(0) must be a real number in [0, 1), got None.",
    ),
    case(
        "read_off_vector",
        lambda: read_off(constant(np.float32([0.5, 0.5]))),
        TypeError,
        "from_optax_schedule: fn(0) must be a real number in [0, 1), got "
        "array([0.5, 0.5], dtype=float32).",
    ),
    case(
        "read_off_number",
        lambda: read_off(0.5),
        TypeError,
        "from_optax_schedule: `fn` must be a function of the step, got 0.5. For a constant "
        "sparsity use one_shot_schedule.",
    ),
    case(
        "read_off_optimizer",
        lambda: read_off(ADAM),
        TypeError,
        "from_optax_schedule: `fn` must be a function of the step, got a "
        "GradientTransformationExtraArgs. For a constant sparsity use one_shot_schedule.",
    ),
    case(
        "read_off_begin_after_end",
        lambda: read_off(constant(0.5), begin=20),
        ValueError,
        "end_step must be at least begin_step, got begin_step=20 and end_step=10. Did you swap "
        "them?",
    ),
    case(
        "too_few_targets",
        lambda: jaxprune.SparsitySchedule(0, 10, 5, (Fraction(1, 2),)),
        ValueError,
        "targets must hold one sparsity per fire, here 3, got 1. cubic_schedule and "
        "from_optax_schedule compute them.",
    ),
    case(
        "falling_targets",
        lambda: jaxprune.SparsitySchedule(0, 10, 5, (0.1, 0.5, 0.25)),
        ValueError,
        "targets must not fall, because masks only shrink, got 0.5 at step 5 and 0.25 at step 10.",
    ),
    case(
        "one_target",
        lambda: jaxprune.SparsitySchedule(0, 0, 1, 0.5),
        TypeError,
        "targets must be a tuple of sparsities, got 0.5.",
    ),
]

BUILD_ONE = "Build one with jaxprune.cubic_schedule(0.9, begin_step=..., end_step=...)."
FOR_A_NUMBER = (
    "For a constant sparsity pass jaxprune.one_shot_schedule(sparsity), for a gradual one "
    "jaxprune.cubic_schedule(sparsity, begin_step=..., end_step=...)."
)
ONE_RULE = "must be a regex, a function (path, leaf) -> bool, or a sequence of these, got"
EACH_RULE = "each rule must be a regex or a function (path, leaf) -> bool, got"
WHOLE_PATHS = 'Rules match whole paths: write ".*kernel", not "*kernel".'


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
        f"schedule must be a jaxprune.SparsitySchedule, got 0.9. {FOR_A_NUMBER}",
    ),
    case(
        "schedule_array",
        lambda: jaxprune.prune(jnp.float32(0.5)),
        TypeError,
        "schedule must be a jaxprune.SparsitySchedule, got Array(0.5, dtype=float32). "
        + FOR_A_NUMBER,
    ),
    case(
        "schedule_is_an_optimizer",
        lambda: jaxprune.prune(ADAM),
        TypeError,
        "schedule must be a jaxprune.SparsitySchedule, got a GradientTransformationExtraArgs. "
        "Pass the optimizer by name: prune(schedule, inner=optimizer).",
    ),
    case(
        "schedule_is_an_optax_schedule",
        lambda: jaxprune.prune(OPTAX_SCHEDULE),
        TypeError,
        f"schedule must be a jaxprune.SparsitySchedule, got {OPTAX_SCHEDULE!r}. Wrap it: "
        "jaxprune.from_optax_schedule(fn, begin_step=..., end_step=...).",
    ),
    case(
        "schedule_none",
        lambda: jaxprune.prune(None),
        TypeError,
        f"schedule must be a jaxprune.SparsitySchedule, got None. {BUILD_ONE}",
    ),
    case(
        "schedule_is_the_params",
        lambda: jaxprune.prune(params()),
        TypeError,
        f"schedule must be a jaxprune.SparsitySchedule, got a dict. {BUILD_ONE}",
    ),
    case(
        "inner_number",
        lambda: jaxprune.prune(HALF, inner=3e-4),
        TypeError,
        "inner must be an optax transformation such as optax.adamw(3e-4), got 0.0003.",
    ),
    case(
        "inner_not_called",
        lambda: jaxprune.prune(HALF, inner=optax.adamw),
        TypeError,
        f"inner must be an optax transformation such as optax.adamw(3e-4), got {optax.adamw!r}.",
    ),
    case(
        "inner_is_the_schedule",
        lambda: jaxprune.prune(HALF, inner=cubic()),
        TypeError,
        "inner must be an optax transformation such as optax.adamw(3e-4), got a SparsitySchedule.",
    ),
    case(
        "include_number",
        lambda: jaxprune.prune(HALF, include=5),
        TypeError,
        f"include {ONE_RULE} 5.",
    ),
    case(
        "include_set",
        lambda: jaxprune.prune(HALF, include={"w"}),
        TypeError,
        f"include {ONE_RULE} {{'w'}}.",
    ),
    case(
        "include_bytes",
        lambda: jaxprune.prune(HALF, include=b"w"),
        TypeError,
        f"include {ONE_RULE} b'w'.",
    ),
    case(
        "include_none_of_them",
        lambda: jaxprune.prune(HALF, include=()),
        ValueError,
        "include must hold at least one rule, got none. Leave it out for the default.",
    ),
    case(
        "include_glob",
        lambda: jaxprune.prune(HALF, include="*kernel"),
        ValueError,
        "include: '*kernel' is not a regular expression (nothing to repeat at position 0). "
        + WHOLE_PATHS,
    ),
    case(
        "include_unhashable",
        lambda: jaxprune.prune(HALF, include=Unhashable()),
        TypeError,
        "include: Unhashable(floor=0.0) cannot be hashed, so that what it chose can't be "
        "remembered. Wrap it: lambda path, leaf: rule(path, leaf).",
    ),
    case(
        "exclude_number",
        lambda: jaxprune.prune(HALF, exclude=5),
        TypeError,
        f"exclude {ONE_RULE} 5.",
    ),
    case(
        "exclude_holds_a_number",
        lambda: jaxprune.prune(HALF, exclude=["b", 5]),
        TypeError,
        f"exclude: {EACH_RULE} 5.",
    ),
    case(
        "exclude_holds_a_list",
        lambda: jaxprune.prune(HALF, exclude=("b", ["w"])),
        TypeError,
        f"exclude: {EACH_RULE} ['w'].",
    ),
    case(
        "exclude_open_bracket",
        lambda: jaxprune.prune(HALF, exclude=["b", "("]),
        ValueError,
        "exclude: '(' is not a regular expression (missing ), unterminated subpattern at "
        "position 0). " + WHOLE_PATHS,
    ),
    case(
        "overrides_pairs",
        lambda: jaxprune.prune(HALF, overrides=[("w", 0.5)]),
        TypeError,
        "overrides must map regexes to sparsities, like {\".*head/kernel\": 0.5}, got [('w', "
        "0.5)].",
    ),
    case(
        "overrides_number",
        lambda: jaxprune.prune(HALF, overrides=0.5),
        TypeError,
        'overrides must map regexes to sparsities, like {".*head/kernel": 0.5}, got 0.5.',
    ),
    case(
        "overrides_key",
        lambda: jaxprune.prune(HALF, overrides={5: 0.5}),
        TypeError,
        f"overrides: {EACH_RULE} 5.",
    ),
    case(
        "overrides_glob",
        lambda: jaxprune.prune(HALF, overrides={"*kernel": 0.5}),
        ValueError,
        "overrides: '*kernel' is not a regular expression (nothing to repeat at position 0). "
        + WHOLE_PATHS,
    ),
    case(
        "overrides_of_a_schedule_that_ends_at_zero",
        lambda: jaxprune.prune(jaxprune.one_shot_schedule(0.0), overrides={"w": 0.5}),
        ValueError,
        "overrides scale the schedule to another final sparsity, but this schedule ends at 0. "
        "Use a schedule with a positive final_sparsity.",
    ),
    case(
        "distribution_string",
        lambda: jaxprune.prune(HALF, distribution="uniform"),
        TypeError,
        "distribution must be a Distribution such as jaxprune.uniform, got 'uniform'.",
    ),
    case(
        "structure_none",
        lambda: jaxprune.prune(HALF, structure=None),
        TypeError,
        "structure must be a structure such as jaxprune.Unstructured(), got None.",
    ),
    case(
        "structure_not_called",
        lambda: jaxprune.prune(HALF, structure=jaxprune.Unstructured),
        TypeError,
        "structure must be a structure such as jaxprune.Unstructured(), got "
        "<class 'jaxprune.Unstructured'>.",
    ),
    case(
        "score_string",
        lambda: jaxprune.prune(HALF, score="magnitude"),
        TypeError,
        "score must be a function such as jaxprune.magnitude, got 'magnitude'.",
    ),
    case(
        "score_unhashable",
        lambda: jaxprune.prune(HALF, score=Unhashable()),
        TypeError,
        "score: Unhashable(floor=0.0) cannot be hashed, so that its compilation can't be "
        "remembered. Wrap it: lambda params, grads, key: score(params, grads, key).",
    ),
    case(
        "inject_hyperparams",
        lambda: injected(jaxprune.prune, HALF),
        TypeError,
        "score must be a function such as jaxprune.magnitude, got Array(0, dtype=int32). If "
        "optax.inject_hyperparams made an array of it, name it there: inject_hyperparams(prune, "
        "static_args=('score',)).",
    ),
    case(
        "inject_hyperparams_of_a_sparsity",
        lambda: injected(lambda s: jaxprune.prune(cubic(s)), 0.5),
        TypeError,
        "final_sparsity must be a real number in [0, 1), got Array(0.5, dtype=float32). "
        + ON_THE_HOST,
    ),
    case(
        "plan_percent",
        lambda: jaxprune.plan(params(), 90),
        ValueError,
        "schedule is a fraction of zeros in [0, 1), got 90. Did you mean 0.9?",
    ),
    case(
        "plan_none",
        lambda: jaxprune.plan(params(), None),
        TypeError,
        "schedule must be a jaxprune.SparsitySchedule or a final sparsity, got None. " + BUILD_ONE,
    ),
    case(
        "plan_optax_schedule",
        lambda: jaxprune.plan(params(), OPTAX_SCHEDULE),
        TypeError,
        "schedule must be a jaxprune.SparsitySchedule or a final sparsity, got "
        f"{OPTAX_SCHEDULE!r}. Wrap it: jaxprune.from_optax_schedule(fn, begin_step=..., "
        "end_step=...).",
    ),
    case(
        "plan_swapped",
        lambda: jaxprune.plan(HALF, params()),
        TypeError,
        "schedule must be a jaxprune.SparsitySchedule or a final sparsity, got a dict. "
        f"{BUILD_ONE}",
    ),
    case(
        "plan_include",
        lambda: jaxprune.plan(params(), HALF, include=5),
        TypeError,
        f"include {ONE_RULE} 5.",
    ),
    case(
        "prune_params_swapped",
        lambda: jaxprune.prune_params(0.5, params()),
        TypeError,
        "sparsity must be a real number in [0, 1), got a dict.",
    ),
    case(
        "prune_params_traced_sparsity",
        lambda: traced(lambda s: jaxprune.prune_params(params(), s)),
        TypeError,
        f"sparsity must be a real number in [0, 1), got a traced value. {ON_THE_HOST}",
    ),
    case(
        "prune_params_exclude",
        lambda: jaxprune.prune_params(params(), 0.5, exclude=5),
        TypeError,
        f"exclude {ONE_RULE} 5.",
    ),
    case(
        "masks_from_params_include",
        lambda: jaxprune.masks_from_params(params(), include="*"),
        ValueError,
        "include: '*' is not a regular expression (nothing to repeat at position 0). "
        f"{WHOLE_PATHS}",
    ),
    case(
        "masks_from_params_exclude",
        lambda: jaxprune.masks_from_params(params(), exclude=5),
        TypeError,
        f"exclude {ONE_RULE} 5.",
    ),
]

ONLY_FLOATS = (
    "cannot be pruned; only floating point and complex weights can. Leave the leaf out with"
)


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
        f"a/n: dtype int32 {ONLY_FLOATS} exclude='a/n'.",
    ),
    case(
        "bool",
        lambda: jaxprune.prune_params(
            {"w": ones(2, 2), "m": ones(2, dtype=bool)}, 0.5, include=".*"
        ),
        ValueError,
        f"m: dtype bool {ONLY_FLOATS} exclude='m'.",
    ),
    case(
        "prng_key",
        lambda: jaxprune.plan({"w": ones(2, 2), "k": keys()}, HALF, include=("w", "k")),
        ValueError,
        f"k: dtype key<fry> {ONLY_FLOATS} exclude='k'.",
    ),
    case(
        "int32_in_masks_from_params",
        lambda: jaxprune.masks_from_params(params(), include=".*"),
        ValueError,
        f"n: dtype int32 {ONLY_FLOATS} exclude='n'.",
    ),
    case(
        "float8_without_a_zero",
        lambda: init({"w": ones(2, 2), "s": ones(2, 2, dtype=jnp.float8_e8m0fnu)}),
        ValueError,
        "s: dtype float8_e8m0fnu has no zero, so a weight cannot be dropped. Leave the leaf out "
        "with exclude='s'.",
    ),
    case(
        "int32_root",
        lambda: init(ones(2, 2, dtype=jnp.int32), include=".*"),
        ValueError,
        f"(root): dtype int32 {ONLY_FLOATS} exclude=''.",
    ),
    case(
        "emptied",
        lambda: init({"a": {"w": ones(1, 2)}, "w": ones(4, 4), "b": ones(4)}, cubic(0.9)),
        ValueError,
        "a/w: shape (1, 2) would lose all of its 2 weights at sparsity 0.9. Leave it out with "
        "exclude='a/w', or lower its sparsity with overrides={'a/w': ...}.",
    ),
    case(
        "emptied_by_an_override",
        lambda: init({"a": {"w": ones(1, 2)}, "w": ones(4, 4)}, overrides={"a/w": 0.8}),
        ValueError,
        "a/w: shape (1, 2) would lose all of its 2 weights at sparsity 0.8. Leave it out with "
        "exclude='a/w', or lower its sparsity with overrides={'a/w': ...}.",
    ),
    case(
        "emptied_root",
        lambda: jaxprune.prune_params(ones(1, 2), 0.9),
        ValueError,
        "(root): shape (1, 2) would lose all of its 2 weights at sparsity 0.9. Leave it out with "
        "exclude='', or lower its sparsity with overrides={'': ...}.",
    ),
    case(
        "emptied_at_a_path_that_is_no_regex",
        lambda: init({"conv[1]+": ones(1, 2), "w": ones(4, 4)}, cubic(0.9)),
        ValueError,
        "conv[1]+: shape (1, 2) would lose all of its 2 weights at sparsity 0.9. Leave it out with "
        r"exclude='conv\\[1\\]\\+', or lower its sparsity with overrides={'conv\\[1\\]\\+': ...}.",
    ),
    case(
        "too_many_weights_to_shuffle",
        lambda: jax.eval_shape(jaxprune.prune(HALF, ties="hashed").init, big(2**16, 2**15)),
        ValueError,
        'a/w: it competes in a pool of 2147483648, but ties="hashed" shuffles at most 2**31 - 2. '
        'Use ties="index".',
    ),
    case(
        "nothing_by_default",
        lambda: init({"b": ones(4), "n": ones(2, 2, dtype=jnp.int32), "name": "mlp"}),
        ValueError,
        "nothing to prune: none of the 3 leaves is chosen: b (1-D), n (dtype int32), name (not "
        "an array). " + INCLUDE_OTHERS,
    ),
    case(
        "nothing_of_many",
        lambda: jaxprune.prune_params({f"b{i}": ones(4) for i in range(10)}, 0.5),
        ValueError,
        "nothing to prune: none of the 10 leaves is chosen: b0 (1-D), b1 (1-D), b2 (1-D), b3 "
        f"(1-D), b4 (1-D), b5 (1-D), b6 (1-D), b7 (1-D), and 2 more. {INCLUDE_OTHERS}",
    ),
    case(
        "nothing_included",
        lambda: init({"fc": {"kernel": ones(2, 2), "bias": ones(2)}}, include="kernel"),
        ValueError,
        "nothing to prune: none of the 2 leaves is chosen: fc/bias (not matched by include), "
        "fc/kernel "
        '(not matched by include). A regex matches the whole path: write include=".*kernel", not '
        '"kernel".',
    ),
    case(
        "everything_excluded",
        lambda: jaxprune.plan({"w": ones(2, 2), "b": ones(2)}, HALF, exclude=".*"),
        ValueError,
        "nothing to prune: none of the 2 leaves is chosen: b (excluded by '.*'), w (excluded by "
        "'.*'). " + INCLUDE_OTHERS,
    ),
    case(
        "flatten",
        lambda: optax.flatten(jaxprune.prune(HALF)).init({"w": ones(2, 2), "b": ones(2)}),
        ValueError,
        f"nothing to prune: none of the 1 leaves is chosen: (root) (1-D). {INCLUDE_OTHERS} If "
        "optax.flatten made one leaf of many, flatten the optimizer alone: "
        "optax.chain(optax.flatten(optimizer), jaxprune.prune(schedule)).",
    ),
    case(
        "score_of_another_shape",
        lambda: scored(lambda params, grads, key: jnp.sum(params)),
        ValueError,
        "w: score returned float32 of shape () for float32 of shape (2, 4); it must return one "
        "real floating point score per weight, as jaxprune.magnitude does.",
    ),
    case(
        "score_of_integers",
        lambda: scored(lambda params, grads, key: jnp.ones(params.shape, jnp.int32)),
        ValueError,
        "w: score returned int32 of shape (2, 4) for float32 of shape (2, 4); it must return one "
        "real floating point score per weight, as jaxprune.magnitude does.",
    ),
    case(
        "score_of_nothing",
        lambda: scored(lambda params, grads, key: None),
        ValueError,
        "w: score returned NoneType for float32 of shape (2, 4); it must return one real "
        "floating point score per weight, as jaxprune.magnitude does.",
    ),
]

DIFFER = "and the params differ in structure:"

UPDATES = [
    case(
        "no_params",
        lambda: jaxprune.prune(HALF).update(params(), start()),
        ValueError,
        "jaxprune.prune needs the params: call tx.update(updates, state, params).",
    ),
    case(
        "update_none_at_a_pruned_leaf",
        lambda: update({**params(), "w": None}),
        ValueError,
        "w: the update is None, but the leaf is pruned. Leave it out with exclude='w', or give "
        "it a gradient.",
    ),
    case(
        "update_of_another_shape",
        lambda: update({**params(), "w": ones(4, 2)}),
        ValueError,
        "w: the update has shape (4, 2) but the param has shape (2, 4). Pass gradients with "
        "respect to these params.",
    ),
    case(
        "update_without_a_leaf",
        lambda: update({"w": ones(2, 4), "n": ones(3)}),
        ValueError,
        f"jaxprune.prune: the updates {DIFFER} the params have b, the updates do not. "
        + OTHER_STRUCTURE,
    ),
    case(
        "update_with_another_leaf",
        lambda: update({**params(), "c": {"kernel": ones(2, 2)}}),
        ValueError,
        f"jaxprune.prune: the updates {DIFFER} the updates have c/kernel, the params do not. "
        + OTHER_STRUCTURE,
    ),
    case(
        "update_nested_deeper",
        lambda: update({**params(), "w": {"kernel": ones(2, 4)}}),
        ValueError,
        f"jaxprune.prune: the updates {DIFFER} the params have w, the updates do not; the updates "
        f"have w/kernel, the params do not. {OTHER_STRUCTURE}",
    ),
    case(
        "update_in_another_container",
        lambda: jaxprune.prune(HALF).update(
            (ones(2, 4), ones(4)), init([ones(2, 4), ones(4)]), [ones(2, 4), ones(4)]
        ),
        ValueError,
        f"jaxprune.prune: the updates {DIFFER} the same paths, but in other containers. "
        + OTHER_STRUCTURE,
    ),
    case(
        "params_of_another_model",
        lambda: update({"v": ones(2, 4)}, tree={"v": ones(2, 4)}),
        ValueError,
        f"jaxprune.prune: the masks in the state {DIFFER} the params have v, the masks in the "
        f"state do not; the masks in the state have b, n, w, the params do not. {OTHER_STRUCTURE}",
    ),
    case(
        "inner_that_loses_a_leaf",
        lambda: update(
            inner=optax.stateless(lambda updates, params: {"w": updates["w"]}),
        ),
        ValueError,
        f"jaxprune.prune: the updates of `inner` {DIFFER} the params have b, n, the updates of "
        f"`inner` do not. {OTHER_STRUCTURE}",
    ),
    case(
        "state_of_a_chain",
        lambda: update(state=(start(), optax.EmptyState())),
        TypeError,
        "jaxprune.prune: the state must be a PruneState, got a tuple. Pass what init or the last "
        "update of this transformation returned; restore a checkpoint into the structure of "
        "tx.init(params).",
    ),
    case(
        "state_restored_as_a_dict",
        lambda: update(state=start()._asdict()),
        TypeError,
        "jaxprune.prune: the state must be a PruneState, got a dict. Pass what init or the last "
        "update of this transformation returned; restore a checkpoint into the structure of "
        "tx.init(params).",
    ),
    case(
        "masks_of_another_shape",
        lambda: update(state=with_masks(w=jnp.ones((4, 2), jnp.uint8))),
        ValueError,
        f"w: the mask has shape (4, 2) but the param has shape (2, 4). {OTHER_MODEL}",
    ),
    case(
        "masks_of_another_shape_at_a_leaf_that_is_not_pruned",
        lambda: update(state=with_masks(b=jnp.ones((5,), jnp.uint8))),
        ValueError,
        f"b: the mask has shape (5,) but the param has shape (4,). {OTHER_MODEL}",
    ),
    case(
        "masks_without_a_leaf",
        lambda: update(state=with_masks(w=None)),
        ValueError,
        f"jaxprune.prune: the masks in the state {DIFFER} the params have w, the masks in the "
        f"state do not. {OTHER_STRUCTURE}",
    ),
    case(
        "thresholds_of_another_model",
        lambda: update(state=start()._replace(thresholds=jnp.zeros((5,), jnp.float32))),
        ValueError,
        f"the thresholds in the state have shape (5,) but the params have 3 leaves. {OTHER_MODEL}",
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
        f"no prune state in tuple. {NO_STATE}",
    ),
    case(
        "no_state_but_params",
        lambda: jaxprune.get_masks(params()),
        ValueError,
        f"no prune state in dict. {NO_STATE}",
    ),
    case(
        "no_state_for_metrics",
        lambda: jaxprune.metrics(None),
        ValueError,
        f"no prune state in NoneType. {NO_STATE}",
    ),
    case(
        "two_states",
        lambda: jaxprune.get_state(two_prunes()),
        ValueError,
        "2 prune states found. Pass the part of the optimizer state that holds the one you mean; "
        "get_masks and apply_masks merge them all.",
    ),
    case(
        "two_states_for_metrics",
        lambda: jaxprune.metrics(two_prunes()),
        ValueError,
        "2 prune states found. Pass the part of the optimizer state that holds the one you mean; "
        "get_masks and apply_masks merge them all.",
    ),
    case(
        "masks_of_two_models",
        lambda: jaxprune.get_masks(two_prunes({"v": ones(2, 4), "b": ones(4), "n": ones(3)})),
        ValueError,
        "the prune states found hold masks of different trees; pass one of them.",
    ),
    case(
        "masks_of_two_shapes",
        lambda: jaxprune.get_masks(two_prunes({"w": ones(4, 4), "b": ones(4), "n": ones(3)})),
        ValueError,
        "the prune states found hold masks of different trees; pass one of them.",
    ),
    case(
        "apply_unknown_path",
        lambda: jaxprune.apply_masks(params(), {"head": {"w": ones(2, 4)}}),
        ValueError,
        "head/w: a mask, but no such param; the params have b, n, w. Pass masks like the params, "
        "or an optimizer state with jaxprune.prune in it.",
    ),
    case(
        "apply_to_other_params",
        lambda: jaxprune.apply_masks({f"w{i}": ones(2, 4) for i in range(10)}, start()),
        ValueError,
        "b: a mask, but no such param; the params have w0, w1, w2, w3, w4, w5, w6, w7, and 2 "
        "more. Pass the tree that the optimizer was initialised with.",
    ),
    case(
        "apply_another_shape",
        lambda: jaxprune.apply_masks(params(), {"w": ones(4, 2)}),
        ValueError,
        f"w: the mask has shape (4, 2) but the param has shape (2, 4). {OTHER_MODEL}",
    ),
    case(
        "apply_another_shape_at_the_root",
        lambda: jaxprune.apply_masks(ones(2, 4), ones(4, 2)),
        ValueError,
        f"(root): the mask has shape (4, 2) but the param has shape (2, 4). {OTHER_MODEL}",
    ),
    case(
        "apply_nothing",
        lambda: jaxprune.apply_masks(params(), None),
        ValueError,
        "no mask in NoneType. Pass masks like the params, or an optimizer state with "
        "jaxprune.prune in it.",
    ),
    case(
        "apply_a_state_without_masks",
        lambda: jaxprune.apply_masks(params(), optax.sgd(0.1).init(params())),
        ValueError,
        "no mask in tuple. Pass masks like the params, or an optimizer state with jaxprune.prune "
        "in it.",
    ),
    case(
        "apply_the_state_of_another_optimizer",
        lambda: jaxprune.apply_masks(params(), optax.trace(0.9).init(params())),
        ValueError,
        "trace/b: a mask, but no such param; the params have b, n, w. Pass masks like the "
        "params, or an optimizer state with jaxprune.prune in it.",
    ),
    case(
        "summarize_another_shape",
        lambda: jaxprune.summarize(params(), {"w": ones(3)}),
        ValueError,
        f"w: the mask has shape (3,) but the param has shape (2, 4). {OTHER_MODEL}",
    ),
    case(
        "straight_through_another_shape",
        lambda: jaxprune.straight_through(
            {"fc": {"w": ones(2, 4)}, "b": ones(4)}, {"fc": {"w": ones(4)}, "b": ones(4)}
        ),
        ValueError,
        "fc/w: the mask has shape (4,) but the param has shape (2, 4). Pass masks like the "
        "params, such as jaxprune.get_masks(opt_state).",
    ),
    case(
        "check_no_state",
        lambda: jaxprune.check(params(), ADAM.init(params())),
        ValueError,
        f"no prune state in tuple. {NO_STATE}",
    ),
    case(
        "check_swapped",
        lambda: jaxprune.check(start(), params()),
        ValueError,
        f"no prune state in dict. {NO_STATE}",
    ),
    case(
        "check_moved",
        lambda: jaxprune.check(*moved((0, 0.5), (2, -0.5))),
        ValueError,
        f"w: 2 of 4 dropped weights are not zero. {MISPLACED}",
    ),
    case(
        "check_one_moved",
        lambda: jaxprune.check(*moved((0, 1e-45))),  # subnormal: XLA on CPU takes it for zero
        ValueError,
        f"w: 1 of 4 dropped weights is not zero. {MISPLACED}",
    ),
    case(
        "check_nan",
        lambda: jaxprune.check(*moved((1, jnp.nan))),
        ValueError,
        f"w: 1 of 4 dropped weights is not zero, 1 of them not finite. {NOT_FINITE}",
    ),
    case(
        "check_inf_and_moved",
        lambda: jaxprune.check(*moved((1, -jnp.inf), (2, 1.0), (3, jnp.nan))),
        ValueError,
        f"w: 3 of 4 dropped weights are not zero, 2 of them not finite. {NOT_FINITE}",
    ),
    case(
        "check_violations",
        lambda: jaxprune.check(
            half_pruned()[0], half_pruned()[1]._replace(violations=jnp.int32(3))
        ),
        ValueError,
        f"every dropped weight is zero now, but a fire found 3 that had moved. {MISPLACED}",
    ),
    case(
        "check_other_params",
        lambda: jaxprune.check({"v": ones(2, 4)}, start()),
        ValueError,
        "b: a mask, but no such param; the params have v. Pass the tree that the optimizer was "
        "initialised with.",
    ),
    case(
        "check_another_shape",
        lambda: jaxprune.check({**params(), "w": ones(4, 2)}, start()),
        ValueError,
        f"w: the mask has shape (2, 4) but the param has shape (4, 2). {OTHER_MODEL}",
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
        "topk_mask: `n_keep` must be in [0, 3], got -1.",
    ),
    case(
        "n_keep_above_size",
        lambda: jaxprune.topk_mask(scores(), 4),
        ValueError,
        "topk_mask: `n_keep` must be in [0, 3], got 4.",
    ),
    case(
        "n_keep_float",
        lambda: jaxprune.topk_mask(scores(), 1.0),
        TypeError,
        "topk_mask: `n_keep` must be an integer, got 1.0.",
    ),
    case(
        "n_keep_string",
        lambda: jaxprune.topk_mask(scores(), "1"),
        TypeError,
        "topk_mask: `n_keep` must be an integer, got '1'.",
    ),
    case(
        "n_keep_bool",
        lambda: jaxprune.topk_mask(scores(), True),
        TypeError,
        "topk_mask: `n_keep` must be an integer, got True.",
    ),
    case(
        "n_keep_list",
        lambda: jaxprune.topk_mask(scores(), [1]),
        TypeError,
        "topk_mask: `n_keep` must be an integer, got [1].",
    ),
    case(
        "n_keep_vector",
        lambda: jaxprune.topk_mask(scores(), np.int32([1, 2])),
        TypeError,
        "topk_mask: `n_keep` must be an integer, got array([1, 2], dtype=int32).",
    ),
    case(
        "n_keep_of_one_leaf",
        lambda: jaxprune.topk_masks([scores(), scores()], [1, 7]),
        ValueError,
        "topk_masks: n_keep[1] must be in [0, 3], got 7.",
    ),
    case(
        "n_keep_of_all",
        lambda: jaxprune.topk_masks([scores(), scores()], 7, pool="global"),
        ValueError,
        "topk_masks: `n_keep` must be in [0, 6], got 7.",
    ),
    case(
        "n_keep_list_of_all",
        lambda: jaxprune.topk_masks([scores(), scores()], [1, 1], pool="global"),
        TypeError,
        "topk_masks: `n_keep` must be an integer, got [1, 1].",
    ),
    case(
        "too_few_counts",
        lambda: jaxprune.topk_masks([scores(), scores()], [1]),
        ValueError,
        "topk_masks: `n_keep` must hold one count per array, here 2, got [1]. One count over all "
        "arrays "
        'wants pool="global".',
    ),
    case(
        "one_count",
        lambda: jaxprune.topk_masks([scores(), scores()], 2),
        ValueError,
        "topk_masks: `n_keep` must hold one count per array, here 2, got 2. One count over all "
        "arrays "
        'wants pool="global".',
    ),
    case(
        "pool",
        lambda: jaxprune.topk_masks([scores()], [1], pool="layer"),
        ValueError,
        'topk_masks: `pool` must be "leaf" or "global", got \'layer\'.',
    ),
    case(
        "scores_int",
        lambda: jaxprune.topk_mask(jnp.arange(3, dtype=jnp.int32), 1),
        TypeError,
        "topk_mask: `scores` must be real floating point, got int32 of shape (3,). Cast them with "
        ".astype(jnp.float32).",
    ),
    case(
        "scores_complex",
        lambda: jaxprune.topk_masks([scores(), ones(2, dtype=jnp.complex64)], [1, 1]),
        TypeError,
        "topk_masks: scores[1] must be real floating point, got complex64 of shape (2,). Cast "
        "them with .astype(jnp.float32).",
    ),
    case(
        "scores_tree",
        lambda: jaxprune.topk_masks({"a": scores()}, [1]),
        TypeError,
        "topk_masks: `scores` must be a list of arrays, got a dict. Pass one array to topk_mask, "
        "and of a tree jax.tree.leaves(scores).",
    ),
    case(
        "too_many_scores_to_shuffle",
        lambda: jax.eval_shape(
            lambda *s: jaxprune.topk_masks(s, 1, pool="global", ties="hashed"),
            *[shape_of(2**15, 2**15)] * 2,
        ),
        ValueError,
        'a pool of 2147483648 scores: ties="hashed" shuffles at most 2**31 - 2. Use ties="index".',
    ),
]

LATER = [
    case(
        "two_leaves_of_one_path",
        lambda: jaxprune.plan({"a/b": ones(2, 2), "a": {"b": ones(2, 2)}}, 0.5),
        ValueError,
        "a/b: two leaves have this path. Rename a key that contains '/'.",
    ),
    case(
        "inner_that_changes_a_shape",
        lambda: update(
            inner=optax.stateless(lambda updates, params: {**updates, "w": updates["w"][0]})
        ),
        ValueError,
        "w: the update of `inner` has shape (4,) but the param has shape (2, 4). Pass gradients "
        "with respect to these params.",
    ),
    case(
        "schedule_not_called",
        lambda: jaxprune.prune(jaxprune.cubic_schedule),
        TypeError,
        f"schedule must be a jaxprune.SparsitySchedule, got {jaxprune.cubic_schedule!r}. Call it: "
        "jaxprune.cubic_schedule(0.9, ...).",
    ),
    case(
        "restored_step_of_floats",
        lambda: update(state=start()._replace(prune_step=jnp.zeros(()))),
        ValueError,
        "prune_step in the state must be an int32 scalar, got float32 of shape (). Restore "
        "checkpoints into the dtypes of tx.init(params).",
    ),
]
CASES = [*SCHEDULES, *ARGUMENTS, *LEAVES, *UPDATES, *STATES, *SELECTION, *LATER]


@pytest.mark.parametrize("call, kind, text", CASES)
def test_the_error_says_where_and_what_to_type_instead(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    assert str(caught.value) == text


def test_errors_are_whole_sentences_without_the_insides_of_jax():
    for name, text in ((case.id, case.values[2]) for case in CASES):
        assert text.endswith((".", "?")), name
        assert ".." not in text.replace("...", ""), name
        assert "  " not in text, name
        assert "\n" not in text, name
        assert "Tracer" not in text, name


# --- what an error tells to type works

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


# --- what looks like bad input and is not

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


def test_states_that_hide_whole_subtrees_from_each_other_are_merged():
    tree = {"fc": {"w": ones(2, 4), "b": ones(4)}, "head": {"w": ones(4, 2), "b": ones(2)}}
    hidden = {"fc": True, "head": False}  # a prefix: one placeholder stands for all of `head`
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


def test_a_score_of_one_argument_is_told_to_take_three():
    with pytest.raises(TypeError, match=r"fails on \(params, grads, key\) of w: .* wrap one that"):
        update(score=lambda params: jnp.abs(params))


def test_no_exclude_is_none():
    assert str(jaxprune.plan(params(), 0.5, exclude=None)) == str(jaxprune.plan(params(), 0.5))


def test_a_hundred_percent_means_all_of_them():
    shape = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    report = jaxprune.plan({"w": shape, "b": ones(3)}, Fraction(999_999, 1_000_000))
    assert report.leaves[1].n_zero == 999_999
    assert "100.00%" not in str(report)
    assert "99.99%" in str(report)
