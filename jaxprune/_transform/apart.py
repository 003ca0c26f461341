"""The mask of a leaf that is several pools: slices of a stacked axis, or groups of a structure."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.counting import counting, is_wide, take
from jaxprune._base.sharding import on_gpu
from jaxprune._topk.topk import select
from jaxprune._transform.case import Case, n_columns, weight_scores
from jaxprune._transform.columns import in_rows, picked_in_columns
from jaxprune._transform.operand import Operand, Rules, Scored, has_elementwise_score


def decided_apart(case: Case, n_keep: jax.Array, rules: Rules) -> tuple[jax.Array, jax.Array]:
    """Mask and threshold of a leaf that is several pools."""
    axes, shape = case.leaf.axes, case.operand.param.shape
    n_of_slice = take(n_keep, np.array(case.leaf.pools) if axes else case.leaf.pools[0])
    if len(axes) > 1:
        with counting(is_wide(n_of_slice)):
            n_of_slice = n_of_slice.reshape(tuple(shape[axis] for axis in axes))
    slice_shape = tuple(n for axis, n in enumerate(shape) if axis not in axes)
    units_of = functools.partial(_units_of_slice, case)
    decide = functools.partial(_decide_slice, case, rules, slice_shape)
    scored = lambda: (_scored_apart(case, rules), case.allowed)
    if on_gpu([case.operand.param]) and n_columns(case, slice_shape) > 1:
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
        inner = axis - n_outer  # the maps around this one have removed so many earlier axes
        in_axes, out_axes = (
            tuple(inner * is_leaf for is_leaf in some) for some in (is_in_leaf, is_out_leaf)
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


def _decide_slice(
    case: Case, rules: Rules, shape: tuple[int, ...], units: Any, allowed: Any, n_keep: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mask and threshold of a leaf, or of one slice of it, which may have groups of its own."""
    structure: Any = case.leaf.structure
    n_groups = structure.n_groups(shape)
    pick = functools.partial(_pick, case.start, rules)
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


def _pick(
    start: Any, rules: Rules, units: Any, allowed: Any, n_keep: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best units of one array, and their threshold."""
    among = None if allowed is None else [allowed]
    start, n_keep = None if start is None else start[None], take(n_keep, None)
    score = Scored(rules.score)
    kept, thresholds = select(
        [units], n_keep, score=score, among=among, start=start, ties=rules.ties
    )
    return kept[0], thresholds[0]
