"""What a fire decides: which units of every leaf are kept, exactly as many as budgeted.

Leaves whose units compete as a whole are decided together, by one selection. Those that are several
pools (the slices of a stacked axis, the groups of a structure) are decided one by one.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune._base.counting import counting, is_wide, take
from jaxprune._base.sharding import explicit_mesh, sharding_in
from jaxprune._recipe.budget import Leaf
from jaxprune._recipe.coupled import combined
from jaxprune._recipe.scores import is_elementwise, magnitude, needs_key
from jaxprune._topk.topk import select


class Operand(NamedTuple):
    """What the scores of one leaf are computed from; see `jaxprune._recipe.scores`."""

    param: jax.Array
    grad: Any = None
    key: Any = None


def tighten(
    operands: Sequence[Operand],
    masks: Sequence[jax.Array] | None,
    n_keep: jax.Array,
    leaves: Sequence[Leaf],
    *,
    score: Callable[..., jax.Array] = magnitude,
    start: jax.Array | None = None,
    ties: str = "index",
    normalized: bool = False,
    axis_name: Any = None,
) -> tuple[list[jax.Array], jax.Array]:
    """Masks that keep exactly the best `n_keep` units of each pool.

    Args:
      operands: one per leaf that is pruned.
      masks: what may be kept: dropped units stay dropped, even where `n_keep` asks for more. None
        where everything may.
      n_keep: int[n_pools].
      leaves: how each leaf is decided.
      score: score function.
      start: float[n_leaves], the thresholds of the last fire, to open the search at.
      ties: `"index"` or `"hashed"`; see `prune`.
      normalized: divide the scores of each leaf by their root mean square.
      axis_name: a mapped axis over which every leaf is spread; see `select`. It is for leaves that
        are pools, or parts of one.

    Returns:
      Bool masks, and the threshold of each leaf, float32, 0 where it drops nothing. Of several
      pools in a leaf it is the least.
    """
    inputs = (list(operands), masks, n_keep, start)
    decide = functools.partial(_tighten, leaves=leaves, score=score, ties=ties)
    decide = functools.partial(decide, normalized=normalized, axis_name=axis_name)
    whole = all(leaf.traits.is_elementwise for leaf in leaves)
    mesh = None if whole else explicit_mesh(operand.param for operand in operands)
    if mesh is None:
        return decide(*inputs)
    # Units may lie across shards, where an Explicit mesh wants every intermediate sharding spelt
    # out. The compiler chooses these better; the masks come back with the shardings of the params.
    shardings = [sharding_in(mesh, operand.param) for operand in operands]
    every = NamedSharding(mesh, PartitionSpec())

    def chosen_by_compiler(*inputs: Any) -> tuple[list[jax.Array], jax.Array]:
        with jax.sharding.use_abstract_mesh(mesh):
            decided: Any = jax.sharding.auto_axes(decide, out_sharding=(shardings, every))
            return decided(*inputs)

    # Outside `jit` no devices stand behind the mesh of a type. Random scores read no param, and an
    # input that is dropped brings no devices either.
    return jax.jit(chosen_by_compiler, keep_unused=True)(*inputs)


def _tighten(
    operands: Sequence[Operand],
    masks: Sequence[jax.Array] | None,
    n_keep: jax.Array,
    start: jax.Array | None,
    *,
    leaves: Sequence[Leaf],
    score: Callable[..., jax.Array],
    ties: str,
    normalized: bool,
    axis_name: Any,
) -> tuple[list[jax.Array], jax.Array]:
    """`tighten`, where no axis of a mesh is Explicit or no unit is larger than a weight."""
    allowed = [None] * len(operands) if masks is None else masks
    starts = [None] * len(operands) if start is None else list(start)
    cases = list(map(_Case, operands, allowed, leaves, starts))
    together = [case for case in cases if _is_one_pool(case)]
    found = iter(
        _together(together, n_keep, score, ties, normalized, axis_name) if together else ()
    )
    out = [
        next(found) if _is_one_pool(case) else _apart(case, n_keep, score, ties) for case in cases
    ]
    thresholds = jnp.stack([threshold.astype(jnp.float32) for _, threshold in out])
    return [kept for kept, _ in out], jnp.where(jnp.isfinite(thresholds), thresholds, 0)


def swap(
    operands: Sequence[Operand],
    masks: Sequence[jax.Array],
    n_keep: jax.Array,
    n_swap: jax.Array,
    leaves: Sequence[Leaf],
    *,
    grow: Callable[..., jax.Array],
) -> tuple[list[jax.Array], jax.Array]:
    """Drops the `n_swap` smallest kept units of each pool and keeps as many others.

    Those that are grown are the best by `grow` among all that are not kept, the ones just dropped
    included, as in RigL. The number of kept units stays `n_keep`.

    Args:
      operands: one per leaf.
      masks: what is kept so far, `n_keep` units of each pool.
      n_keep: int[n_pools].
      n_swap: int[n_pools], at most `n_keep`.
      leaves: how each leaf is decided.
      grow: score function of the units to grow.

    Returns:
      uint8 masks: 0 dropped, 1 kept, 2 kept now and not before; and the threshold of each leaf.
    """
    with counting(is_wide(n_keep)):
        n_stay = n_keep - n_swap
    stay, thresholds = tighten(operands, masks, n_stay, leaves)
    idle = [~mask for mask in stay]
    grown, _ = tighten(operands, idle, n_swap, leaves, score=grow)
    new = [
        jnp.where(g & (m == 0), jnp.uint8(2), (s | g).astype(jnp.uint8))
        for s, g, m in zip(stay, grown, masks, strict=True)
    ]
    return new, thresholds


class _Case(NamedTuple):
    operand: Operand
    allowed: Any
    leaf: Leaf
    start: Any


def _is_one_pool(case: _Case) -> bool:
    leaf, shape = case.leaf, case.operand.param.shape
    if leaf.axis is not None or leaf.traits.decides_in_groups:
        return False
    return leaf.structure.n_groups(shape) == 1


@dataclasses.dataclass(frozen=True)
class _Scored:
    """The scores of a leaf, or stored ones as they are; equal for equal parts."""

    score: Callable[..., jax.Array]

    def __call__(self, operand: Any) -> jax.Array:
        if not isinstance(operand, Operand):
            return operand
        # A score that was found to be elementwise may fail without a key, though it reads none.
        key = jax.random.key(0) if needs_key(self.score) else None
        return self.score(operand.param, operand.grad, key)


def _stored(operand: Operand, score: Callable[..., jax.Array]) -> jax.Array:
    return score(operand.param, operand.grad, operand.key)


def _normalized(scores: jax.Array) -> jax.Array:
    """float32 scores with a root mean square of 1; zeros stay zeros."""
    scores = scores.astype(jnp.float32)
    return scores / jnp.maximum(jnp.sqrt(jnp.mean(scores * scores)), jnp.finfo(jnp.float32).tiny)


def _together(
    cases: Sequence[_Case],
    n_keep: jax.Array,
    score: Callable[..., jax.Array],
    ties: str,
    normalized: bool,
    axis_name: Any,
) -> list[tuple[jax.Array, jax.Array]]:
    """Masks and thresholds of leaves that are pools, or parts of one, by one selection."""
    deciders: dict[Any, list[_Case]] = {}  # coupled leaves decide as one
    for i, case in enumerate(cases):
        deciders.setdefault(_decider_of(case, i), []).append(case)
    leads = [members[0] for members in deciders.values()]
    pools = sorted({lead.leaf.pools[0] for lead in leads})
    pool_of = tuple(pools.index(lead.leaf.pools[0]) for lead in leads)
    units = [_units(members, score, normalized) for members in deciders.values()]
    allowed = [_allowed(members) for members in deciders.values()]
    among = None if allowed[0] is None else allowed
    starts = [leads[pool_of.index(i)].start for i in range(len(pools))]
    start = None if starts[0] is None else jnp.stack(starts)
    wanted, floors = take(n_keep, np.array(pools)), np.array([lead.leaf.floor for lead in leads])
    scored = _Scored(score)
    first: list[Any] = []
    if floors.any():  # the best of every leaf are safe, the rest compete
        first, _ = select(units, floors, score=scored, among=among, ties=ties)
        pairs = zip(first, allowed, strict=True)
        among = [~f if a is None else a.astype(bool) & ~f for f, a in pairs]
        with counting(is_wide(wanted)):
            wanted = wanted - np.bincount(pool_of, floors).astype(wanted.dtype)
    kept, thresholds = select(
        units,
        wanted,
        score=scored,
        among=among,
        pool_of=pool_of,
        start=start,
        ties=ties,
        axis_name=axis_name,
    )
    if first:
        kept = [k | f for k, f in zip(kept, first, strict=True)]
    decided = dict(zip(deciders, zip(kept, pool_of, strict=True), strict=True))
    out = []
    for i, case in enumerate(cases):
        mask, pool = decided[_decider_of(case, i)]
        shape = case.operand.param.shape
        out.append((case.leaf.structure.expand(mask, shape), thresholds[pool]))
    return out


def _decider_of(case: _Case, i: int) -> Any:
    """The coupled group that a leaf is decided in, or the number of the leaf."""
    group = case.leaf.traits.coupled_group
    return i if group is None else group


def _units(members: Sequence[_Case], score: Callable[..., jax.Array], normalized: bool) -> Any:
    """What `select` scores: the units of a leaf, or those that several leaves share."""
    lead = members[0]
    param, grad, _ = lead.operand
    may_fuse = lead.leaf.traits.is_elementwise and not normalized
    if may_fuse and is_elementwise(score, param, grad):
        return lead.operand._replace(key=None)
    found = []
    for case in members:
        scores = _stored(case.operand, score)
        scores = _normalized(scores) if normalized else scores
        found.append(case.leaf.structure.unit_scores(scores))
    return combined(found)


def _allowed(members: Sequence[_Case]) -> Any:
    """The units that may stay: none of those that any of the leaves has dropped."""
    if members[0].allowed is None:
        return None
    masks = [case.leaf.structure.unit_mask(case.allowed) for case in members]
    return masks[0] if len(masks) == 1 else functools.reduce(jnp.logical_and, masks)


def _apart(
    case: _Case, n_keep: jax.Array, score: Callable[..., jax.Array], ties: str
) -> tuple[jax.Array, jax.Array]:
    """Mask and threshold of a leaf that is several pools."""
    structure, axis = case.leaf.structure, case.leaf.axis
    scores = _stored(case.operand, score)

    def one(scores: jax.Array, allowed: Any, n_keep: jax.Array) -> tuple[jax.Array, jax.Array]:
        units = structure.unit_scores(scores)
        may = None if allowed is None else structure.unit_mask(allowed)
        n_groups = structure.n_groups(scores.shape)
        if case.leaf.traits.decides_in_groups:
            decider: Any = structure
            everything = jnp.ones(units.shape, bool) if may is None else may
            kept = decider.keep_best(units, everything, per_group(n_keep, n_groups))
            return kept, jnp.zeros((), jnp.float32)
        if n_groups == 1:
            kept, threshold = pick(units, may, n_keep)
        else:  # the columns along the last axis
            columns = (-1, None if may is None else -1, None)
            kept, threshold = jax.vmap(pick, columns, (-1, 0))(
                units, may, per_group(n_keep, n_groups)
            )
        return structure.expand(kept, scores.shape), jnp.min(threshold)

    def per_group(n_keep: jax.Array, n_groups: int) -> jax.Array:
        with counting(is_wide(n_keep)):
            return (n_keep // max(n_groups, 1)).astype(jnp.int32)

    def pick(units: jax.Array, may: Any, n_keep: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = None if case.start is None else case.start[None]
        among = None if may is None else [may]
        kept, thresholds = select([units], take(n_keep, None), among=among, start=start, ties=ties)
        return kept[0], thresholds[0]

    if axis is None:
        return one(scores, case.allowed, take(n_keep, case.leaf.pools[0]))
    slices = (axis, None if case.allowed is None else axis, 0)
    kept, thresholds = jax.vmap(one, slices, (axis, 0))(
        scores, case.allowed, take(n_keep, np.array(case.leaf.pools))
    )
    return kept, jnp.min(thresholds)
