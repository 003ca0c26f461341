"""One step of a search, for all pools at once: counts narrow the brackets, which give new cuts.

The loop of a search carries one array, the table, with one row per pool: the cuts of the next pass
and the four numbers of the bracket. A table may have ends, too: two columns that say which of the
last cuts became the ends of the bracket. Only large stacks need these, and without them programs
for CPUs compile faster. Tables on GPUs and TPUs always have them. On a CPU a table has an aim:
numbers that no step changes. As arrays beside the table, each would have a kernel of its own. With
the table alone, the loops of both searches have the same step, of which XLA compiles one.

A step computes every entry of the table in the same way, without a reduction, so XLA makes one
kernel of it. With an array for each number, a pass on a GPU would start ten small kernels instead,
and every program with a search would take longer to compile. For the same reason, what a step
divides has the shape of the table: on a CPU, a division of one number per pool would be a kernel of
its own.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.lanes import N_CUTS

# Where the cuts of an interpolated pass lie around the expected place, in standard deviations.
LADDER = np.array([-3.5, -1.1, -0.35, 0.0, 0.35, 1.1, 3.5], np.float32)
_BRACKET_END = N_CUTS + 4
_N_ENDS = 2


class Bracket(NamedTuple):
    """Where the search stands; every field has one entry per pool.

    `n_lo` entries reach `lo` and `n_hi` reach `hi`, where `n_lo >= n_keep >= n_hi`.
    """

    lo: jax.Array
    hi: jax.Array
    n_lo: jax.Array
    n_hi: jax.Array

    def is_exact(self, n_keep: jax.Array) -> jax.Array:
        """Whether one end of the bracket is reached by exactly `n_keep` entries."""
        return (self.n_lo == n_keep) | (self.n_hi == n_keep)

    def is_done(self, n_keep: jax.Array) -> jax.Array:
        """Whether no pass can narrow the bracket: an end is exact, or nothing lies between them."""
        return self.is_exact(n_keep) | (self.hi - self.lo <= jnp.ones_like(self.lo))

    def exact_end(self, n_keep: jax.Array) -> jax.Array:
        """The end that exactly `n_keep` entries reach, if there is one; else `hi`."""
        return jnp.where(self.n_lo == n_keep, self.lo, self.hi)


class Aim(NamedTuple):
    """What stays the same during a search; every field has one entry per pool.

    Attributes:
      n_keep: how many entries are to reach the cut.
      total: how many entries a pass counts.
      key: that of the tied entries if a search goes through their order, else any number.
    """

    n_keep: jax.Array
    total: jax.Array
    key: jax.Array


_AIM_END = _BRACKET_END + len(Aim._fields)


class Counts(NamedTuple):
    """What a pass counts for each pool and cut.

    Attributes:
      n: how many entries reach the cut, [n_pools, N_CUTS]; with a `total`, how many do not.
      total: how many entries a pool has, [n_pools], or None; the aim of a table says it, too.
    """

    n: jax.Array
    total: jax.Array | None = None


def cuts_in(table: jax.Array) -> jax.Array:
    """The cuts of the next pass, [n_pools, N_CUTS]."""
    return table[:, :N_CUTS]


def bracket_in(table: jax.Array) -> Bracket:
    """The brackets."""
    return Bracket(*columns(table)[N_CUTS:_BRACKET_END])


def new_ends_in(table: jax.Array) -> jax.Array:
    """Which cuts of the last pass the ends of the brackets are, [n_pools, 2]: 1 for the first one.

    0 for an end that has not changed. Only in a table with ends.
    """
    return table[:, -_N_ENDS:]


def aim_in(table: jax.Array) -> Aim:
    """The aim, in a table that has one."""
    return Aim(*columns(table)[_BRACKET_END:_AIM_END])


def table_with(bracket: Bracket, cuts: jax.Array, aim: Aim | None, has_ends: bool) -> jax.Array:
    """The table of these brackets and cuts, which are clipped to the inside of the brackets.

    Args:
      bracket: the brackets.
      cuts: keys, [n_pools, N_CUTS]. They rise along each row.
      aim: of a table that has one, else None.
      has_ends: whether the table says which cuts the ends of the brackets are.
    """
    zero = np.zeros((), np.dtype(cuts.dtype))
    n_others = _n_columns(aim is not None, has_ends) - N_CUTS
    padded = lax.pad(cuts, zero, ((0, 0, 0), (0, n_others, 0)))
    return _table(bracket, padded, _new_columns(bracket, aim, has_ends))


@functools.partial(jax.jit, static_argnames="has_ends")
def table_to_start(
    bracket: Bracket, n_keep: jax.Array, aim: Aim | None, has_ends: bool
) -> jax.Array:
    """The table of these brackets, with interpolated cuts.

    Args:
      bracket: the brackets.
      n_keep: how many entries are to reach the cut, [n_pools].
      aim: as for `table_with`.
      has_ends: as for `table_with`.
    """
    cuts = _next_cuts(bracket, n_keep, _n_columns(aim is not None, has_ends))
    return _table(bracket, cuts, _new_columns(bracket, aim, has_ends))


def _n_columns(has_aim: bool, has_ends: bool) -> int:
    return (_AIM_END if has_aim else _BRACKET_END) + _N_ENDS * has_ends


def _new_columns(bracket: Bracket, aim: Aim | None, has_ends: bool) -> list[jax.Array]:
    """The columns behind the brackets."""
    return [*(aim or ()), *[jnp.zeros_like(bracket.lo)] * (_N_ENDS * has_ends)]


@jax.jit
def step(table: jax.Array, counts: Counts, n_keep: jax.Array | None) -> jax.Array:
    """The table after a pass. Brackets that are done stay the same.

    Args:
      table: the table of the pass.
      counts: what the pass counted.
      n_keep: how many entries are to reach the cut, [n_pools]; None if the table has an aim.
    """
    old, n = bracket_in(table), table.shape[1]
    aim: tuple[jax.Array, ...] = ()
    if n_keep is None:
        n_keep, total, _ = aim = aim_in(table)
        counts = counts._replace(total=total)
    no_ends = [jnp.zeros_like(old.lo)] * (n - _BRACKET_END - len(aim))
    new, ends = _narrowed(old, columns(cuts_in(table)), counts, n_keep)
    ends = ends[: len(no_ends)]
    kept = _chosen(old.is_done(n_keep), (*old, *no_ends), (*new, *ends))
    new = Bracket(*kept[:4])
    narrowed_little = _across(new.hi - new.lo, n) > _across(old.hi - old.lo, n) // (N_CUTS + 1)
    cuts = lax.select(narrowed_little, _even_cuts(new, n), _next_cuts(new, n_keep, n))
    return _table(new, cuts, [*aim, *kept[4:]])


def _narrowed(
    old: Bracket, keys: Sequence[jax.Array], counts: Counts, n_keep: jax.Array
) -> tuple[Bracket, list[jax.Array]]:
    """The brackets between the cuts that enclose the wanted count, and which cuts these are.

    Args:
      old: the brackets before.
      keys: the cuts in rising order, [n_pools] each.
      counts: what was counted for each of them.
      n_keep: how many entries are to reach the cut, [n_pools].
    """
    total, wanted, n_lo, n_hi = counts.total, n_keep, old.n_lo, old.n_hi
    if total is not None:  # all of these are entries below a cut from here on
        wanted, n_lo, n_hi = total - n_keep, total - n_lo, total - n_hi
    may_be_lo, may_be_hi = (lax.ge, lax.le) if total is None else (lax.le, lax.ge)
    none = jnp.zeros_like(n_keep)
    numbers = [jnp.full_like(none, i) for i in range(1, N_CUTS + 1)]
    cuts = list(zip(keys, columns(counts.n), numbers, strict=True))
    lower, upper = [old.lo, n_lo, none], [old.hi, n_hi, none]
    for cut in cuts:
        lower = _chosen(may_be_lo(cut[1], wanted), cut, lower)
    for cut in reversed(cuts):
        upper = _chosen(may_be_hi(cut[1], wanted), cut, upper)
    (lo, n_lo, first), (hi, n_hi, last) = lower, upper
    if total is not None:
        n_lo, n_hi = total - n_lo, total - n_hi
    return Bracket(lo, hi, n_lo, n_hi), [first, last]


def _chosen(
    condition: jax.Array, numbers: Sequence[jax.Array], others: Sequence[jax.Array]
) -> list[jax.Array]:
    """Each of `numbers` where the condition is met, else that of `others`."""
    return [lax.select(condition, *pair) for pair in zip(numbers, others, strict=True)]


def _next_cuts(b: Bracket, n_keep: jax.Array, n_columns: int) -> jax.Array:
    """Cuts interpolated from the counts, in the shape of the table.

    The interpolation assumes that entries are uniform within the bracket. Then the number of them
    in the first `x` of its width is binomial, which gives the expected place of the wanted count
    and its standard deviation; the cuts are spread around that place in multiples of it.

    Args:
      b: the brackets.
      n_keep: how many entries are to reach the cut, [n_pools].
      n_columns: of the table.
    """
    along = functools.partial(_along, n_columns=n_columns)
    real = jnp.float64 if b.lo.dtype == jnp.uint64 else jnp.float32
    width, n_inside, n_below = (
        _across(x, n_columns).astype(real) for x in (b.hi - b.lo, b.n_lo - b.n_hi, b.n_lo - n_keep)
    )
    # Different numbers in the columns, or XLA would divide one number per pool, in its own kernel.
    n_inside = jnp.maximum(n_inside, along(np.ones(N_CUTS), real, others=2))
    # A cut is this many entries below or above the expected place, but at least a key per unit.
    n_away = jnp.sqrt(
        along(LADDER**2, real) * n_below * jnp.maximum(n_inside - n_below, 0) / n_inside
    )
    away = along(np.sign(LADDER), real) * jnp.maximum(
        width * n_away, along(np.abs(LADDER), real) * n_inside
    )
    offset = (width * n_below + away) / n_inside
    # Rounding may carry the width just past the integer type; anything past `hi` is clipped later.
    offset = lax.clamp(jnp.zeros_like(offset), offset, width * (1 - 2.0**-20))
    return _across(b.lo, n_columns) + offset.astype(b.lo.dtype)


def _even_cuts(b: Bracket, n_columns: int) -> jax.Array:
    """Cuts that divide the brackets evenly, in the shape of the table."""
    section = (_across(b.hi - b.lo, n_columns) + N_CUTS) // (N_CUTS + 1)
    numbers = _along(np.arange(1, N_CUTS + 1), b.lo.dtype, n_columns)
    return _across(b.lo, n_columns) + section * numbers


def _table(b: Bracket, cuts: jax.Array, others: Sequence[jax.Array]) -> jax.Array:
    """The table of brackets, other columns, and the cuts in the first columns of its shape."""
    one, n_columns = jnp.ones_like(b.lo), cuts.shape[1]
    table = lax.clamp(_across(b.lo + one, n_columns), cuts, _across(b.hi - one, n_columns))
    for i, number in enumerate((*b, *others), N_CUTS):
        is_column = jnp.asarray(np.broadcast_to(np.arange(n_columns) == i, table.shape))
        table = lax.select(is_column, _across(number, n_columns), table)
    return table


def columns(x: jax.Array) -> list[jax.Array]:
    """The columns of an array, [n_pools] each."""
    return [lax.index_in_dim(x, j, 1, keepdims=False) for j in range(x.shape[1])]


def _across(x: jax.Array, n_columns: int) -> jax.Array:
    """Repeats one number per pool in all columns of the table."""
    return lax.broadcast_in_dim(x, (*x.shape, n_columns), (0,))


def _along(numbers: np.ndarray, dtype: Any, n_columns: int, others: int = 0) -> jax.Array:
    """One number for each cut, and `others` in the other columns; [1, columns]."""
    padded = np.pad(numbers, (0, n_columns - N_CUTS), constant_values=others)
    return jnp.asarray(padded[None], dtype)
