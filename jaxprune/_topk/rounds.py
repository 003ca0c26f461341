"""Many leaves in rounds: a few of them at a time are copied, searched and masked.

Leaves of equal shape are copied into a stack, so that the time to compile does not grow with their
number. Copies of all leaves at once would be as large as the model, and on a CPU most of the time
would go into new pages of memory. So a loop makes rounds: each copies about 32 MiB into the same
memory, which stays in the cache while it is searched. All rounds run the same kernels; the round
only decides which leaves are copied.

This is for pools that are one leaf each, on a single CPU device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import take
from jaxprune._base.lanes import LONGEST_ROW
from jaxprune._base.sharding import on_cpu
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
      classes: leaves of equal shape, for each of some shapes.
    """

    n: int
    classes: list[list[int]]

    def leaves(self) -> list[np.ndarray]:
        """The leaves of each class that each round copies, [n, leaves of a round].

        The last leaf is copied more than once if the rounds don't divide the length of its class.
        """
        lengths = [-(-len(leaves) // self.n) for leaves in self.classes]
        return [
            np.pad(leaves, (0, self.n * length - len(leaves)), "edge").reshape(self.n, length)
            for leaves, length in zip(self.classes, lengths, strict=True)
        ]


def select_all(leaves: Leaves) -> tuple[list[Any], jax.Array]:
    """The mask of each leaf, see `kept_masks`, and the threshold of each pool."""
    rounds = _planned(leaves)
    if rounds is None:
        return _at_once(leaves)
    masks, of_rounds = _in_rounds(leaves, rounds)
    order = np.concatenate(rounds.leaves(), axis=1).reshape(-1).tolist()
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
    ended = search(problem, leaves.n_keep, leaves.start)
    return kept_masks(ended, problem), thresholds(ended.cuts().key, pools)


def _steps(stack: Stack) -> list[jax.Array]:
    """The `index_steps` of a member of a stack if its scores are drawn."""
    operand, _ = stack.x
    return index_steps(operand.flat_index.shape[1:]) if isinstance(operand, Drawn) else []


def _planned(leaves: Leaves) -> Rounds | None:
    """The rounds that copy most of the bytes of leaves of equal shape; None if these are few."""
    if not _may_make_rounds(leaves):
        return None
    n_bytes = [sum(x.nbytes for x in jax.tree.leaves(pair)) for pair in leaves.pairs]
    stacks = leaves_of_stacks(leaves.pairs, leaves.problem.pools, one_device=True)
    classes = [alike for alike in stacks if len(alike) > 1]
    total = lambda classes: sum(len(alike) * n_bytes[alike[0]] for alike in classes)
    n = total(classes) // _ROUND_BYTES
    while n > 1:
        chosen = [alike for alike in classes if len(alike) >= n]
        if total(chosen) > total(classes) // 2:
            sizes = [(len(alike), n_bytes[alike[0]]) for alike in chosen]
            return Rounds(min(range(n, 2 * n), key=functools.partial(_copied, sizes)), chosen)
        n //= 2
    return None


def _copied(sizes: Sequence[tuple[int, int]], n: int) -> int:
    """How many bytes `n` rounds copy, given the number of leaves of each class and their bytes."""
    return sum(n * -(-length // n) * n_bytes for length, n_bytes in sizes)


def _may_make_rounds(leaves: Leaves) -> bool:
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
    of_class = rounds.leaves()
    in_rounds = np.concatenate(of_class, axis=1)
    pools = np.array(leaves.problem.pools.pool_of, np.int32)[in_rounds]
    first = leaves.only(in_rounds[0].tolist())  # shapes are the same in every round
    copy = lambda i: [_concatenated([leaves.pairs[leaf] for leaf in c[i]]) for c in of_class]
    copies = [functools.partial(copy, i) for i in range(rounds.n)]

    def one_round(i: jax.Array, results: Any) -> Any:
        stacks = _stacks(first, lax.switch(i, copies), [c.shape[1] for c in of_class])
        problem = dataclasses.replace(first.problem, stacks=stacks)
        pool = jnp.asarray(pools)[i]
        start = None if leaves.start is None else leaves.start[pool]
        ended = search(problem, take(leaves.n_keep, pool), start)
        new = masks_of_members(ended, problem), thresholds(ended.cuts().key, problem.pools)
        put = lambda into, x: lax.dynamic_update_index_in_dim(into, x, i, 0)
        return jax.tree.map(put, results, new)

    shapes = [leaves.problem.pools.shapes[alike[0]] for alike in rounds.classes]
    pairs = list(zip(of_class, shapes, strict=True))
    masks = [jnp.zeros((*c.shape, math.prod(shape)), bool) for c, shape in pairs]
    values = jnp.zeros(in_rounds.shape, jnp.float32)
    masks, values = lax.fori_loop(0, rounds.n, one_round, (masks, values))
    of_leaves = {}
    for alike, mask, shape in zip(rounds.classes, masks, shapes, strict=True):
        members = unstacked(mask.reshape(-1, *shape)[: len(alike)])
        of_leaves |= dict(zip(alike, members, strict=True))
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
