"""The NumPy arrays that `jaxprune.plots` draws, read from what users pass and checked.

It knows nothing about matplotlib. The errors name the function in `plots` that was called.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import is_int, kind_of, shown
from jaxprune._base.on_host import to_host
from jaxprune._base.paths import check_not_donated, leaves_with_paths, shown_path
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._base.trees import ArrayTree
from jaxprune._report.table import Report

History = Sequence[Mapping[str, Any]] | Mapping[str, Any]

_LEAF = "prune/sparsity/"
_LOG = "Log history.append(jaxprune.metrics(opt_state)) and pass history."
_MEMBERS = "Of a state made under vmap, pass the metrics of one member"


def as_history(history: Any) -> Sequence[Mapping[str, Any]]:
    """A list of metrics, from a list or from the arrays that `jax.lax.scan` stacks.

    Arrays of which all entries are of one step are taken for the members of a state made under
    `vmap`, and refused.

    Example:
      >>> as_history({"prune/step": np.arange(2.0)})[1]["prune/step"].item()
      1.0
    """
    entries: Any = history
    if isinstance(history, Mapping) and {np.ndim(x) for x in history.values()} == {1}:
        arrays = {name: np.asarray(x) for name, x in history.items()}
        n_steps = min(map(len, arrays.values()))
        entries = [{name: x[i] for name, x in arrays.items()} for i in range(n_steps)]
    _check_members(history)
    check_history(entries)
    return entries


def _check_members(history: Any) -> None:
    """Raises where arrays of metrics have an axis of members."""
    if not isinstance(history, Mapping) or "prune/step" not in history:
        return
    steps = np.asarray(history["prune/step"])
    if steps.ndim > 1:
        raise TypeError(
            "sparsity_curve: history must be a list of metrics, or arrays of one axis, got arrays "
            f"of shape {steps.shape}. {_MEMBERS}: {{name: value[:, 0] for name, value in "
            "history.items()}, or value[0] where the members are the first axis."
        )
    if steps.size > 1 and np.all(steps == steps[0]):
        raise ValueError(
            f"sparsity_curve: all {steps.size} entries of history are of step {steps[0]}. "
            f"{_MEMBERS}, at several steps: history.append({{name: value[0] for name, value in "
            "jaxprune.metrics(opt_state).items()})."
        )


def check_history(history: Any) -> None:
    """Raises unless `history` is a sequence of metrics."""
    if isinstance(history, (str, Mapping)) or not isinstance(history, Sequence):
        raise TypeError(
            f"sparsity_curve: history must be a list of metrics, got {kind_of(history)}. {_LOG}"
        )
    if not history:
        raise ValueError(f"sparsity_curve: history must not be empty, got {history!r}. {_LOG}")
    for i, entry in enumerate(history):
        if not isinstance(entry, Mapping):
            raise TypeError(
                f"sparsity_curve: history[{i}] must be a dictionary of metrics, got "
                f"{shown(entry)}. {_LOG}"
            )


def logged(history: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """float64[n], the value of one metric in every entry of a history."""
    values = []
    for i, entry in enumerate(history):
        if name not in entry:
            raise ValueError(
                f"sparsity_curve: history[{i}] has no {name!r}, only {shown(sorted(entry))}. {_LOG}"
            )
        check_not_donated(f"sparsity_curve: history[{i}]", {name: entry[name]})
        shape = np.shape(entry[name])
        if shape != ():
            raise TypeError(
                f"sparsity_curve: history[{i}][{name!r}] must be a scalar, got shape {shape}. Pass "
                "the metrics of one member: {name: value[0] for name, value in metrics.items()}."
            )
        values.append(float(entry[name]))
    return np.array(values)


def logged_leaves(history: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The sparsity of each leaf in every entry of a history, by path."""
    names = [name for name in history[0] if name.startswith(_LEAF)]
    if not names:
        raise ValueError(
            "sparsity_curve: per_leaf needs the sparsity of each leaf, but history[0] has none. "
            "Log jaxprune.metrics(opt_state, per_leaf=True)."
        )
    return {name.removeprefix(_LEAF): logged(history, name) for name in names}


def named_reports(report: Any) -> dict[str, Report]:
    """Reports by name; a single report has an empty name."""
    reports = dict(report) if isinstance(report, Mapping) else {"": report}
    for name, value in reports.items():
        if not isinstance(value, Report):
            where = f"report[{name!r}]" if isinstance(report, Mapping) else "report"
            raise TypeError(
                f"leaf_bars: {where} must be what jaxprune.plan or jaxprune.summarize returned, "
                f"got {shown(value)}."
            )
    if not any(value.leaves for value in reports.values()):
        raise ValueError(
            "leaf_bars: report must have leaves to draw, got none. Pass a report of params, such "
            "as jaxprune.summarize(params)."
        )
    return reports


def leaf_sparsities(report: Report) -> dict[str, tuple[float | None, bool]]:
    """Path -> sparsity, and whether it is that of the leaf; otherwise it is that of its pool.

    The sparsity is None for a leaf without a pool in the report, as some have in the plan of
    several transformations.
    """
    by_pool = {path: pool.n_zero / pool.size for pool in report.pools for path in pool.paths}
    return {
        leaf.path: (
            by_pool.get(leaf.path) if leaf.sparsity is None else leaf.sparsity,
            leaf.sparsity is not None,
        )
        for leaf in report.leaves
    }


def drawn_leaves(reports: Collection[Mapping[str, tuple[float | None, bool]]]) -> list[str]:
    """The paths of the leaves that lose weights in some report, or may; of all if there is none."""
    every = dict.fromkeys(path for leaves in reports for path in leaves)
    return [path for path in every if any(x.get(path, (0,))[0] != 0 for x in reports)] or [*every]


def check_bins(bins: Any) -> None:
    """Raises unless there is at least one bin."""
    if not is_int(bins):
        raise TypeError(f"weight_histogram: bins must be an int, got {shown(bins)}. Pass bins=100.")
    if bins < 1:
        raise ValueError(f"weight_histogram: bins must be at least 1, got {bins}. Pass bins=100.")


def weights_by_path(argument: str, tree: ArrayTree) -> dict[str, np.ndarray]:
    """The weights of all leaves of real floats, flat, in float32 or wider."""
    paths, leaves, _ = leaves_with_paths(tree)
    check_not_donated(f"weight_histogram: {argument}", tree)
    weights = {}
    for path, leaf in zip(paths, leaves, strict=True):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            continue
        host = to_host(f"weight_histogram: {argument}: {shown_path(path)}", leaf)
        values = host.astype(np.promote_types(np.float32, _numpy_float(dtype))).ravel()
        n_wild = int(np.sum(~np.isfinite(values)))
        if n_wild:
            raise ValueError(
                f"weight_histogram: {argument}: {shown_path(path)}: {n_wild:,} of "
                f"{counted(values.size, 'weight')} {is_or_are(n_wild)} not finite. Leave the leaf "
                "out, or replace these weights with zeros: "
                "jnp.nan_to_num(w, posinf=0, neginf=0)."
            )
        weights[path] = values
    if not sum(map(np.size, weights.values())):
        raise ValueError(
            f"weight_histogram: {argument} must hold weights of a float dtype, got "
            f"{shown(tree)}. Pass params, or one of their leaves."
        )
    return weights


def _numpy_float(dtype: Any) -> np.dtype:
    """The dtype where NumPy has it; float32 for bfloat16 and narrower ones."""
    return np.dtype(dtype) if np.dtype(dtype).kind == "f" else np.dtype(np.float32)


def check_same_leaves(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    """Raises unless both trees have the same leaves with as many weights."""
    for path in dict.fromkeys((*before, *after)):
        sizes = [tree[path].size if path in tree else None for tree in (before, after)]
        if sizes[0] != sizes[1]:
            had, has = ("no such leaf" if n is None else counted(n, "weight") for n in sizes)
            raise ValueError(
                f"weight_histogram: {shown_path(path)}: before has {had}, after has {has}. Pass "
                "the params of the same model before and after pruning."
            )


def as_mask(mask: Any) -> np.ndarray:
    """A bool array from a mask of bools or of 0 and 1."""
    dtype = getattr(mask, "dtype", None)
    kinds = (jnp.bool_, jnp.integer)
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise TypeError(
            f"mask_image: mask must be an array of bools, or of 0 and 1, got {shown(mask)}. Pass "
            "one leaf of jaxprune.get_masks(opt_state), or weights != 0."
        )
    check_not_donated("mask_image", {"mask": mask})
    values = to_host("mask_image: mask", mask, "mask")
    if not values.size:
        raise ValueError(
            f"mask_image: mask must have entries, got shape {values.shape}. Pass a mask of a leaf "
            "that has weights, such as jaxprune.get_masks(opt_state)['w']."
        )
    if not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"mask_image: mask must hold 0 and 1, got values from {values.min()} to "
            f"{values.max()}. Bit masks are unpacked by jaxprune.get_masks(opt_state)."
        )
    return values != 0
