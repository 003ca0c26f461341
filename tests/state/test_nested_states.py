"""Several prune states over the same params: side by side in a chain, or one inside another."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import ones

HALF = jaxprune.one_shot_schedule(0.5)
MOST = jaxprune.one_shot_schedule(0.75)


def params():
    names = ("first", "second")
    keys = dict(zip(names, jax.random.split(jax.random.key(0)), strict=True))
    leaves = {name: jax.random.normal(key, (8, 8)) for name, key in keys.items()}
    return {**leaves, "bias": ones(8)}


def inner(schedule=MOST, **arguments):
    return jaxprune.prune(schedule, inner=optax.sgd(0.1), include="second", **arguments)


FORMS = {
    "chain": lambda second: optax.chain(
        second(), jaxprune.prune(HALF, include="first"), optax.identity()
    ),
    "nested": lambda second: jaxprune.prune(HALF, include="first", inner=second()),
    "deeper": lambda second: jaxprune.prune(
        HALF,
        include="first",
        inner=optax.chain(optax.clip(1.0), optax.apply_if_finite(second(), 2)),
    ),
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def trained(tx, n_steps=2, state=None):
    p, state = params(), tx.init(params()) if state is None else state
    for _ in range(n_steps):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, p), state, p)
        p = optax.apply_updates(p, updates)
    return p, state


def n_dropped(state):
    return {path: int(np.sum(~m)) for path, m in jaxprune.get_masks(state).items()}


def test_masks_and_metrics_are_those_of_all_states(form):
    p, state = trained(form(inner))
    assert n_dropped(state) == {"bias": 0, "first": 32, "second": 48}
    assert jaxprune.summarize(p, state).n_zero == 80
    values = jaxprune.metrics(state, per_leaf=True)
    assert values["prune/n_zero"] == 80
    assert values["prune/sparsity"] == values["prune/target"] == np.float32(80 / 128)
    assert values["prune/sparsity_all"] == np.float32(80 / 136)  # every leaf counts once
    assert values["prune/sparsity/first"] == 0.5
    assert values["prune/sparsity/second"] == 0.75
    traced = jax.eval_shape(lambda state: jaxprune.metrics(state, per_leaf=True), state)
    assert set(traced) == set(values)  # inside `jit`, too
    jaxprune.check(p, state, done=True)
    with pytest.raises(ValueError, match="2 prune states"):
        jaxprune.get_state(state)


def test_check_looks_at_all_states(form):
    p, state = trained(form(inner))
    regrown = {**p, "second": jnp.ones((8, 8))}
    with pytest.raises(ValueError, match="second: 48 of 48 dropped weights"):
        jaxprune.check(regrown, state)
    assert np.sum(jaxprune.apply_masks(regrown, state)["second"] == 0) == 48
    later = lambda: inner(jaxprune.cubic_schedule(0.75, 10, 20, 5))
    with pytest.raises(ValueError, match="not finished: 3 fires are left"):
        jaxprune.check(*trained(form(later)), done=True)


def test_masks_are_set_packed_and_chosen_in_all_states(form):
    masks = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 2, params())
    masks["bias"] = jnp.ones(8, int)
    nothing = jaxprune.one_shot_schedule(0.0)
    tx = form(lambda: inner([nothing, MOST]))
    state = jaxprune.set_masks(tx.init(params()), masks)
    assert n_dropped(state) == {"bias": 0, "first": 32, "second": 32}
    packed = jaxprune.pack_masks(state)
    assert n_dropped(packed) == n_dropped(jaxprune.unpack_masks(packed)) == n_dropped(state)
    _, state = trained(tx, state=jaxprune.choose_schedule(tx.init(params()), 1))
    assert n_dropped(state)["second"] == 48


def test_all_states_are_upgraded(form):
    tx = form(inner)
    _, state = trained(tx)
    raw = jax.tree.map(np.asarray, state)
    upgraded = jaxprune.upgrade_state(tx, params(), raw)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), upgraded, state))


def test_a_leaf_that_two_states_prune_counts_once():
    tx = jaxprune.prune(HALF, inner=jaxprune.prune(MOST, inner=optax.sgd(0.1)))
    p, state = trained(tx)
    assert n_dropped(state) == {"bias": 0, "first": 48, "second": 48}
    values = jaxprune.metrics(state)
    assert values["prune/n_zero"] == jaxprune.summarize(p).n_zero == 96
    assert values["prune/sparsity"] == 0.75
    jaxprune.check(p, state, done=True)


# An agent with an optimizer for each of its networks


@flax.struct.dataclass
class Agent:
    params: Any
    opt_state: Any
    critic_opt_state: Any


class PlainAgent:
    """The same, which is no pytree."""

    def __init__(self, params, opt_state, critic_opt_state):
        self.params, self.opt_state = params, opt_state
        self.critic_opt_state = critic_opt_state


def agent_of(tx, kind=Agent, *, update_critic):
    w = jnp.arange(1.0, 65.0).reshape(8, 8)
    trees = {"actor": {"kernel": w, "bias": ones(8)}, "critic": {"q": w}}
    states = {}
    for name in trees:
        tree = {name: trees[name]}
        states[name] = tx.init(tree)
        if name == "actor" or update_critic:
            updates, states[name] = tx.update(tree, states[name], tree)
            trees |= optax.apply_updates(tree, updates)
    return kind(trees, states["actor"], states["critic"])


def test_every_state_of_an_agent_counts_not_only_opt_state():
    tx = jaxprune.prune(HALF, inner=optax.sgd(0.1))
    done, half = (agent_of(tx, update_critic=update) for update in (True, False))
    jaxprune.check(done.params, done, done=True)
    assert [int(jaxprune.metrics(a)["prune/fires_left"]) for a in (done, half)] == [0, 1]
    with pytest.raises(ValueError, match="critic/q: the masks drop 0 weights, but 32 are due"):
        jaxprune.check(half.params, half, done=True)
    assert jaxprune.summarize(done.params, done).n_zero == 64
    with pytest.raises(ValueError, match="There are 2 prune states: pass the params of all"):
        jaxprune.check({"actor": done.params["actor"]}, done)


def test_the_params_of_several_networks_need_their_own_states():
    params = {"actor": {"w": ones(4, 8), "b": ones(8)}, "critic": {"net": {"w": ones(4, 8)}}}
    states = {}
    for name, tree in params.items():
        tx = jaxprune.prune(HALF)
        updates, states[name] = tx.update(tree, tx.init(tree), tree)
        params[name] = optax.apply_updates(tree, updates)
        jaxprune.check(params[name], states[name], done=True)
    for tree in (params, params["actor"], params["critic"]):
        with pytest.raises(ValueError, match="2 prune states") as caught:
            jaxprune.check(tree, states)
        assert "the params and the state of one at a time" in str(caught.value)
        assert "only the part" not in str(caught.value)
    whole = {"params": params["actor"], "batch_stats": {"m": ones(3)}}
    both = (states["actor"], states["actor"])
    with pytest.raises(ValueError, match="pass only the part 'params' of this tree"):
        jaxprune.check(whole, both)


def test_states_of_disjoint_params_are_checked_together():
    tx = jaxprune.prune(HALF, inner=optax.sgd(0.1))
    done, half = (agent_of(tx, update_critic=update) for update in (True, False))
    jaxprune.check(done.params, (done.opt_state, done.critic_opt_state), done=True)
    with pytest.raises(ValueError, match="critic/q"):
        jaxprune.check(half.params, (half.opt_state, half.critic_opt_state), done=True)
    late = done.params | {"critic": {"q": ones(8, 8)}}
    with pytest.raises(ValueError, match="critic/q: 32 of 32 dropped weights are not zero"):
        jaxprune.check(late, (done.opt_state, done.critic_opt_state))


def test_an_object_that_is_no_pytree_has_the_states_in_its_opt_state():
    tx = jaxprune.prune(HALF, inner=optax.sgd(0.1))
    agent = agent_of(tx, PlainAgent, update_critic=True)
    jaxprune.check({"actor": agent.params["actor"]}, agent, done=True)


@pytest.mark.parametrize("packed", (False, True))
def test_masks_of_disjoint_params_are_one_tree_of_them(packed):
    w = jnp.arange(1.0, 65.0).reshape(8, 8)
    tree = {"a": {"k": w}, "b": {"k": -w, "bias": ones(8)}, "c": ones(3)}
    tx = jaxprune.prune(HALF, packed=packed)
    states = []
    for name in "ab":
        part = {name: tree[name]}
        states.append(tx.update(part, tx.init(part), part)[1])
    masks = jaxprune.get_masks(states, tree)
    assert jax.tree.map(jnp.shape, masks) == jax.tree.map(jnp.shape, tree)
    assert {name: int(masks[name]["k"].sum()) for name in "ab"} == {"a": 32, "b": 32}
    assert masks["c"].all()
    with pytest.raises(ValueError, match=r"that tree: get_masks\(opt_state, params\)"):
        jaxprune.get_masks(states)
