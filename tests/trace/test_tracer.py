"""The tracer: the worked example of its docstring, label by label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune._shrink.units import units_of
from jaxprune._trace.program import known_values, program_of, trace


def test_the_example_in_the_docstring_is_true():
    def mlp(params, x):
        w, b, v = params
        return jax.nn.relu(x @ w + b[None]) @ v

    params = [jnp.array([[3.0, 0.0]]), jnp.array([1.0, 0.0]), jnp.array([[5.0], [6.0]])]
    program = program_of(mlp, params, [jnp.ones((4, 1))])
    tracer = trace(program, known_values(program))
    assert [tracer.units.find(label) for label in range(6)] == [0, 1, 0, 1, 0, 1]
    (contraction,) = tracer.contractions  # x @ w sums over an axis of length 1, without labels
    np.testing.assert_array_equal(contraction.labels, [0, 1])
    np.testing.assert_array_equal(contraction.weight_labels, [4, 5])
    np.testing.assert_array_equal(contraction.zero, [False, True])
    first, second = units_of(tracer)
    assert (first.label, first.zero, second.label, second.zero) == (0, False, 1, True)
    assert second.members == ((0, 1, 1), (1, 0, 1), (2, 0, 1))
    assert first.is_candidate
    assert second.is_candidate


def hidden(p, x):
    return jax.nn.relu(x @ p["w"])


def permuted(h):
    """A reshape that permutes the axes first, as `vmap` of a convolution makes them."""
    return jax.lax.reshape(h, (h.shape[1], 2), dimensions=(1, 0))


@pytest.mark.parametrize(
    "function",
    (
        lambda p, x: permuted(hidden(p, x)).T @ p["v"],
        lambda p, x: jnp.stack([hidden(p, x), 2 * hidden(p, x)], 1) @ p["v"],
        lambda p, x: jnp.stack([hidden(p, x), 2 * hidden(p, x)], 2).sum(2) @ p["v"],
        lambda p, x: sum(h @ p["v"] for h in jnp.stack([hidden(p, x)] * 2)),
        lambda p, x: jnp.tile(hidden(p, x), (2, 1)) @ p["v"],
        lambda p, x: jnp.tile(hidden(p, x), (1, 2)) @ jnp.concatenate([p["v"], 2 * p["v"]]),
        lambda p, x: (hidden(p, x) * jnp.tile(jnp.ones((1, 1)), (1, p["w"].shape[1]))) @ p["v"],
    ),
    ids=("permuted", "stack", "stack_last", "unstack", "tile", "tile_the_axis", "tile_a_constant"),
)
def test_a_hidden_axis_that_is_moved_or_repeated_shrinks(function):
    key = jax.random.key(0)
    w = jax.random.normal(key, (4, 6)).at[:, 2].set(0)
    params = {"w": w, "v": jax.random.normal(key, (6, 3))}
    small, _ = jaxprune.shrink(function, params, jnp.ones((2, 4)))
    assert {name: x.shape for name, x in small.items()} == {"w": (4, 5), "v": (5, 3)}
