"""Flags of several entries in one byte, which a GPU unpacks in every pass.

A loop stores what it reads in the form in which it gets it: unpacked flags take a byte an entry.
"""

from __future__ import annotations

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
      pack: `(flags, like) -> bits`, its inverse, or None. If it is given, a selection among these
        flags on a GPU may return `BitFlags`, too.
    """

    bits: jax.Array
    unpack: Callable[[jax.Array, Any], jax.Array] = dataclasses.field(metadata={"static": True})
    pack: Callable[[jax.Array, Any], jax.Array] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    def flags(self, like: Any) -> jax.Array:
        """The flags of the entries of `like`, a bool array."""
        return self.unpack(self.bits, like)

    def only(self, mask: jax.Array, like: Any) -> BitFlags:
        """The flags of entries that are True in a mask. Needs `pack`."""
        pack: Any = self.pack
        return dataclasses.replace(self, bits=pack(mask, like) & self.bits)
