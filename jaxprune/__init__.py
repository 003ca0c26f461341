"""Pruning for JAX and Flax, as an optax gradient transformation.

Add `prune` to an optimizer, and the network trains sparse:

    schedule = jaxprune.cubic_schedule(0.9, begin_step=1_000, end_step=9_000)
    tx = jaxprune.prune(schedule, inner=optax.adamw(3e-4))

The masks live in the optimizer state, and the rest of the training loop
stays the same. The names that most users need, by task:

    during training   prune, cubic_schedule, erk, keep_zeros, rigl
    is it working?    plan, metrics, check, summarize, sensitivity
    without training  prune_params, layer_inputs, wanda, sparsegpt
    structures        NM, Block, Channel, channel_groups
    masks             get_masks, apply_masks, masks_from_params
    afterwards        save, load, shrink

`help(jaxprune.prune)` explains one of them.
"""

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # the same names that `__getattr__` loads on first use
    from jaxprune import plots as plots
    from jaxprune._base.agreement import check_agreement as check_agreement
    from jaxprune._blocks.flax_layers import (
        load_packed as load_packed,
        pack_kernels as pack_kernels,
        packed_apply as packed_apply,
    )
    from jaxprune._blocks.nnx_layers import pack_linear as pack_linear
    from jaxprune._blocks.packed_matrix import (
        PackedMatrix as PackedMatrix,
        pack_matrix as pack_matrix,
        packed_matmul as packed_matmul,
        unpack_matrix as unpack_matrix,
    )
    from jaxprune._calibration.activation_score import activation_score as activation_score
    from jaxprune._calibration.calibrate import (
        sparsegpt as sparsegpt,
        sparsegpt_kernel as sparsegpt_kernel,
        wanda as wanda,
        wanda_kernel as wanda_kernel,
    )
    from jaxprune._calibration.inputs import (
        linen_inputs as linen_inputs,
        nnx_inputs as nnx_inputs,
    )
    from jaxprune._calibration.inputs_of_leaves import LayerInputs as LayerInputs
    from jaxprune._calibration.layer_inputs import (
        layer_inputs as layer_inputs,
        layer_inputs_nnx as layer_inputs_nnx,
    )
    from jaxprune._calibration.moments import Moments as Moments, moments as moments
    from jaxprune._calibration.sequential import prune_sequentially as prune_sequentially
    from jaxprune._calibration.stored_inputs import (
        load_inputs as load_inputs,
        save_inputs as save_inputs,
    )
    from jaxprune._files.file_metadata import (
        FileMetadata as FileMetadata,
        load_metadata as load_metadata,
    )
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
        l2_pool as l2_pool,
        min_density as min_density,
        normalized_pool as normalized_pool,
        per_slice as per_slice,
        uniform as uniform,
    )
    from jaxprune._recipe.nm import NM as NM
    from jaxprune._recipe.optax_schedules import from_optax_schedule as from_optax_schedule
    from jaxprune._recipe.pools import LeafShape as LeafShape, Pools as Pools
    from jaxprune._recipe.role_table import AxisRoles as AxisRoles
    from jaxprune._recipe.roles import equinox_roles as equinox_roles, torch_roles as torch_roles
    from jaxprune._recipe.schedules import (
        SparsitySchedule as SparsitySchedule,
        acdc_schedule as acdc_schedule,
        cubic_schedule as cubic_schedule,
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
        Block as Block,
        Channel as Channel,
        Unstructured as Unstructured,
    )
    from jaxprune._recipe.traits import Structure as Structure
    from jaxprune._report.check import check as check
    from jaxprune._report.metrics import metrics as metrics
    from jaxprune._report.plan import plan as plan
    from jaxprune._report.sensitivity import (
        sensitivity as sensitivity,
        sparsities_for as sparsities_for,
    )
    from jaxprune._report.sensitivity_table import Sensitivity as Sensitivity
    from jaxprune._report.summary import summarize as summarize
    from jaxprune._report.table import (
        LeafReport as LeafReport,
        PoolReport as PoolReport,
        Report as Report,
    )
    from jaxprune._shrink.channels import (
        ChannelGroups as ChannelGroups,
        channel_groups as channel_groups,
        channel_groups_nnx as channel_groups_nnx,
    )
    from jaxprune._shrink.flax_sizes import resize_nnx as resize_nnx, shrunk_apply as shrunk_apply
    from jaxprune._shrink.linen_sizes import resize_linen as resize_linen
    from jaxprune._shrink.report import AxisGroup as AxisGroup, ShrinkReport as ShrinkReport
    from jaxprune._shrink.shrink import (
        shrink as shrink,
        shrink_nnx as shrink_nnx,
    )
    from jaxprune._state.choose import choose_schedule as choose_schedule
    from jaxprune._state.convert import (
        pack_masks as pack_masks,
        set_masks as set_masks,
        unpack_masks as unpack_masks,
    )
    from jaxprune._state.masks import straight_through as straight_through
    from jaxprune._state.masks_of_states import (
        apply_masks as apply_masks,
        get_masks as get_masks,
    )
    from jaxprune._state.progress import Progress as Progress
    from jaxprune._state.prune_state import (
        PruneState as PruneState,
        get_state as get_state,
    )
    from jaxprune._state.splice import splice as splice
    from jaxprune._state.upgrade import upgrade_state as upgrade_state
    from jaxprune._topk.topk import topk_mask as topk_mask, topk_masks as topk_masks
    from jaxprune._trace.axis_roles import (
        axis_roles as axis_roles,
        axis_roles_nnx as axis_roles_nnx,
    )
    from jaxprune._transform.keep_zeros import keep_zeros as keep_zeros
    from jaxprune._transform.oneshot import (
        masks_from_params as masks_from_params,
        prune_params as prune_params,
    )
    from jaxprune._transform.prune import prune as prune
    from jaxprune._transform.rigl import (
        rigl as rigl,
        set_ as set_,
        static_sparse as static_sparse,
    )

# Module -> the public names that it defines.
_PUBLIC = {
    "_base.agreement": ("check_agreement",),
    "_blocks.flax_layers": ("load_packed", "pack_kernels", "packed_apply"),
    "_blocks.nnx_layers": ("pack_linear",),
    "_blocks.packed_matrix": ("PackedMatrix", "pack_matrix", "packed_matmul", "unpack_matrix"),
    "_calibration.activation_score": ("activation_score",),
    "_calibration.calibrate": ("sparsegpt", "sparsegpt_kernel", "wanda", "wanda_kernel"),
    "_calibration.inputs": ("linen_inputs", "nnx_inputs"),
    "_calibration.inputs_of_leaves": ("LayerInputs",),
    "_calibration.layer_inputs": ("layer_inputs", "layer_inputs_nnx"),
    "_calibration.sequential": ("prune_sequentially",),
    "_calibration.stored_inputs": ("load_inputs", "save_inputs"),
    "_calibration.moments": ("Moments", "moments"),
    "_files.file_metadata": ("FileMetadata", "load_metadata"),
    "_files.interchange": ("save_csr", "save_safetensors", "to_bcoo", "to_bcsr", "to_csr"),
    "_files.save_load": ("load", "save"),
    "_recipe.distributions": ("Distribution", "er", "erk", "global_pool", "l2_pool")
    + ("min_density", "normalized_pool", "per_slice", "uniform"),
    "_recipe.nm": ("NM",),
    "_recipe.optax_schedules": ("from_optax_schedule",),
    "_recipe.pools": ("LeafShape", "Pools"),
    "_recipe.role_table": ("AxisRoles",),
    "_recipe.roles": ("equinox_roles", "torch_roles"),
    "_recipe.schedules": ("SparsitySchedule", "acdc_schedule", "cubic_schedule")
    + ("linear_schedule", "one_shot_schedule", "polynomial_schedule"),
    "_recipe.scores": ("Accumulated", "gradient_magnitude", "magnitude", "movement")
    + ("random_score", "saliency"),
    "_recipe.structures": ("Block", "Channel", "Unstructured"),
    "_recipe.traits": ("Structure",),
    "_report.check": ("check",),
    "_report.metrics": ("metrics",),
    "_report.plan": ("plan",),
    "_report.sensitivity": ("sensitivity", "sparsities_for"),
    "_report.sensitivity_table": ("Sensitivity",),
    "_report.summary": ("summarize",),
    "_report.table": ("LeafReport", "PoolReport", "Report"),
    "_shrink.channels": ("ChannelGroups", "channel_groups", "channel_groups_nnx"),
    "_shrink.flax_sizes": ("resize_nnx", "shrunk_apply"),
    "_shrink.linen_sizes": ("resize_linen",),
    "_shrink.report": ("AxisGroup", "ShrinkReport"),
    "_shrink.shrink": ("shrink", "shrink_nnx"),
    "_state.choose": ("choose_schedule",),
    "_state.convert": ("pack_masks", "set_masks", "unpack_masks"),
    "_state.masks": ("straight_through",),
    "_state.progress": ("Progress",),
    "_state.masks_of_states": ("apply_masks", "get_masks"),
    "_state.prune_state": ("PruneState", "get_state"),
    "_state.splice": ("splice",),
    "_state.upgrade": ("upgrade_state",),
    "_topk.topk": ("topk_mask", "topk_masks"),
    "_trace.axis_roles": ("axis_roles", "axis_roles_nnx"),
    "_transform.keep_zeros": ("keep_zeros",),
    "_transform.oneshot": ("masks_from_params", "prune_params"),
    "_transform.prune": ("prune",),
    "_transform.rigl": ("rigl", "set_", "static_sparse"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "NM",
    "Accumulated",
    "AxisGroup",
    "AxisRoles",
    "Block",
    "Channel",
    "ChannelGroups",
    "Distribution",
    "FileMetadata",
    "LayerInputs",
    "LeafReport",
    "LeafShape",
    "Moments",
    "PackedMatrix",
    "PoolReport",
    "Pools",
    "Progress",
    "PruneState",
    "Report",
    "Sensitivity",
    "ShrinkReport",
    "SparsitySchedule",
    "Structure",
    "Unstructured",
    "acdc_schedule",
    "activation_score",
    "apply_masks",
    "axis_roles",
    "axis_roles_nnx",
    "channel_groups",
    "channel_groups_nnx",
    "check",
    "check_agreement",
    "choose_schedule",
    "cubic_schedule",
    "equinox_roles",
    "er",
    "erk",
    "from_optax_schedule",
    "get_masks",
    "get_state",
    "global_pool",
    "gradient_magnitude",
    "keep_zeros",
    "l2_pool",
    "layer_inputs",
    "layer_inputs_nnx",
    "linear_schedule",
    "linen_inputs",
    "load",
    "load_inputs",
    "load_metadata",
    "load_packed",
    "magnitude",
    "masks_from_params",
    "metrics",
    "min_density",
    "moments",
    "movement",
    "nnx_inputs",
    "normalized_pool",
    "one_shot_schedule",
    "pack_kernels",
    "pack_linear",
    "pack_masks",
    "pack_matrix",
    "packed_apply",
    "packed_matmul",
    "per_slice",
    "plan",
    "polynomial_schedule",
    "prune",
    "prune_params",
    "prune_sequentially",
    "random_score",
    "resize_linen",
    "resize_nnx",
    "rigl",
    "saliency",
    "save",
    "save_csr",
    "save_inputs",
    "save_safetensors",
    "sensitivity",
    "set_",
    "set_masks",
    "shrink",
    "shrink_nnx",
    "shrunk_apply",
    "sparsegpt",
    "sparsegpt_kernel",
    "sparsities_for",
    "splice",
    "static_sparse",
    "straight_through",
    "summarize",
    "to_bcoo",
    "to_bcsr",
    "to_csr",
    "topk_mask",
    "topk_masks",
    "torch_roles",
    "uniform",
    "unpack_masks",
    "unpack_matrix",
    "upgrade_state",
    "wanda",
    "wanda_kernel",
]


if not TYPE_CHECKING:  # for type checkers, it would make an attribute of every misspelled name

    def __getattr__(name: str) -> Any:
        """Loads a public name when it is first used: `import jaxprune` does not import JAX."""
        if name == "plots":  # the only public module
            return importlib.import_module("jaxprune.plots")
        if name not in _MODULE_OF:
            this = sys.modules[__name__]  # Python then adds: Did you mean: 'prune'?
            raise AttributeError(
                f"module 'jaxprune' has no attribute {name!r}", name=name, obj=this
            )
        return _loaded(name)


@functools.cache  # not in the globals, where doctest would take the examples of classes for its own
def _loaded(name: str) -> Any:
    from jaxprune._base.public_help import with_readable_help

    module = f"jaxprune.{_MODULE_OF[name]}"
    return with_readable_help(getattr(importlib.import_module(module), name), module, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "plots"])
