"""Random scores that a GPU draws anew in every pass, so that they take no memory.

The number that `jax.random` draws for an entry depends on the key and on the flat index of the
entry only, if the key is a threefry key and `jax_threefry_partitionable` is on, as it is by
default. So it can be drawn wherever the entry is read, with the same bits.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p

from jaxprune._base.sharding import explicit_sharding

_THREEFRY = "threefry2x32"
# From this size on, an index needs more than 31 bits.
_LONG = 2**31 - 1


class Drawn(NamedTuple):
    """The operand of a leaf with random scores.

    Attributes:
      param: the leaf; only its shape, its sharding and its devices count.
      flat_index: the row-major index of each entry in the leaf, uint32.
      words: the two numbers of the key, arrays of one number each.
    """

    param: jax.Array
    flat_index: jax.Array
    words: tuple[jax.Array, jax.Array]

    def scores(self) -> jax.Array:
        """What `jax.random.uniform(key, shape, "float32")` gives for the entries."""
        # XLA computes nothing for the high half of a 64-bit index, which is 0.
        zeros = jnp.zeros_like(self.flat_index)
        high, low = threefry2x32_p.bind(
            zeros + self.words[0], zeros + self.words[1], zeros, self.flat_index
        )
        mantissa = lax.shift_right_logical(high ^ low, np.uint32(32 - 23))
        one_to_two = lax.bitcast_convert_type(mantissa | np.uint32(0x3F800000), jnp.float32)
        return one_to_two - jnp.float32(1)


class DrawnSource(NamedTuple):
    """What a loop carries instead of a `Drawn`: of the index, one array for each axis."""

    param: jax.Array
    steps: list[jax.Array]
    words: tuple[jax.Array, jax.Array]


def can_be_drawn(param: jax.Array, key: Any) -> bool:
    """Whether the scores of a leaf can be drawn for each entry apart."""
    config: Any = jax.config
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    name = str(jax.random.key_impl(key)) if is_typed else config.jax_default_prng_impl
    is_by_index = getattr(config, "jax_threefry_partitionable", True)
    # With this setting the numbers come from a kernel that stores them.
    is_stored = getattr(config, "jax_threefry_gpu_kernel_lowering", False)
    may_fuse = name == _THREEFRY and is_by_index and not is_stored
    return may_fuse and 0 < param.size < _LONG and param.ndim > 0


def drawn(param: jax.Array, key: jax.Array) -> Drawn:
    """The operand of a leaf for which `can_be_drawn`."""
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(key) if is_typed else key
    # The barrier ties the index to the key. XLA would else compute it before the loop of a fire.
    data, steps = lax.optimization_barrier((data, index_steps(param.shape)))
    first, second = (data[i].reshape([1] * param.ndim) for i in range(2))
    return Drawn(param, _index(steps, param), (first, second))


def index_steps(shape: Sequence[int]) -> list[jax.Array]:
    """For each axis, how much the flat index grows along it, uint32[length]."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return [
        lax.iota(jnp.uint32, n) * jnp.uint32(stride)
        for n, stride in zip(shape, strides, strict=True)
    ]


def in_loop(operand: Drawn, steps: list[jax.Array]) -> DrawnSource:
    """What a loop carries to read an operand of a stack; `steps` are those of its member."""
    return DrawnSource(operand.param, steps, operand.words)


def read(source: DrawnSource, operand: Drawn, n_padding: int) -> Drawn:
    """The operand, given its source within a loop; the index of padding is 0."""
    index = _index(source.steps, operand.flat_index)
    if n_padding:
        size = np.uint32(math.prod(index.shape[1:]) - n_padding)
        index = jnp.where(index < size, index, jnp.uint32(0))
    return Drawn(source.param, index, source.words)


def _index(steps: list[jax.Array], like: jax.Array) -> jax.Array:
    """The sum of the steps along the last axes of an array of this shape and sharding."""
    named, first = explicit_sharding(like), like.ndim - len(steps)
    arrays = [
        lax.broadcast_in_dim(x, like.shape, (first + i,), out_sharding=named)
        for i, x in enumerate(steps)
    ]
    return functools.reduce(operator.add, arrays)
