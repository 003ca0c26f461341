"""Pruning as an optax gradient transformation for JAX."""

from jaxprune.distribution import Distribution as Distribution
from jaxprune.distribution import uniform as uniform
from jaxprune.mask import straight_through as straight_through
from jaxprune.oneshot import masks_from_params as masks_from_params
from jaxprune.oneshot import prune_params as prune_params
from jaxprune.report import check as check
from jaxprune.report import metrics as metrics
from jaxprune.report import plan as plan
from jaxprune.report import summarize as summarize
from jaxprune.schedule import SparsitySchedule as SparsitySchedule
from jaxprune.schedule import cubic_schedule as cubic_schedule
from jaxprune.schedule import from_optax_schedule as from_optax_schedule
from jaxprune.schedule import linear_schedule as linear_schedule
from jaxprune.schedule import one_shot_schedule as one_shot_schedule
from jaxprune.schedule import polynomial_schedule as polynomial_schedule
from jaxprune.score import magnitude as magnitude
from jaxprune.select import topk_mask as topk_mask
from jaxprune.select import topk_masks as topk_masks
from jaxprune.state import PruneState as PruneState
from jaxprune.state import apply_masks as apply_masks
from jaxprune.state import get_masks as get_masks
from jaxprune.state import get_state as get_state
from jaxprune.structure import Unstructured as Unstructured
from jaxprune.transform import prune as prune

__version__ = "0.1.0"
