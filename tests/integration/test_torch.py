"""One-shot masks are those of torch.nn.utils.prune, which comes with the `bench` extra."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import Channel


@functools.cache
def torch_prune():
    pytest.importorskip("torch", reason="torch comes with the bench extra")
    import torch
    from torch.nn.utils import prune

    return torch, prune


@pytest.mark.parametrize("method", ("l1_unstructured", "ln_structured", "global_unstructured"))
def test_masks_are_those_of_torch(method):
    torch, prune = torch_prune()
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(size=(12, 20)).astype(np.float32) for name in "ab"}
    layers = {name: torch.nn.Linear(20, 12, bias=False) for name in "ab"}
    for name, layer in layers.items():
        layer.weight.data = torch.from_numpy(weights[name].copy())
    params = {name: jnp.asarray(w) for name, w in weights.items()} | {"bias": jnp.ones(3)}
    if method == "l1_unstructured":
        for layer in layers.values():
            prune.l1_unstructured(layer, "weight", amount=0.7)
        _, masks = jaxprune.prune_params(params, 0.7)
    elif method == "ln_structured":
        for layer in layers.values():
            prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
        _, masks = jaxprune.prune_params(params, 0.5, structure=Channel(axis=0))
    else:
        pairs = [(layer, "weight") for layer in layers.values()]
        prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.7)
        _, masks = jaxprune.prune_params(params, 0.7, distribution=jaxprune.global_pool)
    for name, layer in layers.items():
        np.testing.assert_array_equal(masks[name], layer.weight_mask.numpy() != 0)
