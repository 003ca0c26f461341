"""What tests of several packages share; `from helpers import bits` works in every folder."""

import functools
import re
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding

# --- trees


def on_device(values, dtype=jnp.float32):
    """An array of these numbers; `jnp.asarray(values, dtype)` compiles a program for each shape."""
    return jnp.asarray(np.asarray(values).astype(dtype))


def ones(*shape, dtype=jnp.float32):
    return on_device(np.ones(shape), dtype)


def random_params(shapes, dtype=jnp.float32, seed=0, *, values=lambda normal: normal):
    """Normal numbers in the shapes of a tree of dicts.

    Args:
      shapes: a dict of shapes, or of dicts of them; leaves are drawn in its order.
      dtype: of every leaf.
      seed: of NumPy's generator.
      values: makes the values of a leaf of normal ones: `np.round` makes ties, `np.ones_like` a
        constant leaf.
    """
    rng = np.random.default_rng(seed)

    def draw(node):
        if isinstance(node, dict):
            return {name: draw(below) for name, below in node.items()}
        return on_device(values(rng.normal(size=node)), dtype)

    return draw(shapes)


def grads_at(params, t):
    """Normal gradients of a step; those of integers are 0."""
    rng = np.random.default_rng(1000 + t)

    def grad(p):
        is_float = jnp.issubdtype(p.dtype, jnp.inexact)
        return on_device(rng.normal(size=p.shape) * is_float, p.dtype)

    return jax.tree.map(grad, params)


def by_path(tree):
    """Leaves as NumPy arrays by path, without the `value` at which Flax boxes hold theirs."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    path_of = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {path_of(key).removesuffix("/value"): np.asarray(leaf) for key, leaf in leaves}


def quadratic(params):
    """A loss that pulls every weight to 0.375."""
    return sum(jnp.sum((p.astype(jnp.float32) - 0.375) ** 2) for p in jax.tree.leaves(params))


# --- programs


@functools.cache
def stepper(tx):
    """One update, applied, as one program: `(grads, state, params)` to `(updates, state, params)`.

    Asked for the same `tx` again it is the same function, which has been compiled already.
    """

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return updates, state, optax.apply_updates(params, updates)

    return step


# --- counts and bits


def half_up(x):
    """The nearest integer, and of two the larger: how many weights a target asks for."""
    return int(x + Fraction(1, 2))


def n_dropped(masks):
    """How many weights the mask of each leaf drops, by path."""
    return {path: int(np.sum(mask == 0)) for path, mask in by_path(masks).items()}


def bits(x):
    """The bits of numbers, as unsigned integers: `==` on floats can't tell -0.0 from 0.0."""
    return np.asarray(x).view(f"u{np.dtype(x.dtype).itemsize}")


def assert_dropped_are_plus_zero(params, masks):
    """Checks that every weight a mask drops is +0.0, to the bit."""
    params = by_path(params)
    for path, mask in by_path(masks).items():
        assert np.all(bits(params[path])[mask == 0] == 0), path


def assert_same(a, b):
    """Checks that two trees have the same structure, dtypes, shapes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


# --- devices


def make_mesh(shape, axis_type, names=("data", "model")):
    """A mesh of the first devices; skips the test where there are too few."""
    n = int(np.prod(shape))
    if jax.device_count() < n:
        pytest.skip(f"needs {n} devices")
    devices = np.array(jax.devices()[:n]).reshape(shape)
    return Mesh(devices, names, axis_types=(axis_type,) * len(names))


def place(tree, mesh, specs):
    """The leaves of a dict, each placed as `specs` says of its name."""
    return {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()}


def assert_placed_like(tree, like):
    """Checks that every leaf has the sharding of its counterpart."""
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, y.ndim), (x.sharding, y.sharding)


# --- work


def n_calls(function, *args):
    """How many functions a call calls, those of C included: work, whatever the machine is doing."""
    n = 0

    def count(frame, event, arg):
        nonlocal n
        n += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function(*args)
    finally:
        sys.setprofile(None)
    return n


# --- messages


def says(*fragments):
    """A pattern that finds every fragment, in any order, and not inside a longer word or number.

    For `pytest.raises(ValueError, match=says("fc/kernel:", "(7, 5)", "exclude='fc/kernel'"))`:
    tests name the parts of a message that a reader acts on (where, which value, what to type
    instead) and leave the prose between them free.
    """
    return "(?s:" + "".join(f"(?=.*{_whole(fragment)})" for fragment in fragments) + ")"


def assert_says(text, *fragments):
    """Checks that every fragment is in the text, as `says` does."""
    for fragment in fragments:
        assert re.search(_whole(fragment), text), (fragment, text)


def _whole(fragment):
    starts = r"(?<![\w/-])(?<!\d\.)" if re.match(r"[\w-]", fragment) else ""
    ends = r"(?![\w/])(?!\.\d)" if re.search(r"\w$", fragment) else ""
    return starts + re.escape(fragment) + ends
