"""What the commands do: look at files of params, and make others of them, a leaf at a time.

Each prints for people, which `screen.py` owns, or JSON; what goes wrong is raised.
"""

import contextlib
import difflib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._cli import screen, stored_masks as leaks
from jaxprune._files import any_kind as files, footprint
from jaxprune._files.formats import format_for
from jaxprune._files.leaves import is_stored
from jaxprune._report.report import plan as plan_params
from jaxprune._report.table import Report
from jaxprune._transform.oneshot import prune_params

Rules = dict[str, Any]  # arguments of `prune_params` and `plan`


@contextlib.contextmanager
def _params(file: Path) -> Iterator[files.Source]:
    """The params of a file; of a checkpoint with an optimizer state, its `params` alone."""
    _check_there(file)
    with files.source(file) as found:
        params = [leaf.path for leaf in found.leaves if leaf.path.startswith("params/")]
        whole = found.kind != "orbax" or not params
        yield found if whole else files.some(found, params)


def _check_there(file: Path) -> None:
    if file.exists():
        return
    beside = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
    close = difflib.get_close_matches(file.name, beside, n=1)
    hint = f" Did you mean {file.with_name(close[0])}?" if close else ""
    raise FileNotFoundError(f"{file}: there is no such file.{hint}")


def _check_out(file: Path, out: Path, *, force: bool) -> None:
    _check_there(file)
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not force:
        raise FileExistsError(f"{out}: exists. Choose another name, or replace it with --force.")


def inspect(file: Path, *, quick: bool = False, as_json: bool = False) -> None:
    """Prints what is in a file."""
    _check_there(file)
    names = footprint.QUICK if quick else footprint.QUICK + footprint.SLOW
    with files.source(file) as found:
        masks = leaks.read_masks(found, leaks.mask_paths(found.leaves))
    with files.source(file) as found:  # again, as the leaves of most kinds come once
        rows, notes = [], []
        with screen.progress(found, file.name) as arrays:
            for path, array in arrays():
                mask = leaks.kept(masks[path], array.shape) if path in masks else None
                row, wrong = _seen(path, array, names, mask)
                rows.append(row)
                notes += wrong
        kind = found.kind
    if file.is_file():
        n_bytes = file.stat().st_size
    else:
        n_bytes = sum(p.stat().st_size for p in file.rglob("*") if p.is_file())
    total = {name: sum(row["bytes"][name] for row in rows) for name in names}
    what = {"file": str(file), "kind": kind, "file_bytes": n_bytes, "bytes": total}
    n, n_nonzero = (sum(row[name] for row in rows) for name in ("weights", "nonzero"))
    counts = {"weights": n, "nonzero": n_nonzero, "sparsity": 1 - n_nonzero / max(n, 1)}
    what |= {"total": counts, "leaves": rows, "warnings": notes}
    if as_json:
        print(json.dumps(what, indent=1))
    else:
        screen.show(what)


def _seen(
    path: str, array: np.ndarray, names: tuple[str, ...], mask: np.ndarray | None
) -> tuple[dict[str, Any], list[str]]:
    """A row of `inspect`, and what is wrong with the leaf."""
    with np.errstate(invalid="ignore"):
        nonzero = array != 0
    n_minus = int(np.count_nonzero(is_stored(array) & ~nonzero))
    inexact = jnp.issubdtype(array.dtype, np.inexact)
    n_wild = int(np.count_nonzero(~np.isfinite(array))) if inexact else 0
    notes = []
    if n_minus:
        notes.append(
            f"{path}: {n_minus:,} zeros are -0.0, which compress badly; "
            "jaxprune.apply_masks(params, jaxprune.masks_from_params(params)) makes them +0.0."
        )
    if n_wild:
        notes.append(f"{path}: {n_wild:,} entries are NaN or infinite.")
    if mask is not None and (n_leaks := int(np.count_nonzero(nonzero & ~mask))):
        notes.append(
            f"{path}: {n_leaks:,} of {int(np.sum(~mask)):,} weights that the masks in the file "
            "drop are not zero. Make jaxprune.prune the last link of the chain."
        )
    n_nonzero = int(np.count_nonzero(nonzero))
    row = {"path": path, "shape": list(array.shape), "dtype": array.dtype.name}
    row |= {"weights": array.size, "nonzero": n_nonzero}
    row |= {"sparsity": 1 - n_nonzero / max(array.size, 1)}
    row |= {"structure": footprint.structure_of(nonzero)}
    return row | {"minus_zero": n_minus, "bytes": footprint.sizes(array, names)}, notes


def plan(file: Path, sparsity: float, rules: Rules, *, as_json: bool = False) -> None:
    """Prints what `prune` would do."""
    with _params(file) as found:
        report = _plan(found, sparsity, rules)
    if as_json:
        print(json.dumps({"file": str(file)} | _as_dict(report), indent=1))
    else:
        screen.console().print(report)


def _plan(found: files.Source, sparsity: float, rules: Rules) -> Report:
    shapes: Any = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in found.leaves}
    with _all_dtypes():
        report = plan_params(shapes, sparsity, **rules)
    order = {leaf.path: leaf for leaf in report.leaves}  # of the file, not sorted
    return Report(report.title, tuple(order[x.path] for x in found.leaves), report.notes)


def _as_dict(report: Report) -> dict[str, Any]:
    rows = [
        {"path": r.path, "shape": list(r.shape), "dtype": r.dtype, "weights": r.size}
        | {"nonzero": r.size - r.n_zero, "sparsity": r.sparsity, "note": r.note}
        for r in report.leaves
    ]
    totals = {"weights": report.size, "nonzero": report.size - report.n_zero}
    return {**totals, "sparsity": report.sparsity, "leaves": rows, "notes": list(report.notes)}


def prune(
    file: Path,
    out: Path,
    sparsity: float,
    rules: Rules,
    *,
    kind: str | None = None,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Prunes a file into another, and prints what was done."""
    kind = format_for(out, kind)
    _check_out(file, out, force=force)
    with _params(file) as found:
        report = _plan(found, sparsity, rules)
        chosen = {leaf.path for leaf in report.leaves if leaf.n_zero}
        with screen.progress(found, file.name) as arrays:
            pruned = (
                (path, _pruned(path, x, sparsity, rules) if path in chosen else x)
                for path, x in arrays()
            )
            left_out = files.write(out, kind, found.leaves, pruned)
    screen.tell(_as_dict(report), file, out, left_out, report=report, as_json=as_json)


def _pruned(path: str, array: np.ndarray, sparsity: float, rules: Rules) -> np.ndarray:
    with _all_dtypes(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rules that mean other leaves
        params, _ = prune_params({path: array}, sparsity, **rules)
        return np.asarray(jax.tree.leaves(params)[0])


@contextlib.contextmanager
def _all_dtypes() -> Iterator[None]:
    """Lets JAX have 64-bit types, which files may hold."""
    before: bool = jax.config.jax_enable_x64  # pyright: ignore
    try:
        jax.config.update("jax_enable_x64", True)
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def export(
    file: Path,
    out: Path,
    *,
    kind: str | None = None,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Writes a file in another format, and prints what was done."""
    kind = format_for(out, kind)
    _check_out(file, out, force=force)
    with _params(file) as found, screen.progress(found, file.name) as arrays:
        left_out = files.write(out, kind, found.leaves, arrays())
        what = {"leaves": [leaf.path for leaf in found.leaves]}
    screen.tell(what, file, out, left_out, as_json=as_json)
