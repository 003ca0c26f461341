"""What docs/promises.md does not promise, each shown by an example, and what is never imported."""

import ast
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import jaxprune
from helpers import on_device, stepper

SCHEDULE = jaxprune.cubic_schedule(0.5, 0, 4, every=2)


def make_params():
    rng = np.random.default_rng(0)
    return {"w": on_device(rng.normal(size=(64, 32))), "bias": on_device(np.zeros(32))}


def test_an_average_of_the_params_is_dense_until_it_is_masked():
    tx = jaxprune.prune(SCHEDULE, inner=optax.sgd(0.1))
    params = average = make_params()
    state = tx.init(params)
    for _ in range(6):
        _, state, params = stepper(tx)(params, state, params)
        average = optax.incremental_update(params, average, 0.5)
    dropped = ~np.asarray(jaxprune.get_masks(state)["w"])
    assert np.any(np.asarray(average["w"])[dropped])
    masked = jaxprune.apply_masks(average, state)
    assert not np.any(np.asarray(masked["w"])[dropped])
    assert np.array_equal(np.asarray(masked["w"])[~dropped], np.asarray(average["w"])[~dropped])


@pytest.mark.skip_in("debug_nans", reason="the params hold NaN on purpose")
def test_an_update_keeps_nan_in_a_dropped_weight_and_apply_masks_removes_it():
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.sgd(0.1))
    params = make_params()
    state = tx.init(params)
    _, state, params = stepper(tx)(params, state, params)
    dropped = np.argwhere(~np.asarray(jaxprune.get_masks(state)["w"]))[0]
    broken = params | {"w": params["w"].at[tuple(dropped)].set(jnp.nan)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state, after = stepper(tx)(zeros, state, broken)
    assert np.isnan(after["w"][tuple(dropped)])
    with pytest.raises(ValueError, match="w: "):
        jaxprune.check(after, state)
    assert jaxprune.apply_masks(after, state)["w"][tuple(dropped)] == 0


@pytest.mark.skip_in("debug_nans", reason="a gradient is NaN on purpose")
def test_multisteps_spreads_one_nan_gradient_over_the_update_that_it_joins():
    tx = optax.MultiSteps(jaxprune.prune(SCHEDULE, inner=optax.sgd(0.1)), 2)
    params = make_params()
    state = tx.init(params)
    bad = params | {"bias": params["bias"].at[0].set(jnp.nan)}
    for grads in (bad, params):
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert np.isnan(params["bias"][0])
    masks = jaxprune.get_masks(state)
    assert not np.any(np.asarray(params["w"])[~np.asarray(masks["w"])])


def test_whole_runs_on_several_devices_may_differ_in_the_last_bits_of_gradients():
    """The gradient of a sharded sum is added up in another order; given updates, masks agree."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    x = on_device(np.random.default_rng(1).normal(size=(512, 64)))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    apart = jax.device_put(x, NamedSharding(mesh, P("data")))
    grad = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"]) ** 2)))
    params = make_params()
    one, many = grad(params, x)["w"], grad(params, apart)["w"]
    np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-3)
    tx = jaxprune.prune(SCHEDULE)
    spread = jax.device_put(params, NamedSharding(mesh, P()))
    masks = [
        jaxprune.get_masks(stepper(tx)(params | {"w": one}, tx.init(p), p)[1])["w"]
        for p in (params, spread)
    ]
    np.testing.assert_array_equal(*masks)


def test_lbfgs_caches_a_value_of_params_that_prune_changes_afterwards():
    """So a loss must be that of masked params, as docs/guides/fine-tuning.md shows."""
    tx = optax.chain(optax.lbfgs(), jaxprune.prune(jaxprune.one_shot_schedule(0.5)))
    params = make_params()
    state = tx.init(params)

    def loss(params):
        return jnp.sum((params["w"] - 1) ** 2) + jnp.sum(params["bias"] ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
    params = optax.apply_updates(params, updates)
    cached = optax.tree.get(state, "value")
    assert float(cached) != float(loss(params))
    jaxprune.check(params, state)


def sources():
    package = pathlib.Path(importlib.util.find_spec("jaxprune").origin).parent
    return [path for path in sorted(package.rglob("*.py")) if "demo" not in path.parts]


FORBIDDEN = {"pickle", "marshal", "shelve", "socket", "ssl", "urllib", "http", "requests"}
FORBIDDEN |= {"subprocess", "multiprocessing", "ftplib", "dill", "cloudpickle"}


def test_the_library_imports_no_network_and_no_pickle_and_evaluates_nothing():
    assert len(sources()) > 100
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not FORBIDDEN & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
