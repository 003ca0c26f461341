"""Which units of every leaf are kept: exactly as many as budgeted.

Leaves that are one pool, or a part of one, are decided together, by one selection. Leaves that are
several pools (the slices of a stacked axis, the groups of a structure) are decided one by one.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune._base.counting import counting, is_wide, take
from jaxprune._base.sharding import explicit_mesh, is_sharded_along, on_gpu, sharding_in
from jaxprune._recipe.leaf import Leaf
from jaxprune._recipe.norms import norm_of_norms
from jaxprune._topk.bit_flags import BitFlags
from jaxprune._topk.drawn import drawn
from jaxprune._topk.topk import select
from jaxprune._transform.apart import decided_apart
from jaxprune._transform.case import Case, is_one_pool, weight_scores
from jaxprune._transform.normalized import normalized, scale_of
from jaxprune._transform.operand import Operand, Rules, Scored, is_drawn, is_fused


def tighten(
    operands: Sequence[Operand],
    masks: Sequence[jax.Array | BitFlags] | None,
    n_keep: jax.Array,
    leaves: Sequence[Leaf],
    rules: Rules = Rules(),
    start: jax.Array | None = None,
) -> tuple[list[Any], jax.Array]:
    """Masks that keep exactly the best `n_keep` units of each pool.

    Args:
      operands: one per pruned leaf.
      masks: which weights may be kept: dropped ones stay dropped, even where `n_keep` asks for
        more. None where all may. `BitFlags` are unpacked in every pass on a GPU, elsewhere once.
      n_keep: int[n_pools].
      leaves: how each leaf is decided.
      rules: how units are compared.
      start: float[n_leaves], the thresholds of the last fire; the search starts there.

    Returns:
      Bool masks; on a GPU, `BitFlags` for some of the leaves for which `masks` holds `BitFlags`
      with `pack`. And the threshold of each leaf, float32, 0 where it drops nothing; the smallest
      one where a leaf has several pools.
    """
    inputs = (list(operands), masks, n_keep, start)
    decide = functools.partial(_tighten, leaves=leaves, rules=rules)
    params = [operand.param for operand in operands]
    mesh = explicit_mesh(params) if any(map(_needs_compiler, params, leaves)) else None
    if mesh is None:
        return decide(*inputs)
    # Units may lie across shards, or the slices of a leaf on several devices, and on an Explicit
    # mesh every intermediate sharding would have to be spelt out. The compiler chooses these
    # better; the masks come back sharded like the params.
    shardings = [sharding_in(mesh, param) for param in params]
    replicated = NamedSharding(mesh, PartitionSpec())

    def as_flags(operands: Sequence[Operand], *others: Any) -> tuple[list[jax.Array], jax.Array]:
        decided, thresholds = decide(operands, *others)
        pairs = zip(decided, operands, strict=True)
        flags = [m.flags(o.param) if isinstance(m, BitFlags) else m for m, o in pairs]
        return flags, thresholds

    def chosen_by_compiler(*inputs: Any) -> tuple[list[jax.Array], jax.Array]:
        with jax.sharding.use_abstract_mesh(mesh):
            decided: Any = jax.sharding.auto_axes(as_flags, out_sharding=(shardings, replicated))
            return decided(*inputs)

    # Outside `jit`, the mesh of a type has no devices: they come from the inputs. Random scores
    # read no param, so without `keep_unused` no input with devices might be left.
    return jax.jit(chosen_by_compiler, keep_unused=True)(*inputs)


def _needs_compiler(param: jax.Array, leaf: Leaf) -> bool:
    """Whether, on an Explicit mesh, the compiler has to choose the shardings for this leaf."""
    return not leaf.traits.is_elementwise or is_sharded_along(param, leaf.axes)


def _tighten(
    operands: Sequence[Operand],
    masks: Sequence[jax.Array | BitFlags] | None,
    n_keep: jax.Array,
    start: jax.Array | None,
    *,
    leaves: Sequence[Leaf],
    rules: Rules,
) -> tuple[list[Any], jax.Array]:
    """`tighten`, where no axis of a mesh is Explicit, or no leaf needs the compiler there."""
    allowed = [None] * len(operands) if masks is None else _readable(masks, operands, leaves)
    starts = [None] * len(operands) if start is None else list(start)
    cases = list(map(Case, operands, allowed, leaves, starts))
    together = [case for case in cases if is_one_pool(case)]
    decided_together = iter(_together(together, n_keep, rules) if together else ())
    decided = [
        next(decided_together) if is_one_pool(case) else decided_apart(case, n_keep, rules)
        for case in cases
    ]
    thresholds = jnp.stack([threshold.astype(jnp.float32) for _, threshold in decided])
    kept = [_without_dropped(case, mask) for case, (mask, _) in zip(cases, decided, strict=True)]
    return kept, jnp.where(jnp.isfinite(thresholds), thresholds, 0)


def _without_dropped(case: Case, mask: Any) -> Any:
    """A new mask, without the weights that were dropped alone, and not with their whole unit.

    The masks of a user may drop single weights of a block or a channel.
    """
    traits = case.leaf.traits
    if case.allowed is None or traits.is_elementwise or traits.decides_in_groups:
        return mask
    return mask & case.allowed.astype(bool)


def _readable(
    masks: Sequence[Any], operands: Sequence[Operand], leaves: Sequence[Leaf]
) -> list[Any]:
    """Masks, unpacked unless single weights are selected from them on a GPU."""
    params = [operand.param for operand in operands]
    may_be_bits = on_gpu(params) and not any(leaf.floor for leaf in leaves)

    def readable(mask: Any, param: jax.Array, leaf: Leaf) -> Any:
        is_selected = leaf.traits.is_elementwise and not leaf.axes
        is_read = not isinstance(mask, BitFlags) or (may_be_bits and is_selected)
        return mask if is_read else mask.flags(param)

    return list(map(readable, masks, params, leaves))


# Leaves that are one pool, or a part of one


class _Contest(NamedTuple):
    """What `select` decides: one entry per decider, which is a leaf or a group of coupled leaves.

    Attributes:
      units: the scores of the units, or the operand that they are computed from.
      allowed: which units may be kept; None where all may.
      pools: the pools that take part, as numbers in the budget.
      pool_of: for each decider, the position of its pool in `pools`.
      floors: how many units each decider keeps at least.
      start: a threshold for each pool, or None.
    """

    units: list[Any]
    allowed: list[Any]
    pools: np.ndarray
    pool_of: tuple[int, ...]
    floors: np.ndarray
    start: Any


def _together(
    cases: Sequence[Case], n_keep: jax.Array, rules: Rules
) -> list[tuple[jax.Array, jax.Array]]:
    """Masks and thresholds of leaves that are one pool, or parts of one, by one selection."""
    deciders: dict[Any, list[Case]] = {}
    for i, case in enumerate(cases):
        deciders.setdefault(_decider(case, i), []).append(case)
    contest = _contest(list(deciders.values()), rules)
    kept, thresholds = _select(contest, take(n_keep, contest.pools), rules)
    decided = {}
    for name, mask, pool in zip(deciders, kept, contest.pool_of, strict=True):
        decided[name] = mask, pool
    by_case = []
    for i, case in enumerate(cases):
        mask, pool = decided[_decider(case, i)]
        shape = case.operand.param.shape
        by_case.append((case.leaf.structure.expand(mask, shape), thresholds[pool]))
    return by_case


def _decider(case: Case, i: int) -> Any:
    """A name for what decides a leaf: its group of coupled leaves, else the leaf itself."""
    group = case.leaf.traits.coupled_group
    return i if group is None else group


def _contest(deciders: Sequence[list[Case]], rules: Rules) -> _Contest:
    """What to select; where leaves are coupled, the first of the group says how."""
    leads = [members[0] for members in deciders]
    pools = sorted({lead.leaf.pools[0] for lead in leads})
    pool_of = tuple(pools.index(lead.leaf.pools[0]) for lead in leads)
    starts = [leads[pool_of.index(i)].start for i in range(len(pools))]
    return _Contest(
        units=[_units(members, rules) for members in deciders],
        allowed=list(map(_allowed, deciders)),
        pools=np.array(pools),
        pool_of=pool_of,
        floors=np.array([lead.leaf.floor for lead in leads]),
        start=None if starts[0] is None else jnp.stack(starts),
    )


def _select(
    contest: _Contest, n_keep: jax.Array, rules: Rules
) -> tuple[list[jax.Array], jax.Array]:
    """Masks of units, and the threshold of each pool."""
    among = None if contest.allowed[0] is None else contest.allowed
    score, ties = Scored(rules.score), rules.ties
    safe: list[Any] = []
    if contest.floors.any():  # the best of every leaf are safe, the rest compete
        safe, _ = select(contest.units, contest.floors, score=score, among=among, ties=ties)
        pairs = zip(safe, contest.allowed, strict=True)
        among = [~s if a is None else a.astype(bool) & ~s for s, a in pairs]
        with counting(is_wide(n_keep)):
            n_keep = n_keep - np.bincount(contest.pool_of, contest.floors).astype(n_keep.dtype)
    kept, thresholds = select(
        contest.units,
        n_keep,
        score=score,
        among=among,
        pool_of=contest.pool_of,
        start=contest.start,
        ties=ties,
        axis_name=rules.axis_name,
    )
    return [k | s for k, s in zip(kept, safe, strict=True)] if safe else kept, thresholds


def _units(members: Sequence[Case], rules: Rules) -> Any:
    """What `select` scores: the units of a leaf, or those that several coupled leaves share."""
    lead = members[0]
    if lead.leaf.traits.is_elementwise and is_fused(lead.operand, rules):
        return _with_scale(lead, rules)
    if lead.leaf.traits.is_elementwise and is_drawn(lead.operand, rules):
        return drawn(lead.operand.param, lead.operand.key)
    return norm_of_norms([_unit_scores(case, rules) for case in members])


def _unit_scores(case: Case, rules: Rules) -> jax.Array:
    """One score per unit of a leaf, stored, as it competes with those of other leaves."""
    scores = normalized(weight_scores(case, rules), rules.normalized, case.leaf.traits)
    return case.leaf.structure.unit_scores(scores)


def unit_scores(operand: Operand, leaf: Leaf, rules: Rules) -> jax.Array:
    """One score per unit of a leaf that shares a pool, as it competes with those of others."""
    return _unit_scores(Case(operand, None, leaf, None), rules)


def _with_scale(case: Case, rules: Rules) -> Operand:
    """The operand that `select` computes the scores of a leaf from."""
    if not rules.normalized:
        return case.operand._replace(key=None)
    scale = scale_of(weight_scores(case, rules), rules.normalized, case.leaf.traits)
    return case.operand._replace(key=None, scale=scale.reshape([1] * case.operand.param.ndim))


def _allowed(members: Sequence[Case]) -> Any:
    """The units that may be kept: none of those that any of the leaves has dropped."""
    if members[0].allowed is None:
        return None
    masks = [case.leaf.structure.unit_mask(case.allowed) for case in members]
    return masks[0] if len(masks) == 1 else functools.reduce(jnp.logical_and, masks)
