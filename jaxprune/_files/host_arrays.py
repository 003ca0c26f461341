"""Params on the host, as files hold them: NumPy arrays in the order that the user asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import shown
from jaxprune._base.on_host import to_host
from jaxprune._base.paths import listed, shown_path, spec_of
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._files.dtypes import dtype_of
from jaxprune._files.leaves import is_stored


def as_host(path: str, leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array that a file can hold, with the byte order of this machine.

    Raises:
      TypeError: the leaf is not an array, or has a dtype that a file can't hold; with the path.
      ValueError: other processes hold parts of it; with the path.

    Example:
      >>> as_host("b", np.ones(2, ">f4")).dtype.byteorder
      '='
    """
    spec = spec_of(leaf)
    if spec is None:
        fix = "Make it one with numpy.asarray, or leave it out of the params."
        if callable(leaf):
            fix = "Pass the arrays alone: of an Equinox model, eqx.filter(model, eqx.is_array)."
        raise TypeError(f"{shown_path(path)}: {shown(leaf)} is not an array. {fix}")
    if jnp.issubdtype(spec.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"{shown_path(path)}: a file can't hold random keys ({spec.dtype}). Leave "
            "them out, as nnx.state(model, nnx.Not(nnx.RngState)) does, or save "
            "jax.random.key_data(key)."
        )
    if isinstance(leaf, (jax.ShapeDtypeStruct, jax.core.Tracer)):
        raise TypeError(
            f"{shown_path(path)}: {shown(leaf)} has no values to read. Pass arrays, outside jit."
        )
    array = to_host(shown_path(path), leaf)
    if dtype_of(array.dtype.name) is None:
        raise TypeError(
            f"{shown_path(path)}: a file can't hold dtype {array.dtype}. Cast it to numbers or "
            "bools."
        )
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.byteorder == ">" else array


def zero_dropped(path: str, array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The array with +0.0 at every dropped weight, where it must have +0.0 or -0.0 already.

    Raises:
      ValueError: a dropped weight is not zero, with the path.

    Example:
      >>> zero_dropped("w", np.array([-0.0, 2.0]), np.array([False, True])).tolist()
      [0.0, 2.0]
    """
    dropped = ~mask
    n_wrong = int(np.count_nonzero(dropped & (array != 0)))
    if n_wrong:
        n_dropped = counted(int(dropped.sum()), "dropped weight")
        raise ValueError(
            f"{shown_path(path)}: {n_wrong:,} of {n_dropped} {is_or_are(n_wrong)} not "
            "zero. Save jaxprune.apply_masks(params, masks), or find out what changes them with "
            "jaxprune.check(params, opt_state)."
        )
    if not np.any(dropped & is_stored(array)):
        return array
    array = array.copy()
    array[dropped] = 0
    return array


def in_order(function: str, paths: Sequence[str], order: Sequence[str] | None) -> Sequence[int]:
    """The positions of the paths in `order`; as they are without an order.

    Raises:
      TypeError: `order` is not a sequence of strings.
      ValueError: it does not hold exactly these paths.

    Example:
      >>> in_order("save", ["a", "b", "c"], ("c", "a", "b"))
      [2, 0, 1]
    """
    if order is None:
        return range(len(paths))
    is_list = isinstance(order, Sequence) and not isinstance(order, str)
    if not is_list or not all(isinstance(path, str) for path in order):
        raise TypeError(
            f"{function}: order must be a list of paths, got {shown(order)}. Pass "
            "jaxprune.load_metadata(file).order."
        )
    if missing := sorted(set(paths) - set(order)):
        raise ValueError(
            f"{function}: order does not have {listed(missing)}, which the params have. List the "
            "paths of all leaves, or leave `order` out."
        )
    if len(order) > len(paths):
        unknown = sorted(set(order) - set(paths))
        extra = unknown or [path for path in paths if order.count(path) > 1]
        problem = "which the params do not have" if unknown else "more than once"
        raise ValueError(
            f"{function}: order has {listed(extra)}, {problem}. List the path of each leaf once."
        )
    position_of = {path: i for i, path in enumerate(paths)}
    return [position_of[path] for path in order]
