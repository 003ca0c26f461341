"""Pruning as an optax gradient transformation for JAX."""

from jaxprune.distribution import Distribution as Distribution, uniform as uniform
from jaxprune.mask import straight_through as straight_through
from jaxprune.oneshot import masks_from_params as masks_from_params, prune_params as prune_params
from jaxprune.report import check as check, metrics as metrics, plan as plan, summarize as summarize
from jaxprune.schedule import (
    SparsitySchedule as SparsitySchedule,
    cubic_schedule as cubic_schedule,
    from_optax_schedule as from_optax_schedule,
    linear_schedule as linear_schedule,
    one_shot_schedule as one_shot_schedule,
    polynomial_schedule as polynomial_schedule,
)
from jaxprune.score import magnitude as magnitude
from jaxprune.select import topk_mask as topk_mask, topk_masks as topk_masks
from jaxprune.state import (
    PruneState as PruneState,
    apply_masks as apply_masks,
    get_masks as get_masks,
    get_state as get_state,
    pack_masks as pack_masks,
    unpack_masks as unpack_masks,
)
from jaxprune.structure import Unstructured as Unstructured
from jaxprune.transform import prune as prune

__version__ = "0.1.0"
