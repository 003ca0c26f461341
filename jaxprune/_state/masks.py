"""Array operations with masks: set dropped weights to zero, and count those that are not zero.

These functions take arrays, lists of pruned leaves or plain trees, and know nothing of optimizers.
A mask is applied with a select, never by multiplying: NaN times zero is NaN, and -1.0 times zero
is -0.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.count_arrays import count_arrays
from jaxprune._base.counting import WIDE, counting
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.paths import (
    check_arrays,
    leaves_with_paths,
    listed,
    shape_of,
    shown_path,
    spec_of,
)
from jaxprune._base.sharding import on_one_device, summed_in_shards, typed_like
from jaxprune._base.trees import ArrayTree, Params
from jaxprune._state.bit_masks import bit_mask_shape


def land(param: jax.Array, update: jax.Array, mask: jax.Array) -> jax.Array:
    """The update with `-param` at every dropped weight, so that adding it gives exactly +0.0.

    `p + (-p)` is +0.0 for every finite `p` in every float format, provided `-p` is not rounded, so
    the result has the wider of the two dtypes. A NaN update at a dropped weight is discarded.
    """
    dtype = wider_dtype(param.dtype, update.dtype)
    return jnp.where(mask.astype(bool), update.astype(dtype), -param.astype(dtype))


def wider_dtype(a: Any, b: Any) -> Any:
    """The dtype that represents both exactly; also works under strict dtype promotion.

    JAX promotes no float of 8 or 4 bits. All of them that have a zero are exact in 16 bits.
    """
    if a == b:
        return a
    narrow = [is_narrow_float(dtype) for dtype in (a, b)]
    if all(narrow):
        return jnp.dtype(jnp.float32)
    if any(narrow):
        return a if narrow[1] else b
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def is_narrow_float(dtype: Any) -> bool:
    """Whether a dtype is a float of 8 or fewer bits."""
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.dtype(dtype).itemsize == 1


def keep(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x` where the mask is nonzero, +0.0 elsewhere."""
    mask = typed_like(mask, x)
    is_16_bit = x.dtype in (jnp.bfloat16, jnp.float16)
    return _keep_bits(x, mask) if is_16_bit else jnp.where(mask.astype(bool), x, jnp.zeros_like(x))


@jax.custom_jvp
def _keep_bits(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`keep` for 16-bit floats, as integers: XLA on CPU would widen floats to float32 to select."""
    bits = lax.bitcast_convert_type(x, jnp.uint16)
    bits = jnp.where(mask.astype(bool), bits, jnp.zeros_like(bits))
    return lax.bitcast_convert_type(bits, x.dtype)


@_keep_bits.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    dx = tangents[0]
    return _keep_bits(*primals), jnp.where(primals[1].astype(bool), dx, jnp.zeros_like(dx))


def count_violations(params: Sequence[jax.Array], masks: Sequence[jax.Array]) -> jax.Array:
    """How many dropped weights are finite and not zero: int32, at most its largest value."""
    pairs = list(zip(params, masks, strict=True))
    dtype = jnp.int64 if sum(p.size for p in params) >= WIDE else jnp.int32

    def add_up(flags: Sequence[jax.Array], once: Any) -> jax.Array:
        counts = count_arrays(flags, dtype, once is not None)
        if once is not None:
            counts = jnp.stack([once(i, n) for i, n in enumerate(counts)])
        return jnp.sum(counts, dtype=dtype)

    with counting(dtype == jnp.int64):
        if on_one_device(pairs):
            total = jnp.sum(count_arrays(pairs, dtype, True, _violates), dtype=dtype)
        else:
            total = summed_in_shards(add_up, list(map(_violates, pairs)))
        return jnp.minimum(total, np.iinfo(np.int32).max).astype(jnp.int32)


def _violates(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Which entries of a param are dropped by its mask, and finite, but not zero.

    No update turns a NaN into zero; that is no sign of something that changes the updates.
    """
    param, mask = pair
    wide = param.astype(jnp.float32) if is_narrow_float(param.dtype) else param
    return ~mask.astype(bool) & is_nonzero(param) & jnp.isfinite(wide)


def full_mask(leaf: Any, dtype: Any) -> jax.Array:
    """A mask of ones on the devices of the leaf. It is a scalar for a leaf that is not an array."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return jnp.ones(jnp.shape(leaf) if isinstance(leaf, (int, float, complex)) else (), dtype)
    if not jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != bool:
        return jnp.ones(leaf.shape, dtype)  # PRNG keys
    full = jnp.ones_like(leaf, dtype=dtype)
    if not isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return full
    # Under `jit` on Auto axes, XLA would put a constant on one device, as it does with the moments
    # of adam. A select by the leaf gets the sharding of the leaf. XLA then sees that both branches
    # are equal, and never reads the leaf.
    return jnp.where(leaf != leaf, full, full)


@jax.custom_jvp
def _straight_through(param: jax.Array, mask: jax.Array) -> jax.Array:
    return keep(param, mask)


@_straight_through.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    return _straight_through(*primals), tangents[0]


@overload
def straight_through(params: Params, masks: ArrayTree) -> Params: ...


@overload
def straight_through(params: ArrayTree, masks: ArrayTree) -> ArrayTree: ...


def straight_through(params: ArrayTree, masks: ArrayTree) -> ArrayTree:
    """Masked params in the forward pass, with the gradient of the identity function.

    Dropped weights are zero in the loss, but their gradients are not masked, so they keep training
    and can be kept again later (Bengio et al. 2013, arXiv:1308.3432).

    Args:
      params: any tree of arrays.
      masks: a tree like the params; nonzero means kept. Leaves without a mask, as of a part of the
        params that `optax.partition` or `optax.masked` hides from `prune`, stay as they are.

    Returns:
      A tree like `params`, +0.0 at every dropped weight.

    Raises:
      TypeError: masks of floating point numbers, or shapes in place of arrays; names the path.
      ValueError: masks of leaves that the params do not have, or of other shapes, or donated
        arrays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w, mask = jnp.array([1.0, 2.0]), jnp.array([True, False])
      >>> jax.grad(lambda w: (3.0 * straight_through(w, mask)).sum())(w).tolist()
      [3.0, 3.0]
    """
    check_arrays("straight_through: params", params)
    check_arrays("straight_through: masks", masks)
    paths, leaves, treedef = leaves_with_paths(params)
    mask_paths, mask_leaves, _ = leaves_with_paths(masks)
    mask_at = dict(zip(mask_paths, mask_leaves, strict=True))
    fix = "Pass masks like the params, such as jaxprune.get_masks(opt_state, params)."
    if (paths and not mask_at) or not mask_at.keys() <= set(paths):
        raise ValueError(
            f"straight_through: the masks have the paths {listed(mask_paths)}, but the params have "
            f"{listed(paths)}. {fix}"
        )
    for path, leaf in zip(paths, leaves, strict=True):
        mask = mask_at.get(path, leaf)
        if shape_of(leaf) != shape_of(mask):
            raise ValueError(
                f"{shown_path(path)}: the mask has shape {shape_of(mask)} but the param has shape "
                f"{shape_of(leaf)}. {fix}"
            )
    for path, mask in mask_at.items():
        check_mask_dtype(path, mask)
    masked = [
        _straight_through_leaf(leaf, mask_at[path]) if path in mask_at else leaf
        for path, leaf in zip(paths, leaves, strict=True)
    ]
    return treedef.unflatten(masked)


def _straight_through_leaf(param: Any, mask: Any) -> Any:
    """A numeric param with its mask applied; anything else, such as a function, unchanged."""
    spec = spec_of(param)
    is_number = spec is not None and jnp.issubdtype(spec.dtype, jnp.number)
    return _straight_through(jnp.asarray(param), jnp.asarray(mask)) if is_number else param


def check_mask_dtype(path: str, mask: Any) -> None:
    """Raises a TypeError unless a mask is an array, or number, of bools or integers."""
    spec = spec_of(mask)
    dtype = np.asarray(mask).dtype if spec is None else spec.dtype
    if jnp.issubdtype(dtype, jnp.bool_) or jnp.issubdtype(dtype, jnp.integer):
        return
    got = f"of type {type(mask).__name__}" if dtype.kind == "O" else f"of dtype {dtype}"
    raise TypeError(
        f"{shown_path(path)}: a mask must be bool or integer (nonzero = kept), but it is {got}. "
        "Did you swap the params and the masks? Otherwise, convert it with mask != 0."
    )


def mask_without_param(path: str, paths: Sequence[str], masks: Sequence[str], fix: str) -> str:
    """The message for a mask whose path no param has.

    Args:
      path: of the mask.
      paths: of the params.
      masks: the paths of all masks.
      fix: what to pass, unless the params are one part of the tree that was passed.
    """
    # The masks of an optimizer state have the paths of the params, too.
    ends = f"/{path}", f"masks/{path}"
    longer = next((p for p in paths if p.endswith(ends[0]) and not p.endswith(ends[1])), "")
    part = longer.removesuffix(ends[0])
    if part and {f"{part}/{mask}" for mask in masks} <= set(paths):
        fix = (
            f"The path {longer} of a param ends with it: pass only the part {part!r} of this tree."
        )
        fix += " For a TrainState, that is state.params." if part == "params" else ""
    return (
        f"{shown_path(path)}: there is a mask but no param with this path; the params have "
        f"{listed(paths)}. {fix}"
    )


def wrong_shape(
    path: str,
    mask_shape: tuple[int, ...],
    shape: tuple[int, ...],
    bit_axes: int | None = None,
    *,
    is_of_state: bool = True,
) -> str:
    """The message for a mask whose shape does not fit its param.

    `bit_axes` is the number of batch axes of a bit mask; None for any other mask. `is_of_state` is
    False where the user passed a tree of masks.
    """
    needs, of_member = "", shape
    if bit_axes is not None:
        needs = f", which needs a bit mask of shape {bit_mask_shape(shape, bit_axes)}"
        of_member = bit_mask_shape(shape, 0)
    fix = (
        "Was the state restored from another model, or the model shrunk? jaxprune.shrink removes "
        "the same units from what you pass as along=."
    )
    n_more = len(mask_shape) - len(of_member)
    if n_more > 0 and mask_shape[n_more:] == of_member:
        made, argument = ("Was the state", "opt_state") if is_of_state else ("Were they", "masks")
        fix = f"{made} made under vmap? Pass one member: jax.tree.map(lambda x: x[0], {argument})."
    return (
        f"{shown_path(path)}: the mask has shape {mask_shape} but the param has shape {shape}"
        f"{needs}. {fix}"
    )
