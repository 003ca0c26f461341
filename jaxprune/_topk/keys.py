"""The integers that a pass compares: as little arithmetic for each entry as the scores allow.

A pool measures its entries in `order_key`s, unsigned and the same for every leaf of the pool. A
pass compares signed integers of the size of the scores instead, because processors without AVX-512
have no unsigned comparison. They are made from the bits of a score by one `and` if it is known to
be non-negative, else by a subtraction on either side of zero. What few entries need is moved into
the cuts: a cut never lies above the smallest NaN, so NaNs need not be equal to be counted, and a
cut below -inf is raised to -inf. `exact` integers, in which all NaNs are equal, serve where ties
matter.

A GPU compares unsigned integers as fast. There the integers are the keys, of 32 bits or more, and a
pass needs no kernel that makes other cuts of them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.float_bits import bits_of, keyed_dtype, order_key


@dataclasses.dataclass(frozen=True)
class KeyForm:
    """How the scores of one leaf become signed integers.

    Attributes:
      dtype: the float dtype whose bits make the keys.
      has_sign: whether a score may be negative. If not, NaNs and zeros may still have a sign bit.
      has_floor: whether some entries may not be kept; they get the smallest integer, below the
        integer of every score.
      is_key: whether the integers are the `order_key`s themselves, in 32 bits or more.
    """

    dtype: np.dtype
    has_sign: bool
    has_floor: bool
    is_key: bool = False

    @property
    def signed(self) -> Any:
        """The signed integer type of the size of the scores."""
        return {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[self.dtype.itemsize]

    @property
    def compared(self) -> Any:
        """The integer type of the integers and the cuts."""
        if self.is_key:
            return jnp.uint64 if self.dtype.itemsize == 8 else jnp.uint32
        return self.signed

    @property
    def _offset(self) -> int:
        """How much an `order_key` exceeds the integer, besides the sign bit."""
        return bits_of(self.dtype).lowest_key - self.has_floor if self.has_sign else 0

    @property
    def _zero(self) -> Any:
        """The integer of zero; that of a larger number exceeds it by the bits of the number."""
        layout = bits_of(self.dtype)
        return self.signed(layout.infinity - layout.sign)

    @property
    def _has_plain_bits(self) -> bool:
        """Whether scores are compared by their bits in `reaching`."""
        return self.has_sign and not self.has_floor

    @property
    def nan(self) -> int:
        """The integer of the smallest NaN."""
        layout = bits_of(self.dtype)
        return layout.nan_key - self._offset - layout.sign

    def integers(self, scores: jax.Array, among: Any, *, exact: bool = False) -> jax.Array:
        """Integers that sort like the scores, NaN highest, -0.0 equal to 0.0.

        Args:
          scores: in any dtype that `dtype` holds exactly.
          among: nonzero where an entry may be kept, or None; not None if `has_floor`.
          exact: make all NaNs equal.
        """
        if self.is_key:
            entry = self._keys(scores.astype(self.dtype), exact).astype(self.compared)
            if not self.has_floor:
                return entry
            # With a number, `where` accepts scores and flags that are sharded in different ways.
            return jnp.where(among.astype(bool), entry, self.compared(0))
        layout, signed = bits_of(self.dtype), self.signed
        bits = lax.bitcast_convert_type(scores.astype(self.dtype), signed)
        lowest = signed(-layout.sign)
        if self.has_sign:
            # Below zero the bits rise with the magnitude. `start` moves -inf to the lowest integer,
            # and NaNs with a sign bit past it, where they wrap to the highest ones.
            start = signed(layout.sign - layout.infinity)
            entry = jnp.where(bits < 0, (lowest - start) - bits, bits - start)
            if exact or self.has_floor:
                entry = jnp.minimum(entry, signed(self.nan - self.has_floor))
            if self.has_floor:
                entry = entry + signed(1)
        else:
            entry = bits & signed(layout.sign - 1)
            if exact:
                entry = jnp.minimum(entry, signed(self.nan))
        return entry if not self.has_floor else jnp.where(among.astype(bool), entry, lowest)

    def are_plain(self, cuts: jax.Array) -> jax.Array:
        """Whether `reaching` may compare scores with each of these `cuts`."""
        plain = cuts <= self.signed(self.nan)
        return plain & (cuts > self._zero) if self._has_plain_bits else plain

    def reaching(self, scores: jax.Array, among: Any, keys: jax.Array) -> jax.Array:
        """Whether entries reach plain cuts, in fewer operations than `integers` takes.

        If a kernel has no more operations than it reads and writes bytes, a CPU runs it in one
        thread where the array is small. The operations on the cut count, too. Most cuts are plain:
        they lie above zero, if there are negative scores, and not above NaN.

        Args:
          scores: as for `integers`.
          among: as for `integers`.
          keys: the `order_key`s of the cuts, which broadcast to the scores.
        """
        if not self._has_plain_bits:
            return self.integers(scores, among) >= self.cuts(keys)
        layout, scores = bits_of(self.dtype), scores.astype(self.dtype)
        bits = lax.bitcast_convert_type(scores, self.signed)
        unsigned = lax.bitcast_convert_type(scores, layout.unsigned)
        is_negative_nan = unsigned > layout.unsigned(layout.sign + layout.infinity)
        return (bits >= self._without_sign(keys)) | is_negative_nan

    def stored(self, scores: jax.Array, among: Any) -> jax.Array:
        """The `exact` integers, if they are keys, in the size of the scores.

        Args:
          scores: as for `integers`.
          among: as for `integers`.
        """
        return self.integers(scores, among, exact=True).astype(bits_of(self.dtype).unsigned)

    def _keys(self, scores: jax.Array, exact: bool) -> jax.Array:
        """The `order_key`s of scores; those of NaNs may differ unless `exact`."""
        if self.has_sign:
            return order_key(scores)
        layout = bits_of(self.dtype)
        key = lax.bitcast_convert_type(scores, layout.unsigned) | layout.unsigned(layout.sign)
        return jnp.minimum(key, layout.unsigned(layout.nan_key)) if exact else key

    def cuts(self, keys: jax.Array) -> jax.Array:
        """The integers of `order_key`s, which may be one too large, or smaller than any score's.

        An entry is below a cut by key if its integer is below that of the cut.
        """
        if self.is_key:
            return keys.astype(self.compared)
        layout = bits_of(self.dtype)
        wide = keys.dtype.type
        if self.has_sign:
            scored = jnp.maximum(keys, wide(layout.lowest_key)) - wide(self._offset)
            is_floor = keys == wide(0) if self.has_floor else False
            keys = jnp.where(is_floor, wide(0), scored)
        return self._without_sign(keys)

    def _without_sign(self, keys: jax.Array) -> jax.Array:
        """Keys less the sign bit, signed. From zero on these are the bits of the scores."""
        layout = bits_of(self.dtype)
        unsigned = keys.astype(layout.unsigned) ^ layout.unsigned(layout.sign)
        return lax.bitcast_convert_type(unsigned, self.signed)


def key_form(
    score_dtype: Any, common_dtype: Any, has_sign: bool, has_floor: bool, on_gpu: bool
) -> KeyForm:
    """The form of scores of a dtype, widened to `common_dtype` unless that is None."""
    return KeyForm(np.dtype(common_dtype or keyed_dtype(score_dtype)), has_sign, has_floor, on_gpu)
