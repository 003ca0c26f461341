"""Fire steps and targets: the last one is always reached, exactly."""

import contextlib
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import jaxprune
from jaxprune._recipe.distributions import LeafShape, round_half_up, uniform

STEPS = st.tuples(st.integers(0, 40), st.integers(0, 60), st.integers(1, 80)).map(
    lambda t: (t[0], t[0] + t[1], t[2])
)
SPARSITIES = st.fractions(0, Fraction(99, 100), max_denominator=1000)


@given(steps=STEPS, final=SPARSITIES, power=st.sampled_from((1, 2, 3, 0.5, 2.5)))
def test_last_step_fires_even_off_the_grid_and_reaches_the_target(steps, final, power):
    begin, end, every = steps
    schedule = jaxprune.polynomial_schedule(final, begin, end, every, power=power)
    fired = [step for step in range(end + 100) if schedule.fires(step)]
    assert tuple(fired) == schedule.fire_steps == (*range(begin, end, every), end)
    assert schedule.targets[-1] == final
    assert schedule.sparsity(end) == schedule.sparsity(end + 99) == float(final)


@given(steps=STEPS, final=SPARSITIES, part=st.fractions(0, 1, max_denominator=20))
def test_cubic_targets_are_the_papers_equation(steps, final, part):
    begin, end, every = steps
    initial = part * final
    schedule = jaxprune.cubic_schedule(final, begin, end, every, initial)
    for step, target in zip(schedule.fire_steps, schedule.targets, strict=True):
        progress = Fraction(step - begin, end - begin) if end > begin else Fraction(1)
        assert target == final + (initial - final) * (1 - progress) ** 3


@given(steps=STEPS, final=SPARSITIES)
def test_targets_never_fall(steps, final):
    targets = jaxprune.cubic_schedule(final, *steps).targets
    assert all(a <= b for a, b in itertools.pairwise(targets))


@given(steps=STEPS, final=SPARSITIES)
def test_traced_steps_agree_with_host_steps(steps, final):
    schedule = jaxprune.cubic_schedule(final, *steps)
    steps = np.arange(105)
    assert schedule.fires(jnp.asarray(steps)).tolist() == [
        bool(schedule.fires(s)) for s in steps.tolist()
    ]
    assert schedule.index(jnp.asarray(steps)).tolist() == [
        schedule.index(s) for s in steps.tolist()
    ]
    expected = np.array([schedule.sparsity(s) for s in steps.tolist()], np.float32)
    np.testing.assert_array_equal(schedule.sparsity(jnp.asarray(steps)), expected)


def test_a_float_means_the_decimal_that_it_prints_as():
    for value in (0.9, np.float32(0.9), Fraction(9, 10)):
        assert jaxprune.one_shot_schedule(value).targets == (Fraction(9, 10),)


def test_one_shot_fires_once():
    schedule = jaxprune.one_shot_schedule(0.5, step=7)
    assert schedule.fire_steps == (7,)
    assert [schedule.sparsity(step) for step in (6, 7, 8)] == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("power", (1, 2, 3))
def test_optax_polynomials_give_the_same_targets(power):
    fn = optax.polynomial_schedule(0.0, 0.9, power, transition_steps=40, transition_begin=10)
    ours = jaxprune.polynomial_schedule(0.9, 10, 50, every=7, power=power)
    theirs = jaxprune.from_optax_schedule(fn, 10, 50, every=7)
    assert theirs.fire_steps == ours.fire_steps
    assert theirs.targets[-1] == ours.targets[-1] == Fraction(9, 10)
    np.testing.assert_allclose(  # optax evaluates in float32
        [float(t) for t in theirs.targets], [float(t) for t in ours.targets], rtol=0, atol=1e-6
    )


def test_optax_schedules_can_be_read_while_tracing():
    def steps(x):
        fn = optax.linear_schedule(0.0, 0.5, 10)
        return jaxprune.from_optax_schedule(fn, 0, 10, every=5).sparsity(x)

    assert jax.jit(steps)(jnp.int32(10)) == 0.5


def test_a_dip_of_rounding_size_is_levelled():
    schedule = jaxprune.from_optax_schedule(
        lambda step: 0.5 - 1e-7 * step.astype(float), 0, 2, every=1
    )
    assert schedule.targets == (Fraction(1, 2),) * 3


@given(n=st.integers(0, 10**6), target=SPARSITIES)
def test_budgets_are_the_exact_product_rounded_half_up(n, target):
    pools = uniform.assign([LeafShape("w", (n,), n, (target,))])
    product = target * n
    low = product.numerator // product.denominator
    assert pools.n_drop.tolist() == [[low + (product - low >= Fraction(1, 2))]]


def test_budgets_are_exact_where_float32_is_not():
    n = 2**30 + 1
    target = Fraction(9, 10)
    assert round_half_up(target * n) == 966367643  # 0.9 * 1073741825 = 966367642.5
    assert round(float(np.float32(0.9) * np.float32(n))) != 966367643


@pytest.mark.parametrize("power", (101, 1e3, 1e9, 1e308, 2**1000))
def test_large_powers_are_evaluated_in_double_precision(power):
    schedule = jaxprune.polynomial_schedule(0.5, 0, 10, every=1, power=power)
    expected = [Fraction(1, 2) * (1 - Fraction((1 - t / 10) ** float(power))) for t in range(11)]
    assert [float(t) for t in schedule.targets] == pytest.approx([float(t) for t in expected])
    assert schedule.targets[0] == 0
    assert schedule.targets[-1] == Fraction(1, 2)


@pytest.mark.parametrize(
    "dtype", ("int8", "uint8", "int16", "uint16", "uint32", "int64", "uint64"), ids=str
)
@pytest.mark.parametrize("xp", (np, jnp))
def test_narrow_and_unsigned_steps_mean_what_they_say(dtype, xp):
    """Differences of steps were taken in their dtype, where 0 - 300 is 212."""
    with jax.enable_x64(True) if xp is jnp and "64" in dtype else contextlib.nullcontext():
        for begin, end in ((300, 1000), (40_000, 50_000), (3, 90)):
            schedule = jaxprune.cubic_schedule(0.9, begin, end, 7)
            largest = min(np.iinfo(dtype).max, 2**40)
            steps = [n for n in (0, 2, 3, 100, 120, 299, 300, 41_234, 2**31, 2**40) if n <= largest]
            array = xp.asarray(steps, dtype)
            assert schedule.index(array).tolist() == [schedule.index(n) for n in steps]
            assert schedule.fires(array).tolist() == [schedule.fires(n) for n in steps]
            expected = np.float32([schedule.sparsity(n) for n in steps])
            np.testing.assert_array_equal(schedule.sparsity(array), expected)
            for i, n in enumerate(steps):  # a scalar of NumPy
                assert schedule.fires(array[i]) == schedule.fires(n)
