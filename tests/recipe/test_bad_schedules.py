"""Wrong sparsities, steps and schedules, and valid ones that look wrong."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from bad_input import (
    ADAM,
    HALF,
    assert_error,
    case,
    constant,
    cubic,
    error_of,
    params,
    read_off,
    traced,
)
from helpers import assert_says, ones

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


NOT_STEPS = {
    "negative": (-1, ValueError, "-1", "0"),
    "float": (1e3, TypeError, "1000.0", "Did you mean 1000?"),
    "zero": (0.0, TypeError, "0.0", "Did you mean 0?"),
    "fractional": (1.5, TypeError, "1.5", "Did you mean 2?"),
    "rounded": (0.07 * 100, TypeError, "7.000000000000001", "Did you mean 7?"),
    "fraction_of_the_run": (0.1, TypeError, "0.1", "=int(0.1 * n_updates)"),
    "not_finite": (float("inf"), TypeError, "inf", "int"),
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


NOT_SCHEDULES = {
    "a_score": (jaxprune.magnitude, "jaxprune.cubic_schedule(0.9, begin_step=..., end_step=...)"),
    "prune": (jaxprune.prune, "jaxprune.cubic_schedule(0.9, begin_step=..., end_step=...)"),
    "the_class": (jaxprune.SparsitySchedule, "jaxprune.cubic_schedule(0.9, begin_step=..., "),
    "a_sum": (jaxprune.movement, "jaxprune.cubic_schedule(0.9, begin_step=..., end_step=...)"),
    "linear": (jaxprune.linear_schedule, "Call it: jaxprune.linear_schedule(0.9, ...)"),
    "one_shot": (jaxprune.one_shot_schedule, "Call it: jaxprune.one_shot_schedule(0.9, ...)"),
    "read_off": (jaxprune.from_optax_schedule, "Call it: jaxprune.from_optax_schedule(fn, ...)"),
    "of_optax": (optax.cosine_decay_schedule, "Wrap it: jaxprune.from_optax_schedule(fn, "),
}


@pytest.mark.parametrize("value, fix", NOT_SCHEDULES.values(), ids=NOT_SCHEDULES)
def test_a_function_in_place_of_a_schedule_is_told_what_to_call(value, fix):
    assert_says(error_of(lambda: jaxprune.prune(value), TypeError), "schedule must be", fix)


def poly(**arguments):
    return jaxprune.polynomial_schedule(0.5, 0, 10, **arguments)


SCHEDULES = [
    case(
        "density_percent",
        lambda: jaxprune.min_density(20),
        ValueError,
        ("min_density: density", ("kept weights", "20"), "Did you mean 0.2?"),
    ),
    case(
        "may_fall",
        lambda: jaxprune.SparsitySchedule(0, 0, 1, (0.5,), may_fall="no"),
        TypeError,
        ("may_fall", "'no'", "True or False"),
    ),
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
        ("every=1", ("200001 fires", "100000"), "every=200 makes about 1000 fires"),
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
        "read_off_a_function_that_fails",
        lambda: read_off(lambda step: {}["sparsities"]),
        TypeError,
        ("fn(0)", "KeyError: 'sparsities'", "optax.linear_schedule(0.0, 0.9, 1000)"),
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
        ("targets", ("0.5 at step 5", "0.25 at step 10"), ("increasing order", "may_fall=True")),
    ),
    case(
        "one_target",
        lambda: jaxprune.SparsitySchedule(0, 0, 1, 0.5),
        TypeError,
        ("targets", "0.5", "tuple"),
    ),
    case(
        "fires_at_a_fraction",
        lambda: HALF.fires(2.5),
        TypeError,
        ("fires: step", "2.5", "prune_step"),
    ),
    *(
        case(
            f"{method}_at_true",
            lambda method=method: getattr(HALF, method)(True),
            TypeError,
            (f"{method}: step", "True", "prune_step"),
        )
        for method in ("fires", "index", "sparsity")
    ),
    case(
        "fires_at_a_float",
        lambda: HALF.fires(2.0),
        TypeError,
        ("fires: step", "2.0", "Did you mean 2?"),
    ),
    case(
        "sparsity_at_a_string",
        lambda: HALF.sparsity("5"),
        TypeError,
        ("sparsity: step", "'5'", "int"),
    ),
    case(
        "index_of_floats",
        lambda: HALF.index(ones(2)),
        TypeError,
        ("index: step", "Array([1., 1.], dtype=float32)", "integers"),
    ),
    case(
        "power_beyond_floats", lambda: poly(power=10**400), ValueError, ("power", "int", "finite")
    ),
    case(
        "read_off_a_failing_function",
        lambda: read_off(lambda: 0.5),
        TypeError,
        ("from_optax_schedule: fn(0)", "TypeError", "optax.linear_schedule("),
    ),
]


@pytest.mark.parametrize("call, kind, parts", SCHEDULES)
def test_an_error_in_a_schedule_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)


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


def test_the_last_step_that_is_allowed():
    assert jaxprune.one_shot_schedule(0.5, 2**31 - 2).fire_steps == (2**31 - 2,)
