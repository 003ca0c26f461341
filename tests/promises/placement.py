"""Compositions of `prune` with optax: right ones raise no alarm, wrong ones are detected."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from promises.runner import Promise

SCHEDULE = jaxprune.cubic_schedule(0.75, 2, 6, every=2)
MASK = {"w": True, "v": False, "bias": True}


def prune(**more):
    """The transformation of this page."""
    return jaxprune.prune(SCHEDULE, **more)


def before(*links):
    """A chain that ends with `prune`, as it must."""
    return optax.chain(*links, prune())


def after(*links):
    """A chain in which something follows `prune`."""
    return optax.chain(optax.sgd(0.1), prune(), *links)


def injected(rate):
    """An optimizer whose learning rate is in the state."""
    return prune(inner=optax.sgd(rate))


RIGHT = {
    "sgd": lambda: before(optax.sgd(0.1)),
    "momentum": lambda: before(optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "adamw": lambda: before(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    "lamb": lambda: before(optax.lamb(1e-2)),
    "lion": lambda: before(optax.lion(1e-3)),
    "adafactor": lambda: before(optax.adafactor(1e-2)),
    "rmsprop": lambda: before(optax.rmsprop(1e-2)),
    "adagrad": lambda: before(optax.adagrad(1e-2)),
    "noise": lambda: before(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
    "averaged updates": lambda: before(optax.ema(0.9), optax.scale(-0.1)),
    "zeroed nans": lambda: before(optax.zero_nans(), optax.sgd(0.1)),
    "schedule": lambda: before(optax.sgd(optax.cosine_decay_schedule(0.1, 10))),
    "inner sgd": lambda: prune(inner=optax.sgd(0.1)),
    "inner adamw": lambda: prune(inner=optax.adamw(1e-2)),
    "inner chain": lambda: prune(inner=optax.chain(optax.clip(0.1), optax.adam(1e-2))),
    "packed": lambda: prune(inner=optax.adam(1e-2), packed=True),
    "injected": lambda: optax.inject_hyperparams(injected)(rate=0.1),
    "in a chain": lambda: optax.chain(before(optax.sgd(0.1)), optax.identity()),
    "keeps params nonnegative": lambda: before(optax.sgd(0.1), optax.keep_params_nonnegative()),
    "masked": lambda: optax.chain(optax.sgd(0.1), optax.masked(prune(), MASK)),
    "accumulated": lambda: optax.MultiSteps(prune(inner=optax.adam(1e-2)), 2),
    "accumulated chain": lambda: optax.MultiSteps(before(optax.adam(1e-2)), 2),
    "if finite": lambda: optax.apply_if_finite(before(optax.adam(1e-2)), 3),
    "partitioned": lambda: optax.partition(
        {True: prune(inner=optax.adam(1e-2)), False: optax.sgd(0.1)}, MASK
    ),
    "rigl": lambda: jaxprune.rigl(0.75, 6, every=2, inner=optax.adam(1e-2)),
}
WRONG = {
    "scale": lambda: after(optax.scale(0.5)),
    "learning rate": lambda: optax.chain(prune(), optax.scale_by_learning_rate(0.1)),
    "schedule": lambda: after(optax.scale_by_schedule(lambda step: 0.5)),
    "sgd": lambda: optax.chain(prune(), optax.sgd(0.1)),
    "adam": lambda: optax.chain(prune(), optax.adam(1e-2)),
    "adamw": lambda: optax.chain(prune(), optax.adamw(1e-2)),
    "lion": lambda: optax.chain(prune(), optax.lion(1e-3)),
    "rmsprop": lambda: optax.chain(prune(), optax.rmsprop(1e-2)),
    "momentum": lambda: after(optax.trace(0.9)),
    "clip": lambda: after(optax.clip(1e-3)),
    "clip by block": lambda: after(optax.clip_by_block_rms(1e-3)),
    "clip by norm": lambda: after(optax.clip_by_global_norm(1e-3)),
    "normalized": lambda: after(optax.normalize_by_update_norm()),
    "decay": lambda: after(optax.add_decayed_weights(-0.1)),
    "ema": lambda: after(optax.ema(0.9)),
    "noise": lambda: after(optax.add_noise(0.1, 0.5, 0)),
    "sign": lambda: after(optax.scale_by_sign()),
    "rms": lambda: after(optax.scale_by_rms()),
    "trust ratio": lambda: after(optax.scale_by_trust_ratio()),
    "centralized": lambda: after(optax.centralize()),
    "param norm": lambda: after(optax.scale_by_param_block_norm()),
    "polyak": lambda: after(optax.scale_by_schedule(lambda step: 1.0 + step)),
    "in a chain": lambda: optax.chain(before(optax.sgd(0.1)), optax.scale(2.0)),
    "masked scale": lambda: after(optax.masked(optax.scale(0.5), MASK)),
    "accumulated": lambda: optax.MultiSteps(after(optax.scale(0.5)), 2),
}
CASES = [(True, name) for name in RIGHT] + [(False, name) for name in WRONG]


@functools.cache
def make_params():
    """A leaf that every composition prunes, one that some leave out, and a bias."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"w": draw(6, 8), "v": draw(8, 4), "bias": draw(4)}


def check(chunk):
    """Trains 16 steps with one composition; the fires are over by then."""
    right, name = CASES[chunk]
    tx = (RIGHT if right else WRONG)[name]()
    params = make_params()
    state = tx.init(params)

    @jax.jit
    def step(params, state, t):
        grads = jax.tree.map(lambda p: jnp.sin(5 * p + t) + 0.1, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    violations, errors = [], []
    with jax.numpy_dtype_promotion("standard"):  # some optimizers of optax need it
        for t in range(16):
            params, state = step(params, state, jnp.float32(t))
            violations.append(int(jaxprune.get_state(state).violations))
            try:
                jaxprune.check(params, state)
            except ValueError as error:
                errors.append(str(error))
    assert int(jaxprune.metrics(state)["prune/n_zero"]) > 0, name
    if right:
        assert violations == [0] * 16, f"{name}: a false alarm"
        assert not errors, f"{name}: {errors[0]}"
    else:
        # A step between two real updates of `MultiSteps` counts twice.
        last_fire = 6 if name != "accumulated" else 13
        assert all(violations[last_fire:]), f"{name}: not detected by the last fire, {violations}"
        assert errors, f"{name}: check did not raise"
        assert "w:" in errors[0], errors[0]
    return 1


PROMISE = Promise(
    "placement",
    "25 compositions that keep dropped weights at zero raise no alarm; 25 that move them are "
    "detected by the next fire, and by check.",
    len(CASES),
    check,
    few=(),
)
