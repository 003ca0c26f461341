"""Quantised checkpoints: which leaves are left alone, and one line that says so.

A quantised weight is an integer or a float of at most one byte, which a scale beside it multiplies:
its own magnitude does not compare with that of its neighbours. GPTQ, AWQ, compressed-tensors and
qwix name scales and zero points differently; all end in a few words.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxprune._base.paths import parts_of
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._files.leaves import Leaf
from jaxprune._recipe.default_choice import is_quantisation_scale

_OTHERS = ("g_idx", "weight_shape")  # of GPTQ and compressed-tensors


def is_small_float(dtype: Any) -> bool:
    """Whether a dtype is a float of at most one byte, as quantised weights and their scales have.

    Example:
      >>> is_small_float(jnp.dtype("float8_e4m3fn")), is_small_float(jnp.dtype("bfloat16"))
      (True, False)
    """
    return dtype.itemsize == 1 and jnp.issubdtype(dtype, jnp.floating)


def default_for_quantised_weights(path: str, leaf: Any) -> bool:
    """A rule for `exclude`: leaves whose dtype is a small float."""
    del path
    return is_small_float(leaf.dtype)


BY_DEFAULT = "the default for quantised weights"  # its name in reports and errors
default_for_quantised_weights.__name__ = BY_DEFAULT


def quantised_line(leaves: Sequence[Leaf]) -> str | None:
    """What a quantised checkpoint holds that is not pruned; None where nothing is quantised.

    Args:
      leaves: those that are not pruned.

    Example:
      >>> leaf = lambda path, dtype, *shape: Leaf(path, shape, jnp.dtype(dtype))
      >>> quantised_line([leaf("fc.weight", "int8", 8, 8), leaf("fc.weight_scale", "float32", 8)])
      'quantised: 1 weight (int8) and 1 scale or zero point are not pruned, because ...'
      >>> quantised_line([leaf("steps", "int32"), leaf("norm.scale", "float32", 8)])
    """
    by_parent: dict[str, list[Leaf]] = {}
    for leaf in leaves:
        parent, _ = _split(leaf.path)
        by_parent.setdefault(parent, []).append(leaf)
    weights: list[Leaf] = []
    n_scales = 0
    for siblings in by_parent.values():
        names = [_split(leaf.path)[1] for leaf in siblings]
        has_scale = any(map(is_quantisation_scale, names))
        quantised, n_others = [], 0
        for leaf, name in zip(siblings, names, strict=True):
            if is_quantisation_scale(name) or name in _OTHERS:
                n_others += 1
            elif _is_quantised(leaf, has_scale):
                quantised.append(leaf)
        weights += quantised
        n_scales += n_others if quantised else 0
    if not weights:
        return None
    kinds = ", ".join(sorted({leaf.dtype.name for leaf in weights}))
    n = len(weights)
    counts = f"{counted(n, 'weight')} ({kinds})"
    if n_scales:
        counts += f" and {counted(n_scales, 'scale or zero point', 'scales or zero points')}"
    return (
        f"quantised: {counts} {is_or_are(n + n_scales)} not pruned, because the "
        "scales decide how large the weights are. Prune the model before it is quantised."
    )


def _is_quantised(leaf: Leaf, has_scale: bool) -> bool:
    if len(leaf.shape) < 2:
        return False
    is_integer = jnp.issubdtype(leaf.dtype, jnp.integer)
    return is_small_float(leaf.dtype) or (is_integer and (has_scale or leaf.dtype.itemsize == 1))


def _split(path: str) -> tuple[str, str]:
    """The parent and the name of a leaf, whose keys are separated by slashes or dots."""
    parts = parts_of(path)
    return "/".join(parts[:-1]), parts[-1]
