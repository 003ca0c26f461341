"""One selection as the functions of this package pass it on: pools, stacks, keys and options."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import enable_x64
from jaxprune._base.float_bits import order_key
from jaxprune._topk.stacks import Pools, Stack

KeyFunction = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What stays the same throughout one selection.

    It exists only while JAX traces. The stacks hold traced arrays, so this is deliberately not a
    pytree: it can't be an argument of `jit` or a loop by accident.
    """

    pools: Pools
    stacks: Sequence[Stack]
    key_of: KeyFunction  # (operand, among) -> keys; see `key_function`
    ties: str  # "index" or "hashed"
    one_device: bool  # whether axes may be merged at no cost
    axis_name: Any  # the mapped axis that every pool is spread over, or None

    @property
    def n_parts(self) -> int:
        """How many parts of equal size every pool has: the length of the mapped axis."""
        return axis_length(self.axis_name)


def axis_length(axis_name: Any) -> int:
    """The length of a mapped axis; 1 for None. Raises a ValueError outside such a map."""
    if axis_name is None:
        return 1
    try:
        return lax.psum(1, axis_name)
    except NameError:
        raise ValueError(
            f"axis_name={axis_name!r}: no axis of this name is mapped here. Call update inside "
            "jax.shard_map, jax.pmap or jax.vmap over an axis of this name, or leave axis_name "
            "out."
        ) from None


def key_function(score: Callable[[Any], jax.Array], pools: Pools) -> KeyFunction:
    """The map from an operand to its keys: integers that sort like its scores.

    It takes the operand and an array that is nonzero where an entry may be kept, or None. An entry
    that may not be kept has key 0, which is below the key of every score.
    """
    # `score` sees the caller's setting, though the key function is called within `counting`.
    x64 = jax.dtypes.canonicalize_dtype(np.int64) == np.int64

    def key_of(operand: Any, among: Any) -> jax.Array:
        with enable_x64(x64):
            scores = score(operand)
        if pools.common_dtype is not None:
            scores = scores.astype(pools.common_dtype)
        key = order_key(scores).astype(pools.entry_dtype)
        return key if among is None else jnp.where(among.astype(bool), key, pools.entry_dtype(0))

    return key_of
