"""`plan` of an optimizer that contains transformations of jaxprune, in any nesting of optax."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import jaxprune
from helpers import by_path, on_device

SGD = optax.sgd(0.1)
HALF, MOST = jaxprune.one_shot_schedule(0.5), jaxprune.one_shot_schedule(0.75)
LABELS = {"conv": "a", "fc": {"kernel": "b", "bias": "b"}}
CONV, FC = {"include": "conv"}, {"include": "fc/kernel"}


def make_params():
    rng = np.random.default_rng(0)
    leaf = lambda *shape: on_device(rng.integers(1, 999, shape) / 1024)
    return {"conv": leaf(3, 3, 4, 8), "fc": {"kernel": leaf(12, 16), "bias": leaf(16)}}


def inner(learning_rate):
    return jaxprune.prune(HALF, inner=optax.sgd(learning_rate))


OPTIMIZERS = {
    "chain": lambda: optax.chain(SGD, jaxprune.prune(HALF)),
    "chain of two": lambda: optax.chain(
        SGD, jaxprune.prune(HALF, **CONV), jaxprune.prune(MOST, **FC)
    ),
    "the same leaves twice": lambda: optax.chain(SGD, jaxprune.prune(HALF), jaxprune.prune(MOST)),
    "nested": lambda: jaxprune.prune(
        HALF, **CONV, inner=optax.chain(SGD, jaxprune.prune(MOST, **FC))
    ),
    "masked": lambda: optax.chain(
        SGD, optax.masked(jaxprune.prune(MOST), {"conv": False, "fc": True})
    ),
    "partition": lambda: optax.partition(
        {"a": jaxprune.prune(HALF, inner=SGD), "b": jaxprune.prune(MOST, inner=SGD)}, LABELS
    ),
    "hyperparameters": lambda: optax.inject_hyperparams(inner)(learning_rate=0.1),
    "if finite": lambda: optax.apply_if_finite(jaxprune.prune(MOST, inner=SGD), 3),
    "static": lambda: optax.chain(jaxprune.static_sparse(0.5, inner=SGD)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_plan_of_an_optimizer_counts_the_zeros_that_it_makes(name):
    tx, params = OPTIMIZERS[name](), make_params()
    planned = jaxprune.plan(params, tx)
    assert jaxprune.plan(jax.eval_shape(lambda: params), tx) == planned
    updates, _ = tx.update(params, tx.init(params), params)
    zeros = {
        p: int(np.sum(x == 0)) for p, x in by_path(optax.apply_updates(params, updates)).items()
    }
    assert {leaf.path: leaf.n_zero for leaf in planned.leaves} == zeros
    assert planned.n_zero == sum(zeros.values()) > 0


def test_the_table_says_which_transformation_prunes_a_leaf():
    params = make_params()
    notes = lambda name: {x.path: x.note for x in jaxprune.plan(params, OPTIMIZERS[name]()).leaves}
    assert notes("masked")["conv"] == "hidden from prune"
    assert notes("the same leaves twice")["conv"] == "pruned by 2 transformations"
    assert notes("chain of two")["fc/bias"] == "not matched by include"
    title = jaxprune.plan(params, OPTIMIZERS["chain of two"]()).title
    assert title == "plan: 0.5 at step 0, 1 fire; 0.75 at step 0, 1 fire"


def test_leaves_that_are_all_hidden_from_prune_are_said_to_be_so():
    tx = optax.chain(SGD, optax.masked(jaxprune.prune(HALF), {"conv": False, "fc": False}))
    rows = jaxprune.plan(make_params(), tx).leaves
    assert [(row.n_zero, row.note) for row in rows] == [(0, "hidden from prune")] * 3


def test_the_plan_under_lookahead_is_that_of_the_fast_params():
    params = make_params()
    both = optax.LookaheadParams.init_synced(params)
    tx = optax.lookahead(jaxprune.prune(HALF, inner=SGD), 5, 0.5)
    planned = jaxprune.plan(both, tx)
    assert planned.leaves == jaxprune.plan(params, HALF).leaves
    [note] = planned.notes
    assert "optax.chain(optax.lookahead(optimizer, ...), jaxprune.prune(schedule))" in note


MIXING = {
    "schedule_free": lambda opt: optax.contrib.schedule_free(opt, 0.1),
    "mechanize": lambda opt: optax.contrib.mechanize(opt),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_wrapper_that_mixes_updates_with_weights_belongs_inside(name):
    wrap, params = MIXING[name], make_params()
    advice = rf"prune\(schedule, inner={name}\(...\)\)"
    later = jaxprune.one_shot_schedule(0.5, step=2)
    for pruning in (jaxprune.prune(later, inner=SGD), optax.chain(SGD, jaxprune.prune(later))):
        tx, pruned = wrap(pruning), params
        assert re.search(f"Wrap it instead: {advice}", "; ".join(jaxprune.plan(params, tx).notes))
        state = tx.init(params)
        for _ in range(4):
            updates, state = tx.update(pruned, state, pruned)
            pruned = optax.apply_updates(pruned, updates)
        with pytest.raises(ValueError, match=advice):
            jaxprune.check(pruned, state)
    for tx in (jaxprune.prune(HALF, inner=wrap(SGD)), optax.chain(wrap(SGD), jaxprune.prune(HALF))):
        assert not jaxprune.plan(params, tx).notes
        updates, state = tx.update(params, tx.init(params), params)
        jaxprune.check(optax.apply_updates(params, updates), state, done=True)


def test_keys_of_a_flattened_dict_are_paths():
    nested = {"q": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))}, "b": jnp.ones((3, 8))}
    flat = flatten_dict(nested)
    rules = {"exclude": "b", "overrides": {"q/kernel": 0.25}}
    assert jaxprune.plan(flat, 0.5, **rules).leaves == jaxprune.plan(nested, 0.5, **rules).leaves


def test_functions_among_the_params_and_holders_of_the_optimizer():
    params, tx = make_params(), OPTIMIZERS["chain"]()
    planned = jaxprune.plan({**params, "activation": jax.nn.relu}, tx)
    assert {leaf.path: leaf.n_zero for leaf in planned.leaves}["activation"] == 0
    assert planned.n_zero == jaxprune.plan(params, tx).n_zero
    holder = types.SimpleNamespace(tx=tx)  # a TrainState, or an nnx.Optimizer
    assert jaxprune.plan(params, holder) == jaxprune.plan(params, tx)


def test_leaves_of_two_shared_pools_count_once():
    pool = {"distribution": jaxprune.global_pool}
    tx = optax.chain(SGD, jaxprune.prune(HALF, **pool), jaxprune.prune(MOST, **pool, **CONV))
    planned = jaxprune.plan(make_params(), tx)
    [first] = planned.pools
    assert planned.n_zero == first.n_zero


POOLS = {
    "a leaf of two pools": [(0.5, ("a", "b")), (0.6, ("b", "c"))],
    "the largest pool between two": [(0.5, ("a", "b")), (0.6, ("b", "c")), (0.5, ("c", "d"))],
    "a leaf of a small pool": [(0.1, ("a", "b")), (0.9, "b")],
    "leaves of a pool": [(0.5, ("a", "b", "c")), (0.8, "a"), (0.8, "b"), (0.8, "c")],
}


@pytest.mark.parametrize("name", POOLS)
def test_the_total_of_pools_that_share_leaves_is_a_lower_bound(name):
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 5), "b": (6, 5), "c": (8, 5), "d": (8, 6), "bias": (5,)}
    params = {path: on_device(rng.integers(1, 999, shape)) for path, shape in shapes.items()}
    parts = [
        jaxprune.prune(
            jaxprune.one_shot_schedule(sparsity), include=paths, distribution=jaxprune.global_pool
        )
        for sparsity, paths in POOLS[name]
    ]
    tx = optax.chain(*parts)
    planned = jaxprune.plan(params, tx)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    n_zero = jaxprune.summarize(optax.apply_updates(params, updates)).n_zero
    assert n_zero >= planned.n_zero >= max(jaxprune.plan(params, part).n_zero for part in parts)
    assert f"at least {planned.n_zero} of 143 weights are zero" in planned.notes[-1]
    pooled = [path for pool in planned.pools for path in pool.paths]
    unknown = {leaf.path for leaf in planned.leaves if leaf.n_zero is None}
    assert len(pooled) == len(set(pooled))
    assert set(pooled) <= unknown
    expected = {
        "a leaf of two pools": (42, [("b", "c")], {"a", "b", "c"}),
        "the largest pool between two": (25 + 44, [("a", "b"), ("c", "d")], {"a", "b", "c", "d"}),
        "a leaf of a small pool": (27, [], {"a"}),
        "leaves of a pool": (16 + 24 + 32, [], set()),
    }
    assert (planned.n_zero, [pool.paths for pool in planned.pools], unknown) == expected[name]


def test_an_error_of_the_wrapped_optimizer_does_not_hide_the_plan():
    def init(params):
        raise RuntimeError("needs values")

    broken = optax.GradientTransformation(init, SGD.update)
    params = make_params()
    expected = jaxprune.plan(params, HALF)
    assert jaxprune.plan(params, jaxprune.prune(HALF, inner=broken)) == expected
    with pytest.raises(RuntimeError, match="needs values"):
        jaxprune.plan(params, optax.chain(broken, jaxprune.prune(HALF)))


def test_a_wrong_rule_of_a_nested_prune_is_an_error():
    tx = jaxprune.prune(HALF, **CONV, inner=jaxprune.prune(HALF, exclude="fcc", inner=SGD))
    with pytest.raises(ValueError, match="exclude: 'fcc' matches no leaf"):
        jaxprune.plan(make_params(), tx)


def test_the_plan_of_keep_zeros_counts_the_zeros_of_the_params():
    params = {
        "w": jnp.eye(4),
        "dense": jnp.ones((2, 2)),
        "lora": jnp.zeros((4, 4)),
        "b": jnp.zeros(4),
    }
    for tx in (jaxprune.keep_zeros(SGD), optax.chain(jaxprune.keep_zeros(SGD))):
        leaves = jaxprune.plan(params, tx).leaves
        assert {x.path: x.n_zero for x in leaves} == {"w": 12, "dense": 0, "lora": 0, "b": 0}
        assert {x.path: x.note for x in leaves if x.note} == {
            "b": "only zeros: free to learn",
            "lora": "only zeros: free to learn",
        }
    with pytest.raises(ValueError, match=r"values are needed.* Pass the arrays"):
        jaxprune.plan(jax.eval_shape(lambda: params), jaxprune.keep_zeros(SGD))


def test_an_init_that_jit_has_traced_before_is_planned_again():
    link = jaxprune.prune(HALF)
    tx = optax.chain(SGD, optax.GradientTransformation(jax.jit(link.init), link.update))
    params = make_params()
    tx.init(params)
    plans = [jaxprune.plan(params, tx) for _ in range(2)]
    assert plans == [jaxprune.plan(params, optax.chain(SGD, link))] * 2
