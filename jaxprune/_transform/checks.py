"""What `update` was given, looked at while tracing: trees that fit, updates that can be masked."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._base.arguments import shown
from jaxprune._base.paths import leaves_with_paths, listed, rule_for, shown_path, spec_of
from jaxprune._state.bit_masks import bit_mask_shape
from jaxprune._state.prune_state import PruneState, wrong_shape


def checked(params: Any, state: Any) -> tuple[list[str], list[Any], Any]:
    """The params' paths, leaves and structure, after a look at what `update` was given."""
    if params is None:
        raise ValueError("jaxprune.prune needs the params: call tx.update(updates, state, params).")
    if not isinstance(state, PruneState):
        raise TypeError(
            f"jaxprune.prune: the state must be a PruneState, got {shown(state)}. Pass what "
            "init or the last update of this transformation returned; restore a checkpoint "
            "into the structure of tx.init(params)."
        )
    return leaves_with_paths(params)


def parallel(
    paths: list[str], treedef: Any, tree: Any, what: str, holes: bool = False
) -> list[Any]:
    """The leaves of `tree`, one per leaf of the params; with `holes`, some may be None."""
    try:
        leaves = treedef.flatten_up_to(tree)
    except ValueError:
        leaves = []
    is_leaf = [(holes and x is None) or jax.tree_util.all_leaves([x]) for x in leaves]
    if len(leaves) == len(paths) and all(is_leaf):
        return leaves
    theirs, _, _ = leaves_with_paths(tree)
    lines = []
    for one, have, other, lack in (
        ("params", paths, what, theirs),
        (what, theirs, "params", paths),
    ):
        odd = [path for path in have if path not in set(lack)]
        if odd:
            lines.append(f"the {one} have {listed(odd)}, the {other} do not")
    differ = "; ".join(lines) or "the same paths, but in other containers"
    raise ValueError(
        f"jaxprune.prune: the {what} and the params differ in structure: {differ}. Pass the "
        "params that the state was initialised with, and gradients with respect to them."
    )


def check_state(
    paths: list[str], params: list[Any], masks: list[Any], state: PruneState, packed: bool
) -> None:
    """Raises where the state is of the other kind of masks, or of another model."""
    if packed != (state.widths is not None):
        have, convert = ("packed", "unpack_masks") if not packed else ("not packed", "pack_masks")
        raise ValueError(
            f"the masks in the state are {have}, but this is prune(..., packed={packed}). Convert "
            f"the state: jaxprune.{convert}(opt_state)."
        )
    for path, param, mask in zip(paths, params, masks, strict=True):
        spec = spec_of(param)
        if spec is None:
            continue
        if jnp.shape(mask) != (bit_mask_shape(spec.shape) if packed else spec.shape):
            raise ValueError(wrong_shape(path, jnp.shape(mask), spec.shape, packed))
    if jnp.shape(state.thresholds) != (len(paths),):
        raise ValueError(
            f"the thresholds in the state have shape {jnp.shape(state.thresholds)} but the params "
            f"have {len(paths)} leaves. Was the state restored from another model?"
        )
    step = jnp.asarray(state.prune_step)
    if step.shape or not jnp.issubdtype(step.dtype, jnp.integer):
        raise ValueError(
            f"prune_step in the state must be an int32 scalar, got {step.dtype} of shape "
            f"{step.shape}. Restore checkpoints into the dtypes of tx.init(params)."
        )


def check_updates(
    chosen: Sequence[int], paths: list[str], params: list[Any], updates: list[Any], what: str
) -> None:
    """Raises where a chosen leaf has no update, or one of another shape."""
    for i in chosen:
        path = shown_path(paths[i])
        if updates[i] is None:
            raise ValueError(
                f"{path}: the {what} is None, but the leaf is pruned. Leave it out with "
                f"exclude={rule_for(paths[i])!r}, or give it a gradient."
            )
        if jnp.shape(updates[i]) != jnp.shape(params[i]):
            raise ValueError(
                f"{path}: the {what} has shape {jnp.shape(updates[i])} but the param has shape "
                f"{jnp.shape(params[i])}. Pass gradients with respect to these params."
            )
