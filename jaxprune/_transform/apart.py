"""The mask of a leaf that is several pools: slices of a stacked axis, or groups of a structure."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import counting, is_wide, take
from jaxprune._base.sharding import n_devices, on_gpu
from jaxprune._topk.signs import score_specs
from jaxprune._topk.topk import select
from jaxprune._transform.case import Case, n_columns, weight_scores
from jaxprune._transform.columns import by_columns, in_rows, picked_in_columns
from jaxprune._transform.operand import Operand, Rules, Scored, has_elementwise_score


def decided_apart(case: Case, n_keep: jax.Array, rules: Rules) -> tuple[jax.Array, jax.Array]:
    """Mask and threshold of a leaf that is several pools."""
    axes, shape = case.leaf.axes, case.operand.param.shape
    if not case.operand.param.size:  # there may be no slice to map over
        return jnp.ones_like(case.operand.param, bool), jnp.zeros((), jnp.float32)
    n_of_slice = take(n_keep, np.array(case.leaf.pools) if axes else case.leaf.pools[0])
    if len(axes) > 1:
        with counting(is_wide(n_of_slice)):
            n_of_slice = n_of_slice.reshape(tuple(shape[axis] for axis in axes))
    slice_shape = tuple(n for axis, n in enumerate(shape) if axis not in axes)
    units_of = functools.partial(_units_of_slice, case)
    decide = functools.partial(_decide_slice, case, rules, slice_shape)
    scored = lambda: (_scored_apart(case, rules), case.allowed)
    # Columns of blocks are pools. For a GPU their scores are stored by columns: at once if the leaf
    # allows it, else by a branch, whose result XLA transposes.
    in_columns = on_gpu([case.operand.param]) and n_columns(case, slice_shape) > 1
    if in_columns and (n_rows := _rows_of_unit(case, rules)):
        kept, thresholds = _decided_by_columns(case, rules, n_rows, n_of_slice)
    elif in_columns:
        units_of_slices = _over_slices(units_of, axes, (True, True), (False, False))
        units = in_rows(lambda: units_of_slices(*scored()), n_of_slice)
        decide_slices = _over_slices(decide, axes, (False, False, False), (True, False))
        kept, thresholds = decide_slices(*units, n_of_slice)
    else:
        of_slice = lambda scored, allowed, n_keep: decide(*units_of(scored, allowed), n_keep)
        decide_slices = _over_slices(of_slice, axes, (True, True, False), (True, False))
        kept, thresholds = decide_slices(*scored(), n_of_slice)
    return kept, jnp.min(thresholds)


def _over_slices(
    function: Callable[..., Any],
    axes: Sequence[int],
    is_in_leaf: Sequence[bool],
    is_out_leaf: Sequence[bool],
) -> Callable[..., Any]:
    """Maps a function over the slices of a leaf.

    Args:
      function: of one slice.
      axes: of the leaf, along which the slices lie.
      is_in_leaf: for each argument, whether the slices lie along these axes; else they lie along
        the first ones.
      is_out_leaf: the same for each result.
    """
    for n_outer, axis in reversed(list(enumerate(axes))):
        inner = axis - n_outer  # the maps around this one remove `n_outer` axes
        in_axes, out_axes = (
            tuple(inner * is_leaf for is_leaf in flags) for flags in (is_in_leaf, is_out_leaf)
        )
        function = jax.vmap(function, in_axes, out_axes)
    return function


def _scored_apart(case: Case, rules: Rules) -> Any:
    """The scores of the weights of a leaf, or the operand that `select` computes them from."""
    is_fused = case.leaf.traits.is_elementwise and has_elementwise_score(case.operand, rules)
    return case.operand._replace(key=None) if is_fused else weight_scores(case, rules)


def _units_of_slice(case: Case, scored: Any, allowed: Any) -> tuple[Any, Any]:
    """The units of a leaf, or of one slice of it, and which of them may be kept."""
    structure: Any = case.leaf.structure
    units = scored if isinstance(scored, Operand) else structure.unit_scores(scored)
    return units, None if allowed is None else structure.unit_mask(allowed)


def _rows_of_unit(case: Case, rules: Rules) -> int:
    """How many rows of a leaf a unit has, if units can be scored some rows at a time; else 0."""
    rows_of_unit = getattr(case.leaf.structure, "rows_of_unit", None)
    if rows_of_unit is None or case.leaf.axes or not has_elementwise_score(case.operand, rules):
        return 0
    shape = case.operand.param.shape
    n_rows = rows_of_unit(shape) or 0
    can_be_split = n_rows and shape[0] % (n_rows * n_devices([case.operand.param])) == 0
    return n_rows if can_be_split else 0


def _decided_by_columns(
    case: Case, rules: Rules, n_rows: int, n_keep: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mask and thresholds of a matrix, whose units are stored by columns."""
    structure: Any = case.leaf.structure
    shape = case.operand.param.shape
    units, allowed = in_rows(lambda: _columns_of_units(case, rules, n_rows), n_keep)
    axes = (0, None if allowed is None else 0, None)
    pick = functools.partial(_pick, case.start, rules, _score_of_units(case, rules))
    pick = jax.vmap(pick, axes, (0, 0))
    kept, thresholds = pick(units, allowed, _per_group(n_keep, structure.n_groups(shape)))
    return structure.expand(kept.T, shape), thresholds


def _columns_of_units(case: Case, rules: Rules, n_rows: int) -> tuple[Any, Any]:
    """The units of a matrix and which may be kept, [columns, rows]; a unit has `n_rows` rows."""
    structure: Any = case.leaf.structure
    operand = case.operand._replace(key=None)
    # Some rows of every part are scored at a time. If the rows lie on several devices, each of
    # these has whole parts, so no row is sent to another device.
    n_parts = n_devices([operand.param])
    in_parts = jax.tree.map(lambda x: x.reshape(n_parts, -1, x.shape[1]), operand)
    score_of = lambda operand: structure.unit_scores(Scored(rules.score)(operand))

    def scores_of(first: Any, n: int) -> jax.Array:
        rows = lambda x: lax.dynamic_slice_in_dim(x, first * n_rows, n * n_rows, axis=1)
        return jax.vmap(score_of)(jax.tree.map(rows, in_parts))

    units = by_columns(scores_of, operand.param.shape[0] // (n_rows * n_parts))
    return units, None if case.allowed is None else structure.unit_mask(case.allowed).T


def _decide_slice(
    case: Case, rules: Rules, shape: tuple[int, ...], units: Any, allowed: Any, n_keep: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mask and threshold of a leaf, or of one slice of it, which may have groups of its own."""
    structure: Any = case.leaf.structure
    n_groups = structure.n_groups(shape)
    pick = functools.partial(_pick, case.start, rules, _score_of_units(case, rules))
    if case.leaf.traits.decides_in_groups:
        everything = jnp.ones(units.shape, bool) if allowed is None else allowed
        kept = structure.keep_best(units, everything, _per_group(n_keep, n_groups))
        return structure.expand(kept, shape), jnp.zeros((), jnp.float32)
    if n_groups == 1:
        kept, threshold = pick(units, allowed, n_keep)
    else:
        kept, threshold = picked_in_columns(pick, units, allowed, _per_group(n_keep, n_groups))
    return structure.expand(kept, shape), jnp.min(threshold)


def _per_group(n_keep: jax.Array, n_groups: int) -> jax.Array:
    """How many units each of the groups keeps, all alike."""
    with counting(is_wide(n_keep)):
        return (n_keep // max(n_groups, 1)).astype(jnp.int32)


def _score_of_units(case: Case, rules: Rules) -> Callable[[Any], jax.Array]:
    """The score function of units; `jnp.abs` of blocks that are known to have no negative scores.

    Keys of signed scores need two more flags for each block, which a GPU may store.
    """
    score = Scored(rules.score)
    is_block = getattr(case.leaf.structure, "rows_of_unit", None) is not None
    operand = case.operand._replace(key=None)
    if not (is_block and on_gpu([operand.param]) and has_elementwise_score(operand, rules)):
        return score
    [spec] = score_specs(score, [operand])
    return score if spec.has_sign else jnp.abs


def _pick(
    start: Any, rules: Rules, score: Any, units: Any, allowed: Any, n_keep: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best units of one array, and their threshold."""
    among = None if allowed is None else [allowed]
    start, n_keep = None if start is None else start[None], take(n_keep, None)
    kept, thresholds = select(
        [units], n_keep, score=score, among=among, start=start, ties=rules.ties
    )
    return kept[0], thresholds[0]
