"""A million updates with ten thousand fires in one compiled loop."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from helpers import half_up
from promises.runner import Promise

N_CHUNKS, STEPS, EVERY = 100, 10_000, 100
END = N_CHUNKS * STEPS - 1


def check_all(n_chunks):
    """Runs that many chunks of 10,000 updates, one program; returns the number of fires."""
    schedule = jaxprune.linear_schedule(0.9, 0, END, every=EVERY)
    tx = optax.chain(optax.sgd(1e-3), jaxprune.prune(schedule))
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(40, 50)), jnp.float32), "bias": jnp.ones(4)}
    state = tx.init(params)

    def body(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.sin(17 * p), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.sum(params["w"] == 0)

    advance = jax.jit(lambda carry: jax.lax.scan(body, carry, length=STEPS))
    carry, memory = (params, state), set()
    for chunk in range(n_chunks):
        carry, n_zero = advance(carry)
        t = np.arange(STEPS) + chunk * STEPS
        fires = t // EVERY * EVERY
        want = {f: half_up(Fraction(9, 10) * Fraction(int(f), END) * 2000) for f in set(fires)}
        want[END] = 1800
        last = np.where(t == END, END, fires)
        np.testing.assert_array_equal(np.asarray(n_zero), [want[f] for f in last], f"chunk {chunk}")
        memory.add(len(jax.live_arrays()))
    assert advance._cache_size() == 1, "compiled more than once"
    assert len(memory) == 1, f"arrays alive after each chunk: {memory}"
    params, state = carry
    jaxprune.check(params, state, done=n_chunks == N_CHUNKS)
    assert int(jaxprune.metrics(state)["prune/step"]) == n_chunks * STEPS
    return n_chunks * STEPS


def check(chunk):
    """The whole run; the default tests take the first 20,000 updates instead."""
    del chunk
    return check_all(N_CHUNKS)


PROMISE = Promise(
    "long_run",
    "A million updates with 10,000 fires: the count is right after each of them, and nothing is "
    "compiled again or kept alive.",
    1,
    check,
    few=(),
)
