"""Pruning as an optax gradient transformation for JAX."""

from jaxprune._base.agreement import check_agreement as check_agreement
from jaxprune._blocks.deploy import load_packed as load_packed
from jaxprune._blocks.flax_layers import (
    pack_kernels as pack_kernels,
    pack_linear as pack_linear,
    packed_apply as packed_apply,
)
from jaxprune._blocks.packed_matrix import (
    PackedMatrix as PackedMatrix,
    pack_matrix as pack_matrix,
    packed_matmul as packed_matmul,
    unpack_matrix as unpack_matrix,
)
from jaxprune._calibration.calibrate import (
    sparsegpt as sparsegpt,
    sparsegpt_kernel as sparsegpt_kernel,
    wanda as wanda,
    wanda_kernel as wanda_kernel,
)
from jaxprune._calibration.inputs import linen_inputs as linen_inputs, nnx_inputs as nnx_inputs
from jaxprune._calibration.moments import Moments as Moments, moments as moments
from jaxprune._files.interchange import (
    save_csr as save_csr,
    save_safetensors as save_safetensors,
    to_bcoo as to_bcoo,
    to_bcsr as to_bcsr,
    to_csr as to_csr,
)
from jaxprune._files.save_load import load as load, save as save
from jaxprune._recipe.distributions import (
    Distribution as Distribution,
    er as er,
    erk as erk,
    global_pool as global_pool,
    min_density as min_density,
    normalized_pool as normalized_pool,
    per_slice as per_slice,
    uniform as uniform,
)
from jaxprune._recipe.schedules import (
    SparsitySchedule as SparsitySchedule,
    acdc_schedule as acdc_schedule,
    cubic_schedule as cubic_schedule,
    from_optax_schedule as from_optax_schedule,
    linear_schedule as linear_schedule,
    one_shot_schedule as one_shot_schedule,
    polynomial_schedule as polynomial_schedule,
)
from jaxprune._recipe.scores import (
    Accumulated as Accumulated,
    gradient_magnitude as gradient_magnitude,
    magnitude as magnitude,
    movement as movement,
    random_score as random_score,
    saliency as saliency,
)
from jaxprune._recipe.structures import (
    NM as NM,
    Block as Block,
    Channel as Channel,
    Unstructured as Unstructured,
)
from jaxprune._report.report import (
    check as check,
    metrics as metrics,
    plan as plan,
    summarize as summarize,
)
from jaxprune._shrink.channels import (
    channel_groups as channel_groups,
    channel_groups_nnx as channel_groups_nnx,
)
from jaxprune._shrink.flax_sizes import shrunk_apply as shrunk_apply
from jaxprune._shrink.shrink import (
    ShrinkReport as ShrinkReport,
    shrink as shrink,
    shrink_nnx as shrink_nnx,
)
from jaxprune._state.convert import (
    pack_masks as pack_masks,
    set_masks as set_masks,
    unpack_masks as unpack_masks,
)
from jaxprune._state.masks import straight_through as straight_through
from jaxprune._state.prune_state import (
    PruneState as PruneState,
    apply_masks as apply_masks,
    get_masks as get_masks,
    get_state as get_state,
)
from jaxprune._state.splice import splice as splice
from jaxprune._topk.topk import topk_mask as topk_mask, topk_masks as topk_masks
from jaxprune._transform.oneshot import (
    masks_from_params as masks_from_params,
    prune_params as prune_params,
)
from jaxprune._transform.prune import (
    prune as prune,
    rigl as rigl,
    set_ as set_,
    static_sparse as static_sparse,
)

__version__ = "0.1.0"
