"""One selection as the functions of this package pass it on: pools, stacks, keys and options."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import enable_x64, per_member
from jaxprune._base.float_bits import order_key
from jaxprune._base.sharding import on_cpu
from jaxprune._topk.bit_flags import BitFlags
from jaxprune._topk.copies import StoredKeys
from jaxprune._topk.drawn import Drawn, DrawnSource, in_loop, read as read_drawn
from jaxprune._topk.keys import KeyForm
from jaxprune._topk.stacks import Pools, Stack

ScoreFunction = Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What stays the same throughout one selection.

    It exists only while JAX traces. The stacks hold traced arrays, so this is deliberately not a
    pytree: it can't be an argument of `jit` or a loop by accident.
    """

    pools: Pools
    stacks: Sequence[Stack]
    score: ScoreFunction  # operand -> scores; see `score_function`
    ties: str  # "index" or "hashed"
    one_device: bool  # whether axes may be merged at no cost
    axis_name: Any  # the mapped axis that every pool is spread over, or None
    is_gpu: bool  # whether the arrays lie on GPUs
    bits: Sequence[Any] = ()  # on GPUs, of each leaf: what may be kept as `BitFlags`, or None
    # Of each stack: the `index_steps` of a member if its scores are drawn, else none.
    steps: Sequence[list[jax.Array]] = ()
    # Whether a pass reads a stack only while the search in one of its pools goes on. Then each leaf
    # is a pool, on one CPU.
    skips_finished: bool = False

    def alone(self, stack: Stack) -> "Problem":
        """The selection in one stack, whose pools are numbered from 0. Each leaf is a pool."""
        pools, members = self.pools.only(stack.leaves), tuple(range(len(stack.leaves)))
        stack = stack._replace(leaves=members, pool_of=np.array(members))
        return dataclasses.replace(self, pools=pools, stacks=[stack], skips_finished=False)

    def sources(self) -> list[Any]:
        """What a loop carries to read each stack; see `read`."""
        xs = [self._in_loop(stack) for stack in self.stacks]
        on_one_cpu = self.one_device and on_cpu(jax.tree.leaves(xs))
        return [stack.source for stack in self.stacks] if on_one_cpu else xs

    def _in_loop(self, stack: Stack) -> Any:
        """`stack.x`, but what may be kept as bits if it is stored so, and no drawn scores."""
        operand, among = stack.x
        if isinstance(operand, Drawn):
            steps = next(s for x, s in zip(self.stacks, self.steps, strict=True) if x is stack)
            operand = in_loop(operand, steps)
        bits = self.bits[stack.leaves[0]] if self.bits and len(stack.leaves) == 1 else None
        is_bits = bits is not None and not stack.is_sliced and not stack.n_padding
        return operand, bits if is_bits else among

    def read(self, stack: Stack, source: Any) -> Any:
        """`stack.x`, given its source within a loop."""
        operand, among = source
        if isinstance(operand, DrawnSource):
            operand = read_drawn(operand, stack.x[0], stack.n_padding)
        elif not isinstance(among, BitFlags):
            return stack.read(source)
        if not isinstance(among, BitFlags):
            return operand, among
        leaf = jax.tree.leaves(stack.operands[0])[0]
        flags, shape = among.flags(leaf), stack.x[1].shape
        same_axes = shape[1:] == flags.shape
        return operand, jnp.expand_dims(flags, 0) if same_axes else flags.reshape(shape)

    def integers(self, stack: Stack, x: Any, *, exact: bool = False) -> jax.Array:
        """The signed integers of entries of a stack; see `KeyForm`.

        Args:
          stack: the stack.
          x: `stack.x`, or the same in another shape: an operand, and `among` or None.
          exact: make all NaNs equal.
        """
        operand, among = x
        if isinstance(operand, StoredKeys):
            return operand.integers.astype(stack.form.compared)
        return stack.form.integers(self.score(operand), among, exact=exact)

    def reaching(self, stack: Stack, x: Any, keys: jax.Array) -> jax.Array:
        """Whether entries reach the plain cut of their member; see `KeyForm.reaching`.

        Args:
          stack: the stack.
          x: as for `integers`.
          keys: the `order_key`s of the cuts, [n_members].
        """
        operand, among = x
        scores = self.score(operand)
        return stack.form.reaching(scores, among, per_member(keys, scores.ndim))

    def stored_keys(self, x: Any, form: KeyForm) -> jax.Array:
        """The integers of an operand and what may be kept, in as few bits as hold them."""
        operand, among = x
        return form.stored(self.score(operand), among)

    def order_keys(self, x: Any) -> jax.Array:
        """The keys of entries as pools measure them; 0 where an entry may not be kept."""
        operand, among = x
        if isinstance(operand, StoredKeys):
            return operand.integers.astype(self.pools.pool_dtype)
        key = order_key(self.score(operand)).astype(self.pools.pool_dtype)
        return key if among is None else jnp.where(among.astype(bool), key, jnp.zeros_like(key))

    @functools.cached_property  # a search asks in every loop, and there may be many stacks
    def is_on_cpu(self) -> bool:
        """Whether the arrays lie on CPUs, and are read as these read them best."""
        return not self.is_gpu and on_cpu(jax.tree.leaves([stack.x for stack in self.stacks]))

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


def score_function(score: ScoreFunction, pools: Pools) -> ScoreFunction:
    """The scores that are compared: those of `score`, in the common dtype if there is one."""
    # `score` sees the caller's setting, though it is called within `counting`.
    x64 = jax.dtypes.canonicalize_dtype(np.int64) == np.int64

    def scores_of(operand: Any) -> jax.Array:
        with enable_x64(x64):
            scores = score(operand)
        return scores if pools.common_dtype is None else scores.astype(pools.common_dtype)

    return scores_of
