"""Hidden axes that are padded, cropped, sliced or joined with numbers that are not of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune

N_HIDDEN, DEAD = 6, 2


def hidden(p, x):
    return jax.nn.relu(x @ p["w"])


def pad(h, rows=(0, 0, 0), columns=(0, 0, 0), value=0.0):
    return jax.lax.pad(h, jnp.float32(value), (rows, columns))


def part_of(h, n_rows, n_columns):
    """A part of the array at a position that is computed."""
    start = (jnp.int32(0), jnp.int32(0))
    return jax.lax.dynamic_slice(h, start, (n_rows, n_columns), allow_negative_indices=False)


def updated(h):
    start = (jnp.int32(1), jnp.int32(0))
    return jax.lax.dynamic_update_slice(h, 2 * h[:1], start, allow_negative_indices=False)


def empty(h):
    """Adds nothing, but reshapes an empty part of the array."""
    return h + jnp.sum(h[:0].reshape(0, 3, 2))


# What happens to the hidden array, the rows of the next matrix, and how many of them are left, or
# why no unit can go.
CASES = {
    "rows are padded": (lambda h, x: pad(h, rows=(1, 1, 0)), 6, 5),
    "rows are padded with ones": (lambda h, x: pad(h, rows=(1, 1, 0), value=1), 6, 6),
    "units are padded": (lambda h, x: pad(h, columns=(1, 2, 0)), 9, 8),
    "units are padded with ones": (lambda h, x: pad(h, columns=(0, 2, 0), value=1), 8, 7),
    "units are cropped": (lambda h, x: pad(h, columns=(0, -1, 0)), 5, "pad crops it"),
    "zeros between": (lambda h, x: pad(h, columns=(0, 0, 1)), 11, "values between its entries"),
    "some rows": (lambda h, x: part_of(h, 1, h.shape[1]), 6, 5),
    "some units": (lambda h, x: part_of(h, 2, 4), 4, "a part of it at a position it computes"),
    "rows are replaced": (lambda h, x: updated(h), 6, 5),
    "joined with the input": (lambda h, x: jnp.concatenate([h, x], 1), 10, 9),
    "joined with constants": (lambda h, x: jnp.concatenate([jnp.ones((2, 3)), h], 1), 9, 8),
    "an empty part is reshaped": (lambda h, x: empty(h), 6, "an empty array that is reshaped"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_dead_unit_goes_only_where_its_neighbours_stay_where_they_are(name):
    change, n_before, n_after = CASES[name]
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.integers(1, 5, shape).astype(np.float32))
    params = {"w": draw(4, N_HIDDEN).at[:, DEAD].set(0), "v": draw(n_before, 3), "bias": draw(3)}

    def apply(p, x):
        return change(hidden(p, x), x) @ p["v"] + p["bias"][None]

    x = draw(2, 4)
    if isinstance(n_after, str):
        with pytest.raises(ValueError, match=n_after):
            jaxprune.shrink(apply, params, x)
        return
    small, _ = jaxprune.shrink(apply, params, x)
    n_left = N_HIDDEN - (n_before - n_after)
    shapes = {key: leaf.shape for key, leaf in small.items()}
    assert shapes == {"w": (4, n_left), "v": (n_after, 3), "bias": (3,)}
    np.testing.assert_array_equal(apply(small, x), apply(params, x))  # exact: small integers
