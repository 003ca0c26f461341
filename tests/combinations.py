"""The law table: the structures, distributions, scores and shapes that the tests combine."""

import jax.numpy as jnp
import numpy as np

import jaxprune
from helpers import random_params
from jaxprune import NM, Block, Channel, Unstructured

SHAPES = {"conv": (3, 3, 4, 8), "fc": (16, 12), "odd": (8, 7), "stack": (3, 8, 6)}
STRUCTURES = {
    "unstructured": Unstructured(),
    "2:4": NM(2, 4, axis=-2),
    "block": Block((2, 3)),
    "block max": Block((4, 4), pooling="max"),
    "balanced": Block((1, 4), balanced=True),
    "channel": Channel(axis=-1),
    "channel l1 in": Channel(axis=-2, norm=1),
    "by rule": {"fc": NM(1, 2), "stack": Channel(axis=-1)},
}
DISTRIBUTIONS = {
    "uniform": jaxprune.uniform,
    "erk": jaxprune.erk,
    "er": jaxprune.er,
    "global": jaxprune.global_pool,
    "normalized": jaxprune.normalized_pool,
    "min density": jaxprune.min_density(0.25, jaxprune.erk),
    "global min density": jaxprune.min_density(0.25, jaxprune.global_pool),
    "per slice": jaxprune.per_slice("stack"),
    "erk per slice": jaxprune.per_slice({"stack": 0}, jaxprune.erk),
}
GROUPED = ("2:4", "balanced", "by rule")
SCORES = {
    "magnitude": jaxprune.magnitude,
    "saliency": jaxprune.saliency,
    "gradient": jaxprune.gradient_magnitude,
    "movement": jaxprune.movement,
    "random": jaxprune.random_score,
    "user": lambda params, grads, key: jnp.abs(params) ** 3,
}


def make_params(seed=0, dtype=jnp.float32):
    """Leaves of all `SHAPES`, and two that are not pruned."""
    return random_params(SHAPES, dtype, seed) | {
        "bias": jnp.ones(8, dtype),
        "table": jnp.arange(6).reshape(2, 3),
    }


def unit_flags(structure, mask):
    """The mask of units as NumPy, after a look that units are whole."""
    mask = np.asarray(mask)
    units = np.asarray(structure.unit_mask(jnp.asarray(mask)))
    np.testing.assert_array_equal(structure.expand(jnp.asarray(units), mask.shape), mask)
    return units
