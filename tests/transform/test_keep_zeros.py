"""`keep_zeros` trains sparse params: what is zero at `init` stays zero, in one call."""

import inspect

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune
from helpers import grads_at, random_params

SHAPES = {"fc": {"kernel": (8, 12), "bias": (12,)}, "out": {"kernel": (12, 4)}}


def sparse(sparsity=0.75):
    return jaxprune.prune_params(random_params(SHAPES), sparsity)[0]


def run(tx, params, state, n_steps=4):
    step = jax.jit(tx.update, donate_argnums=1)
    for t in range(n_steps):
        updates, state = step(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("init", ("init", "jit", "vmap"))
@pytest.mark.parametrize("sparsity", (0.0, 0.5, 0.9))
@pytest.mark.filterwarnings("ignore:jaxprune.keep_zeros.*no zeros to keep")  # sparsity 0
def test_zeros_stay_and_everything_else_learns(init, sparsity):
    params = sparse(sparsity)
    tx = jaxprune.keep_zeros(optax.adamw(0.01))
    if init == "vmap":
        stacked = jax.tree.map(lambda p: jnp.stack([p, p[::-1]]), params)
        state = jax.tree.map(lambda x: x[0], jax.vmap(tx.init)(stacked))
    else:
        state = (jax.jit(tx.init) if init == "jit" else tx.init)(params)
    assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(tx.init, params))
    trained, state = run(tx, params, state)
    for before, after in zip(*map(jax.tree.leaves, (params, trained)), strict=True):
        np.testing.assert_array_equal(before == 0, after == 0)
        assert not np.any(np.signbit(after[before == 0]))
        assert np.all((before != after) | (before == 0))
    jaxprune.check(trained, state, done=True)
    metrics = jaxprune.metrics(state)
    assert metrics["prune/sparsity"] == metrics["prune/target"]
    assert metrics["prune/fires_left"] == 0
    assert metrics["prune/n_zero"] == sum(
        int(np.sum(leaf == 0)) for leaf in (params["fc"]["kernel"], params["out"]["kernel"])
    )


def test_check_raises_if_the_masks_were_lost():
    params = sparse()
    tx = jaxprune.keep_zeros(optax.sgd(0.1))
    lost = jaxprune.set_masks(tx.init(params), jax.tree.map(lambda p: p == p, params))
    with pytest.raises(ValueError, match="fc/kernel: the masks drop 0 weights, but 72 are due"):
        jaxprune.check(params, lost, done=True)


def test_leaves_of_zeros_are_free_and_a_warning_names_them():
    params = sparse() | {"adapter_b": jnp.zeros((4, 8))}
    tx = jaxprune.keep_zeros(optax.sgd(0.1))
    with pytest.warns(UserWarning, match="adapter_b: only zeros"):
        state = tx.init(params)
    trained, state = run(tx, params, state)
    assert np.all(trained["adapter_b"] != 0)
    jaxprune.check(trained, state, done=True)
    np.testing.assert_array_equal(jax.jit(tx.init)(params).masks["adapter_b"], 1)


def test_a_leaf_of_zeros_that_include_names_is_masked():
    params = sparse() | {"adapter_b": jnp.zeros((4, 8))}
    tx = jaxprune.keep_zeros(optax.sgd(0.1), include=(".*kernel", "adapter_b"))
    trained, _ = run(tx, params, tx.init(params))
    assert not np.any(trained["adapter_b"])


def test_excluded_leaves_are_free():
    tx = jaxprune.keep_zeros(optax.sgd(0.1), exclude="out/.*")
    trained, _ = run(tx, sparse(), tx.init(sparse()))
    assert np.all(trained["out"]["kernel"] != 0)
    assert np.sum(trained["fc"]["kernel"] == 0) == 72


@pytest.mark.parametrize("include", (None, "adapter_b"))
def test_masks_from_params_does_the_same(include):
    params = sparse() | {"adapter_b": jnp.zeros((4, 8))}
    if include:
        masks = jaxprune.masks_from_params(params, include=include)
        assert not np.any(masks["adapter_b"])
        return
    with pytest.warns(UserWarning, match="jaxprune.masks_from_params: adapter_b: only zeros"):
        masks = jaxprune.masks_from_params(params)
    assert np.all(masks["adapter_b"])
    np.testing.assert_array_equal(masks["fc"]["kernel"], params["fc"]["kernel"] != 0)
    assert np.all(jax.jit(jaxprune.masks_from_params)(params)["adapter_b"])


def test_a_train_state_and_an_nnx_optimizer_keep_zeros():
    tx = jaxprune.keep_zeros(optax.adamw(0.01))
    model = nn.Dense(12)
    params = {"kernel": sparse()["fc"]["kernel"], "bias": jnp.ones(12)}
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    assert np.sum(state.params["kernel"] == 0) == 72
    jaxprune.check(state.params, state, done=True)

    module = nnx.Linear(8, 12, rngs=nnx.Rngs(0))
    module.kernel[...] = params["kernel"]
    optimizer = nnx.Optimizer(module, tx, wrt=nnx.Param)
    optimizer.update(module, jax.tree.map(jnp.ones_like, nnx.state(module, nnx.Param)))
    assert np.sum(np.asarray(module.kernel[...]) == 0) == 72
    jaxprune.check(nnx.state(module, nnx.Param), optimizer, done=True)


def test_a_state_without_progress_is_upgraded():
    tx = jaxprune.keep_zeros(optax.sgd(0.1))
    state = tx.init(sparse())
    upgraded = jaxprune.upgrade_state(tx, sparse(), state._replace(progress=None))
    chex.assert_trees_all_equal(upgraded, state)
    jaxprune.check(sparse(), upgraded, done=True)


def test_the_optimizer_is_required():
    with pytest.raises(TypeError, match=r"inner.*keep_zeros\(optax.adamw\(1e-3\)\)"):
        jaxprune.keep_zeros(None)


def test_map_params_reaches_the_masks():
    tx = jaxprune.keep_zeros(optax.sgd(0.1))
    state = tx.init(sparse())
    same = optax.tree.map_params(tx, lambda x: x, state)
    assert jax.tree.structure(same) == jax.tree.structure(state)


def test_params_without_zeros_are_named_in_a_warning():
    params = random_params(SHAPES)
    with pytest.warns(UserWarning, match="fc/kernel, out/kernel: no zeros to keep") as caught:
        jaxprune.keep_zeros(optax.sgd(0.1)).init(params)
    assert caught[0].filename == __file__
    one_is_sparse = {**params, "fc": sparse()["fc"]}
    jaxprune.keep_zeros(optax.sgd(0.1)).init(one_is_sparse)  # a warning would be an error


def test_warnings_point_to_the_line_that_calls_init():
    """That of leaves with zeros only pointed to the caller of that line."""
    params = {"fc": jnp.eye(4), "head": jnp.zeros((4, 4))}
    line = inspect.currentframe().f_lineno
    with pytest.warns(UserWarning, match="head: only zeros") as caught:
        jaxprune.keep_zeros(optax.sgd(0.1)).init(params)
    assert (caught[0].filename, caught[0].lineno) == (__file__, line + 2)


# Leaves that `prune` leaves out by default: their zeros were not kept, so that biases of dropped
# channels trained.

LEAVES = {
    "fc": {"kernel": (6, 5), "bias": (5,)},
    "norm": {"scale": (5,), "bias": (5,)},
    "temperature": (),
    "log_std": (5,),
    "heads": {"kernel": (6, 2, 4), "bias": (2, 4)},
}


def with_zeros(key, dtype):
    """Params with zeros at random, among them leaves without any and leaves of zeros only."""

    def leaf(shape, key):
        fraction, values, kept = jax.random.split(key, 3)
        kind = jax.random.choice(fraction, jnp.array([0.0, 0.5, 1.0]))
        p = 1 + jax.random.uniform(values, shape)
        return jnp.where(jax.random.bernoulli(kept, kind, shape), p, 0).astype(dtype)

    is_shape = lambda x: isinstance(x, tuple)
    shapes, treedef = jax.tree.flatten(LEAVES, is_leaf=is_shape)
    keys = jax.random.split(key, len(shapes))
    params = treedef.unflatten(list(map(leaf, shapes, keys)))
    params["fc"]["kernel"] = jnp.eye(6, 5, dtype=dtype)  # so that some are zero, and some are not
    return params | {"count": jnp.arange(3)}


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16, jnp.complex64))
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore:jaxprune.keep_zeros.*only zeros")
def test_zeros_of_every_leaf_stay_unless_it_is_zero_throughout(seed, dtype):
    params = with_zeros(jax.random.key(seed), dtype)
    tx = jaxprune.keep_zeros(optax.sgd(0.125))
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params) | {"count": jnp.zeros(3, int)}
    updates, state = jax.jit(tx.update)(grads, state, params)
    trained = optax.apply_updates(params, updates)
    for (path, before), after in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(trained), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name == "count":
            continue
        is_free = name == "log_std" or not np.any(before)
        np.testing.assert_array_equal(after == 0, (before == 0) & (not is_free), err_msg=name)
        np.testing.assert_array_equal(before != after, (before != 0) | is_free, err_msg=name)
    jaxprune.check(trained, state, done=True)


def test_only_leaves_that_prune_would_choose_are_named_in_the_warnings():
    params = sparse()
    params["fc"]["bias"] = jnp.zeros(12)
    jaxprune.keep_zeros(optax.sgd(0.1)).init(params)  # a warning would be an error
    params["head"] = jnp.zeros((4, 4))
    with pytest.warns(UserWarning, match="^jaxprune.keep_zeros: head: only zeros") as caught:
        jaxprune.keep_zeros(optax.sgd(0.1)).init(params)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"keep_zeros: b: no zeros to keep"):
        jaxprune.keep_zeros(optax.sgd(0.1)).init({"b": jnp.ones(3)})


def test_the_plan_says_which_leaves_are_free():
    params = sparse() | {"log_std": jnp.zeros(4), "count": jnp.zeros(4, int)}
    params["fc"]["bias"] = jnp.array([0.0, 1.0] * 6)
    params["norm"] = {"bias": jnp.zeros(12)}
    rows = jaxprune.plan(params, jaxprune.keep_zeros(optax.sgd(0.1))).leaves
    assert {row.path: (row.n_zero, row.note) for row in rows} == {
        "count": (0, "dtype int32"),
        "fc/bias": (6, ""),
        "fc/kernel": (72, ""),
        "log_std": (0, "logarithm"),
        "norm/bias": (0, "only zeros: free to learn"),
        "out/kernel": (36, ""),
    }


def test_quantised_leaves_do_not_stop_it():
    params = sparse() | {"q": {"w": jnp.zeros((4, 8), jnp.int8)}}
    if hasattr(jnp, "float8_e8m0fnu"):
        params["q"]["scales"] = jnp.ones((4, 1)).astype(jnp.float8_e8m0fnu)
    state = jaxprune.keep_zeros(optax.sgd(0.1)).init(params)
    assert all(map(np.all, jax.tree.leaves(state.masks["q"])))
