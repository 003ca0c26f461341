"""What the commands do: look at files of params, and make others of them, a leaf at a time.

Each prints for people, or JSON; what goes wrong is raised.
"""

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import files, footprint, leaks
from jaxprune.oneshot import prune_params
from jaxprune.report import Report, plan as plan_params
from jaxprune.saved import is_stored

Rules = dict[str, Any]  # arguments of `prune_params` and `plan`


@contextlib.contextmanager
def _params(file: Path) -> Iterator[files.Source]:
    """The params of a file; of a checkpoint with an optimizer state, its `params` alone."""
    with files.source(file) as found:
        params = [leaf.path for leaf in found.leaves if leaf.path.startswith("params/")]
        whole = found.kind != "orbax" or not params
        yield found if whole else files.some(found, params)


def _check_out(file: Path, out: Path, *, force: bool) -> None:
    if not file.exists():
        raise FileNotFoundError(f"{file}: there is no such file.")
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not force:
        raise FileExistsError(f"{out}: exists. Choose another name, or replace it with --force.")


def inspect(file: Path, *, quick: bool = False, as_json: bool = False) -> None:
    """Prints what is in a file."""
    names = footprint.QUICK if quick else footprint.QUICK + footprint.SLOW
    with files.source(file) as found:
        masks = leaks.read_masks(found, leaks.mask_paths(found.leaves))
    with files.source(file) as found:  # again, as the leaves of most kinds come once
        rows, notes = [], []
        with _progress(found, file.name) as arrays:
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
    what |= {"leaves": rows, "warnings": notes}
    if as_json:
        print(json.dumps(what, indent=1))
    else:
        _show(what)


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
        _console().print(report)


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
    kind = files.format_for(out, kind)
    _check_out(file, out, force=force)
    with _params(file) as found:
        report = _plan(found, sparsity, rules)
        chosen = {leaf.path for leaf in report.leaves if leaf.n_zero}
        with _progress(found, file.name) as arrays:
            pruned = (
                (path, _pruned(path, x, sparsity, rules) if path in chosen else x)
                for path, x in arrays()
            )
            left_out = files.write(out, kind, found.leaves, pruned)
    _tell(_as_dict(report), file, out, left_out, report=report, as_json=as_json)


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
    kind = files.format_for(out, kind)
    _check_out(file, out, force=force)
    with _params(file) as found, _progress(found, file.name) as arrays:
        left_out = files.write(out, kind, found.leaves, arrays())
        what = {"leaves": [leaf.path for leaf in found.leaves]}
    _tell(what, file, out, left_out, as_json=as_json)


# What is printed


def _console(*, err: bool = False) -> Any:
    from rich.console import Console

    # Piped, rich takes 80 columns for granted, which cuts tables.
    stream = sys.stderr if err else sys.stdout
    return Console(stderr=err, width=None if stream.isatty() else 160, highlight=False)


@contextlib.contextmanager
def _progress(found: files.Source, name: str) -> Iterator[Callable[[], Iterator[Any]]]:
    """The arrays of a source, with a bar on a terminal of how many bytes have gone by."""
    from rich.progress import Progress

    sizes = {leaf.path: leaf.n_bytes for leaf in found.leaves}
    with Progress(console=_console(err=True), transient=True) as progress:
        task = progress.add_task(name, total=sum(sizes.values()))

        def arrays() -> Iterator[Any]:
            for path, array in found.arrays():
                yield path, array
                progress.advance(task, sizes[path])

        yield arrays


def _show(what: dict[str, Any]) -> None:
    """Prints what `inspect` found."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{what['file']}: {what['kind']}, {what['file_bytes']:,} bytes"))
    columns = {"leaf": "left", "shape": "left", "dtype": "left", "weights": "right"}
    columns |= {"nonzero": "right", "sparsity": "right", "structure": "left"}
    for column, justify in columns.items():
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    for row in what["leaves"]:
        shape = "x".join(map(str, row["shape"]))
        counts = f"{row['weights']:,}", f"{row['nonzero']:,}", f"{row['sparsity']:.2%}"
        cells = (row["path"] or "(root)", shape, row["dtype"], *counts, row["structure"])
        table.add_row(*map(Text, cells))
    sizes = Table(title="Bytes by format")
    sizes.add_column("format")
    sizes.add_column("bytes", justify="right")
    sizes.add_column("smaller", justify="right")
    for name, n_bytes in what["bytes"].items():
        ratio = what["bytes"]["dense"] / max(n_bytes, 1)
        sizes.add_row(name, f"{n_bytes:,}", f"{ratio:.2f}x")
    console = _console()
    console.print(table)
    console.print(sizes)
    for line in what["warnings"]:
        console.print(Text(f"warning: {line}"), soft_wrap=True)


def _tell(
    what: dict[str, Any],
    file: Path,
    out: Path,
    left_out: list[str],
    *,
    report: Report | None = None,
    as_json: bool,
) -> None:
    """Prints what was written."""
    written = [p for p in out.rglob("*.npz")] if out.is_dir() else [out]
    n_bytes = sum(p.stat().st_size for p in written)
    if as_json:
        head = {"file": str(file), "out": str(out), "bytes": n_bytes, "left_out": left_out}
        print(json.dumps(head | what, indent=1))
        return
    console = _console()
    if report is not None:
        console.print(report)
    for path in left_out:
        console.print(f"left out: {path} has not two axes", markup=False)
    console.print(f"wrote {out}, {n_bytes:,} bytes", markup=False, soft_wrap=True)
