"""Code of a user as type checkers see it: nothing here is run, `pyright` checks it.

Trees of optax and Flax are accepted, and results can be indexed. Mistakes that must be found are in
`typed_mistakes.py`.
"""

import pathlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any, assert_type

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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


# What functions return


class Net(eqx.Module):
    w: jax.Array


def trees_keep_their_type(params: dict[str, jax.Array], net: Net, state: TrainState) -> None:
    masks = jaxprune.masks_from_params(params)
    assert_type(masks, dict[str, jax.Array])
    assert_type(jaxprune.apply_masks(params, masks), dict[str, jax.Array])
    assert_type(jaxprune.straight_through(params, masks), dict[str, jax.Array])
    assert_type(jaxprune.apply_masks(net, masks), Net)
    assert_type(jaxprune.prune_params(net, 0.5), tuple[Net, Net])
    assert_type(jaxprune.load("file", like=params), dict[str, jax.Array])
    assert_type(jaxprune.set_masks(state, masks), TrainState)
    assert_type(jaxprune.choose_schedule(state, 1), TrainState)
    assert_type(jaxprune.unpack_masks(jaxprune.pack_masks(state)), TrainState)
    assert_type(jaxprune.apply_masks(params["w"], masks["w"]), jax.Array)


def trees_of_optax_can_be_indexed(params: optax.Params, updates: optax.Updates) -> jax.Array:
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
    print(jaxprune.pack_masks(tx.init(params)).masks["w"])
    params = optax.apply_updates(params, updates)
    like = {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}
    return jaxprune.prune_params(params, 0.5)[0]["w"] + jaxprune.load("file", like=like)["w"]


def numbers(step: jax.Array, batch: jax.Array) -> None:
    schedule = jaxprune.one_shot_schedule(0.5)
    assert_type(schedule.fires(3), bool)
    assert_type(schedule.index(3), int)
    assert_type(schedule.sparsity(3), float)
    assert_type(schedule.sparsity(step), jax.Array)
    rate: Callable[[optax.ScalarOrSchedule], Any] = schedule.sparsity
    count, gram = jaxprune.moments(batch)
    assert_type(gram, jax.Array)
    print(rate, count)


def smaller_models(net: Net, state: optax.OptState, along: list[Net] | None) -> None:
    forward = lambda net, x: net.w @ x
    small, report = jaxprune.shrink(forward, net, 1.0, along=None)
    small, report, smaller_state = jaxprune.shrink(forward, net, 1.0, along=state)
    print(small, report.size, smaller_state, jaxprune.shrink(forward, net, 1.0, along=along)[0])


def progress(state: TrainState) -> int:
    return int(jaxprune.get_state(state).progress.fires_left)


# What functions accept


def sparsities(params: optax.Params, x: np.ndarray) -> None:
    schedule = jaxprune.cubic_schedule(Fraction(9, 10), 0, 10, initial_sparsity=np.float32(0.5))
    jaxprune.one_shot_schedule(schedule.final_sparsity)
    jaxprune.prune_params(params, schedule.final_sparsity, overrides={"a": 0.5, "b": Fraction(1)})
    jaxprune.rigl(schedule.final_sparsity, 10, inner=optax.sgd(0.1))
    jaxprune.plan(params, schedule.final_sparsity)
    jaxprune.min_density(Fraction(1, 10))
    jaxprune.SparsitySchedule(0, 10, 5, (0.1, 0.2, Fraction(3, 10)))
    jaxprune.SparsitySchedule(0, 10, 5, [0.1, 0.2, 0.3], may_fall=True)
    table = jaxprune.sensitivity(lambda params: params["w"].sum(), params, np.array([0.5, 0.75]))
    jaxprune.sparsities_for(table, schedule.final_sparsity)
    jaxprune.wanda_kernel(x, x, schedule.final_sparsity)
    jaxprune.topk_mask(x, 3, ties="hashed")
    jaxprune.topk_masks([x], 3, pool="global")
    jaxprune.moments(x)


def rules(params: optax.Params, rule: str | None, path: pathlib.Path) -> None:
    is_large = lambda path, leaf: leaf.size > 100
    schedule = jaxprune.one_shot_schedule(0.5)
    jaxprune.prune(schedule, include=is_large, exclude=["head/.*", is_large], regrow="zero")
    jaxprune.prune(schedule, include=rule, exclude=None, regrow=True, axis_name=("a", "b"))
    options: dict = {"exclude": "head/.*", "overrides": {"a": 0.5}}
    jaxprune.prune(schedule, **options)
    jaxprune.plan(params, schedule, **options)
    jaxprune.Block((1, 16), pooling="max")
    jaxprune.Channel(norm=1)
    jaxprune.channel_groups(lambda params, x: x, params, 1.0, allow=("layer_norm",))
    jaxprune.load_packed(path, include=[".*kernel"])


def my_score(params: jax.Array, grads: jax.Array | None, key: jax.Array) -> jax.Array:
    del grads, key
    return jnp.abs(params)


jaxprune.plots.schedule_curve(jaxprune.one_shot_schedule(0.5))
