"""Any schedule is followed to its target, from any state, and masks only shrink.

A chunk has 64 random schedules in one program. Each member of a batch follows one of them for some
steps, then another, as a state does that is restored under a new schedule.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from helpers import half_up
from promises.runner import Promise

N_MEMBERS, N_STEPS = 64, 40
MAKERS = (jaxprune.cubic_schedule, jaxprune.linear_schedule)
SHAPES = {"a": (7, 9), "b": (5, 13)}


def random_schedule(rng):
    """A schedule with its numbers: (schedule, power, initial, final, begin, end, every)."""
    power = int(rng.choice([1, 3]))
    begin, every = int(rng.integers(0, 12)), int(rng.integers(1, 9))
    end = begin + int(rng.integers(0, 20))
    low, high = sorted(Fraction(int(n), 100) for n in rng.integers(0, 96, 2))
    make = jaxprune.cubic_schedule if power == 3 else jaxprune.linear_schedule
    schedule = make(float(high), begin, end, every, initial_sparsity=float(low))
    return schedule, (power, low, high, begin, end, every)


def target(numbers, step):
    """What a schedule asks for at a step, by the formula of the paper in rational numbers."""
    power, low, high, begin, end, every = numbers
    if step < begin:
        return Fraction(0)
    if step >= end:
        return high
    done = Fraction((step - begin) // every * every, end - begin)
    return high + (low - high) * (1 - done) ** power


def check(chunk):
    """Counts the zeros of every leaf after each of 40 updates."""
    rng = np.random.default_rng(chunk)
    pairs = [random_schedule(rng) for _ in range(N_MEMBERS)]
    tx = jaxprune.prune([schedule for schedule, _ in pairs], inner=optax.sgd(0.125))
    draw = lambda shape: jnp.asarray(rng.normal(size=(N_MEMBERS, *shape)), jnp.float32)
    params = {name: draw(shape) for name, shape in SHAPES.items()} | {"bias": draw((3,))}

    def step(params, state, number):
        state = jaxprune.choose_schedule(state, number)
        grads = jax.tree.map(lambda p: jnp.sin(9 * p + 1), params)  # no weight tends to 0
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(jax.vmap(tx.init))(params)
    advance = jax.jit(jax.vmap(step))
    first = np.arange(N_MEMBERS)
    then = rng.permutation(N_MEMBERS)
    change = rng.integers(1, N_STEPS, N_MEMBERS)
    asked = {name: np.zeros(N_MEMBERS, int) for name in SHAPES}
    masks = {name: np.ones((N_MEMBERS, *shape), bool) for name, shape in SHAPES.items()}
    for t in range(N_STEPS):
        number = np.where(t < change, first, then)
        params, state = advance(params, state, jnp.asarray(number, jnp.int32))
        new = {name: np.asarray(jaxprune.get_masks(state)[name]) for name in SHAPES}
        for name, mask in new.items():
            size = mask[0].size
            now = [half_up(target(pairs[i][1], t) * size) for i in number]
            asked[name] = np.maximum(asked[name], now)
            n_zero = np.sum(np.asarray(params[name]) == 0, axis=(1, 2))
            np.testing.assert_array_equal(n_zero, asked[name], f"step {t}, {name}")
            np.testing.assert_array_equal((~mask).sum((1, 2)), asked[name])
            assert not np.any(mask & ~masks[name]), f"step {t}, {name}: a weight returned"
        masks = new
        assert np.all(np.asarray(jaxprune.get_masks(state)["bias"]))
    jaxprune.check(params, state)
    return N_MEMBERS


PROMISE = Promise(
    "schedules",
    "Any schedule reaches its target at its end step, also from a state made under another one; "
    "after each update the zeros are those that the formula asks for, and masks only shrink.",
    160,
    check,
)
