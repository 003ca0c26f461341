"""Flags of several entries in one byte, which a GPU unpacks in every pass.

A loop stores what it reads in the form in which it gets it: unpacked flags take a byte an entry.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BitFlags:
    """Flags, and how to unpack them.

    Attributes:
      bits: the stored array.
      unpack: `(bits, like) -> flags`, a function that XLA can fuse into what reads the flags. They
        have the shape of `like`, and its sharding.
    """

    bits: jax.Array
    unpack: Callable[[jax.Array, Any], jax.Array] = dataclasses.field(metadata={"static": True})

    def flags(self, like: Any) -> jax.Array:
        """The flags of the entries of `like`, a bool array."""
        return self.unpack(self.bits, like)
