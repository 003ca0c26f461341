"""Many leaves in rounds: a few of them at a time are copied, searched and masked.

If every leaf had kernels of its own, the time to compile would grow with their number; and in one
stack of all leaves of a shape, copies would be as large as the model, and on a CPU most of the time
would go into new pages of memory. So a loop makes rounds: each copies about 32 MiB into the same
memory, which stays in the cache while it is searched. All rounds run the same kernels; the round
only decides which leaves are copied.

A round has slots, and every leaf of more than 256 KiB is alone in one: XLA for CPUs copies an array
faster than it concatenates several, and has no kernel to compile for it. Smaller leaves share a
slot, so that there are not too many slots. A pass reads only those in which the search goes on.

This is for pools that are one leaf each, on a single CPU device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import take
from jaxprune._base.lanes import LONGEST_ROW
from jaxprune._base.sharding import on_cpu
from jaxprune._topk.candidates import large_stacks
from jaxprune._topk.drawn import Drawn, index_steps
from jaxprune._topk.kept import kept_masks, masks_of_members, thresholds
from jaxprune._topk.keys import KeyForm
from jaxprune._topk.problem import Problem
from jaxprune._topk.search import search
from jaxprune._topk.stacks import (
    Stack,
    concatenated,
    in_rows,
    leaves_of_stacks,
    stacked,
    unstacked,
)

# About how many bytes a round copies.
_ROUND_BYTES = 2**25
# About how many slots there are at most. Each has kernels to compile.
_MOST_SLOTS = 12
# The largest arrays of the leaves that share a slot have at most this many bytes in all.
_SLOT_BYTES = 2**19
# If there are fewer entries in all, they are read in every pass.
_LONG_SEARCH = 2**20


class Leaves(NamedTuple):
    """What a selection reads, and how many entries it keeps.

    Attributes:
      pairs: of each leaf, its operand and what may be kept.
      forms: of each leaf, how its scores become integers.
      problem: the selection; its stacks are not made yet.
      n_keep: how many entries of each pool to keep.
      start: the thresholds that the search in each pool starts from, or None.
    """

    pairs: Sequence[Any]
    forms: Sequence[KeyForm]
    problem: Problem
    n_keep: jax.Array
    start: jax.Array | None

    def only(self, leaves: Sequence[int]) -> Leaves:
        """Some of the leaves, each of which is a pool."""
        pools = self.problem.pools
        pool_of = np.array([pools.pool_of[leaf] for leaf in leaves])
        return Leaves(
            pairs=[self.pairs[leaf] for leaf in leaves],
            forms=[self.forms[leaf] for leaf in leaves],
            problem=dataclasses.replace(self.problem, pools=pools.only(leaves)),
            n_keep=take(self.n_keep, pool_of),
            start=None if self.start is None else self.start[pool_of],
        )


class Rounds(NamedTuple):
    """Which leaves are copied in which round.

    Attributes:
      n: how many rounds there are.
      slots: of each slot, the leaves that each round copies into it, [n, leaves of the slot]. All
        of them have equal shapes. A leaf may be copied more than once.
    """

    n: int
    slots: list[np.ndarray]

    def leaves(self) -> np.ndarray:
        """The leaves that each round copies, [n, leaves of a round]."""
        return np.concatenate(self.slots, axis=1)


def select_all(leaves: Leaves) -> tuple[list[Any], jax.Array]:
    """The mask of each leaf, see `kept_masks`, and the threshold of each pool."""
    rounds = _planned(leaves)
    if rounds is None:
        return _at_once(leaves)
    masks, of_rounds = _in_rounds(leaves, rounds)
    order = rounds.leaves().reshape(-1).tolist()
    if rest := [leaf for leaf in range(len(leaves.pairs)) if leaf not in masks]:
        rest_masks, of_rest = _at_once(leaves.only(rest))
        masks |= dict(zip(rest, rest_masks, strict=True))
        of_rounds, order = jnp.concatenate([of_rounds, of_rest]), [*order, *rest]
    place = {leaf: i for i, leaf in enumerate(order)}
    of_pools = np.array([place[leaf] for leaf in np.argsort(leaves.problem.pools.pool_of).tolist()])
    return [masks[leaf] for leaf in range(len(leaves.pairs))], of_rounds[of_pools]


def _at_once(leaves: Leaves) -> tuple[list[Any], jax.Array]:
    """`select_all`, by one search for all of them."""
    problem, pools = leaves.problem, leaves.problem.pools
    longest_row = LONGEST_ROW if problem.is_gpu else 0
    keys_of = problem.stored_keys if problem.is_gpu else None
    stacks = stacked(leaves.pairs, leaves.forms, pools, problem.one_device, longest_row, keys_of)
    problem = dataclasses.replace(problem, stacks=stacks, steps=list(map(_steps, stacks)))
    if _may_skip(leaves, problem):
        problem = dataclasses.replace(problem, skips_finished=True)
    ended = search(problem, leaves.n_keep, leaves.start)
    return kept_masks(ended, problem), thresholds(ended.cuts().key, pools)


def _may_skip(leaves: Leaves, problem: Problem) -> bool:
    """Whether it pays to read only the stacks in which the search goes on."""
    is_long = len(problem.stacks) > 1 and sum(problem.pools.sizes) >= _LONG_SEARCH
    return is_long and _are_pools_on_one_cpu(leaves) and not large_stacks(problem)


def _steps(stack: Stack) -> list[jax.Array]:
    """The `index_steps` of a member of a stack if its scores are drawn."""
    operand, _ = stack.x
    return index_steps(operand.flat_index.shape[1:]) if isinstance(operand, Drawn) else []


def _planned(leaves: Leaves) -> Rounds | None:
    """The rounds that copy most of the bytes of leaves of equal shape; None if these are few."""
    if not _are_pools_on_one_cpu(leaves):
        return None
    stacks = leaves_of_stacks(leaves.pairs, leaves.problem.pools, one_device=True)
    classes = [_Class.of(alike, leaves.pairs) for alike in stacks if len(alike) > 1]
    n = _n_bytes(classes) // _ROUND_BYTES
    if n > 1:
        n = max(n, sum(len(x.groups) for x in classes) // _MOST_SLOTS)
    while n > 1:
        chosen = [x for x in classes if len(x.groups) >= n]
        if _n_bytes(chosen) > _n_bytes(classes) // 2:
            n = min(range(n, 2 * n), key=functools.partial(_n_bytes, chosen))
            return Rounds(n, [slot for x in chosen for slot in x.slots(n)])
        n //= 2
    return None


class _Class(NamedTuple):
    """Leaves of equal shape.

    Attributes:
      groups: the leaves that share a slot, [n_groups, leaves of a slot].
      n_bytes: of each leaf and what may be kept.
    """

    groups: np.ndarray
    n_bytes: int

    @staticmethod
    def of(alike: Sequence[int], pairs: Sequence[Any]) -> _Class:
        """The class of these leaves, given the operands of all."""
        n_bytes = [x.nbytes for x in jax.tree.leaves(pairs[alike[0]])]
        n = min(max(_SLOT_BYTES // max(n_bytes), 1), len(alike))
        return _Class(_in_groups(np.array(alike), -(-len(alike) // n)), sum(n_bytes))

    def slots(self, n: int) -> np.ndarray:
        """The slots that `n` rounds need, [slots, n, leaves of a slot]."""
        return _in_groups(self.groups, n).swapaxes(0, 1)


def _n_bytes(classes: Sequence[_Class], n: int = 1) -> int:
    """How many bytes `n` rounds copy."""
    return sum(x.slots(n).size * x.n_bytes for x in classes)


def _in_groups(x: np.ndarray, n: int) -> np.ndarray:
    """The entries of an array along its first axis as `n` groups of equal length, [n, length, ...].

    The last entry is repeated if `n` doesn't divide their number.
    """
    length = -(-len(x) // n)
    return x[np.minimum(np.arange(n * length), len(x) - 1)].reshape(n, length, *x.shape[1:])


def _are_pools_on_one_cpu(leaves: Leaves) -> bool:
    """Whether each leaf is a pool that lies on a CPU alone, and has keys of at most 32 bits."""
    problem, arrays = leaves.problem, jax.tree.leaves(leaves.pairs)
    pools = problem.pools
    if not on_cpu(arrays) or not problem.one_device or problem.axis_name is not None:
        return False
    one_leaf_each = sorted(pools.pool_of) == list(range(len(pools.sizes)))
    return one_leaf_each and pools.pool_dtype == jnp.uint32


def _in_rounds(leaves: Leaves, rounds: Rounds) -> tuple[dict[int, jax.Array], jax.Array]:
    """The masks of the leaves that are copied in rounds, and the thresholds of their pools.

    Returns:
      A mask for each of these leaves, and thresholds, [rounds * leaves of a round].
    """
    in_rounds = rounds.leaves()
    pools = np.array(leaves.problem.pools.pool_of, np.int32)[in_rounds]
    first = leaves.only(in_rounds[0].tolist())  # shapes are the same in every round
    copy = lambda i: [
        _concatenated([leaves.pairs[leaf] for leaf in slot[i]]) for slot in rounds.slots
    ]
    copies = [functools.partial(copy, i) for i in range(rounds.n)]

    def one_round(i: jax.Array, results: Any) -> Any:
        stacks = _stacks(first, lax.switch(i, copies), [slot.shape[1] for slot in rounds.slots])
        problem = dataclasses.replace(first.problem, stacks=stacks, skips_finished=True)
        pool = jnp.asarray(pools)[i]
        start = None if leaves.start is None else leaves.start[pool]
        ended = search(problem, take(leaves.n_keep, pool), start)
        new = masks_of_members(ended, problem), thresholds(ended.cuts().key, problem.pools)
        put = lambda into, x: lax.dynamic_update_index_in_dim(into, x, i, 0)
        return jax.tree.map(put, results, new)

    sizes = [leaves.problem.pools.leaf_sizes[slot[0, 0]] for slot in rounds.slots]
    masks = [jnp.zeros((*slot.shape, n), bool) for slot, n in zip(rounds.slots, sizes, strict=True)]
    values = jnp.zeros(in_rounds.shape, jnp.float32)
    masks, values = lax.fori_loop(0, rounds.n, one_round, (masks, values))
    of_shapes: dict[tuple[int, ...], dict[int, jax.Array]] = {}
    for slot, mask in zip(rounds.slots, masks, strict=True):
        shape = leaves.problem.pools.shapes[slot[0, 0]]
        of_shape = of_shapes.setdefault(shape, {})
        for leaf, member in zip(slot.reshape(-1).tolist(), mask.reshape(-1, *shape), strict=True):
            of_shape.setdefault(leaf, member)
    of_leaves = {}
    for of_shape in of_shapes.values():
        of_leaves |= dict(zip(of_shape, unstacked(list(of_shape.values())), strict=True))
    return of_leaves, values.reshape(-1)


def _concatenated(pairs: Sequence[Any]) -> Any:
    """Operands of equal shape as one, along the first axis."""
    return jax.tree.map(lambda *xs: concatenated(xs), *pairs)


def _stacks(leaves: Leaves, xs: Sequence[Any], lengths: Sequence[int]) -> list[Stack]:
    """The stacks of a round.

    Args:
      leaves: those of the round, in the order of the stacks.
      xs: the operands of each stack, concatenated.
      lengths: how many leaves each stack has.
    """
    stacks, first = [], 0
    for x, length in zip(xs, lengths, strict=True):
        members = np.arange(first, first := first + length)
        size = leaves.problem.pools.sizes[members[0]]
        form, offsets = leaves.forms[members[0]], np.zeros_like(members)
        rows = jax.tree.map(functools.partial(in_rows, n_members=length), x)
        stacks.append(Stack(tuple(members.tolist()), (), members, offsets, size, form, rows))
    return stacks
