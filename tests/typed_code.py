"""Code of a user as type checkers see it: nothing here is run, `pyright` checks it.

Trees of optax and Flax are accepted, and results can be indexed.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune


def in_optax(params: optax.Params, grads: optax.Updates) -> jax.Array:
    schedule = jaxprune.cubic_schedule(0.9, begin_step=10, end_step=200, every=10)
    tx = optax.chain(optax.adamw(1e-2), jaxprune.prune(schedule))
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    jaxprune.check(params, state, done=True)
    print(jaxprune.plan(params, tx), jaxprune.summarize(params, state), jaxprune.metrics(state))
    params = jaxprune.apply_masks(params, jaxprune.get_masks(state))
    state = jaxprune.set_masks(state, jaxprune.masks_from_params(params))
    jaxprune.save("file", params)
    return jaxprune.load("file")["w"]


def after_training(params: dict[str, jax.Array]) -> float:
    sparse, masks = jaxprune.prune_params(params, 0.5, structure=jaxprune.NM(2, 4))
    print(masks["w"].sum(), jaxprune.to_bcoo(sparse)["w"].nse)
    return float(sparse["w"].sum())


def in_flax(state: TrainState) -> TrainState:
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5, step=1), inner=optax.adam(1e-3))
    print(jaxprune.plan(state.params, tx))
    jaxprune.check(state.params, state.opt_state)
    return state.replace(params=jaxprune.apply_masks(state.params, state.opt_state))


def in_nnx(model: nnx.Linear, x: jax.Array) -> jaxprune.ShrinkReport:
    groups = jaxprune.channel_groups_nnx(model, x)
    schedule = jaxprune.cubic_schedule(0.5, begin_step=0, end_step=10)
    tx = jaxprune.prune(
        [schedule, schedule],
        inner=optax.sgd(0.1),
        structure=groups,
        include=tuple(groups),
        distribution=jaxprune.erk,
        score=lambda w: jnp.abs(w),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    print(jaxprune.plan(nnx.state(model, nnx.Param), optimizer.tx).n_zero)
    return jaxprune.shrink_nnx(model, x)
