"""What each command does: inspect a file of params, or make another file from it, leaf by leaf.

Results are printed by `screen.py`, or here as JSON. Errors are raised; `options.py` prints them.
"""

import contextlib
import functools
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune._cli import screen
from jaxprune._cli.planned import Part, Rules, planned
from jaxprune._cli.pruning import decision_rules, pruned_leaf, with_shares
from jaxprune._cli.stored_masks import mask_paths, read_masks, to_mask
from jaxprune._cli.writing import check_exists, check_source, checked_output, write
from jaxprune._files import footprint
from jaxprune._files.any_kind import Source, open_source
from jaxprune._files.leaves import Leaf, is_stored
from jaxprune._report.table import Report
from jaxprune._transform.decide import Rules as DecisionRules

# The files


@contextlib.contextmanager
def _open_params(file: Path, leaves: Sequence[Leaf] | None = None) -> Iterator[Source]:
    """Opens the params of a file; in a checkpoint with `params` at its root, only those.

    Args:
      file: or folder.
      leaves: those that were in it before, which must not have changed.
    """
    check_exists(file)
    with open_source(file) as source:
        params = [leaf.path for leaf in source.leaves if leaf.path.startswith("params/")]
        if source.kind == "orbax" and params:
            source = source.only(params)
        if leaves is not None and tuple(leaves) != source.leaves:
            raise ValueError(f"{file}: has changed while it was read. Start again.")
        yield source


# inspect


def inspect(file: Path, *, quick: bool = False, as_json: bool = False) -> None:
    """Prints what is in a file: counts, structures, sizes in other formats, and problems."""
    check_exists(file)
    formats = footprint.QUICK if quick else footprint.QUICK + footprint.SLOW
    with open_source(file) as source:
        bit_masks = read_masks(source, mask_paths(source.leaves))
    rows, problems = [], []
    with open_source(file) as source:  # once more: most kinds of file can be read only once
        with screen.progress(source, file.name) as arrays:
            for path, array in arrays:
                mask = to_mask(bit_masks[path], array.shape) if path in bit_masks else None
                rows.append(_inspected(path, array, formats))
                problems += _problems(path, array, mask)
        kind, n_file_bytes = source.kind, _file_bytes(file, source)
    n, n_nonzero = (sum(row[name] for row in rows) for name in ("weights", "nonzero"))
    report = {
        "file": str(file),
        "kind": kind,
        "file_bytes": n_file_bytes,
        "bytes": {name: sum(row["bytes"][name] for row in rows) for name in formats},
        "total": {"weights": n, "nonzero": n_nonzero, "sparsity": 1 - n_nonzero / max(n, 1)},
        "leaves": rows,
        "warnings": problems,
    }
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        screen.print_inspection(report)


def _file_bytes(file: Path, source: Source) -> int:
    """The size of a file, of all shards, or of all files in the folder of a checkpoint."""
    if source.shards is not None:
        return sum(path.stat().st_size for path in source.shards.paths)
    if file.is_file():
        return file.stat().st_size
    return sum(path.stat().st_size for path in file.rglob("*") if path.is_file())


def _inspected(path: str, array: np.ndarray, formats: tuple[str, ...]) -> dict[str, Any]:
    """The row of a leaf in the report of `inspect`."""
    nonzero = _nonzero(array)
    n_nonzero = int(np.count_nonzero(nonzero))
    return {
        "path": path,
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "weights": array.size,
        "nonzero": n_nonzero,
        "sparsity": 1 - n_nonzero / max(array.size, 1),
        "structure": footprint.structure_of(nonzero),
        "minus_zero": _n_minus_zero(array),
        "bytes": footprint.sizes(array, formats),
    }


def _problems(path: str, array: np.ndarray, mask: np.ndarray | None) -> list[str]:
    """What is wrong with a leaf, one line for each problem."""
    lines = []
    if n_minus := _n_minus_zero(array):
        lines.append(
            f"{path}: {n_minus:,} zeros are -0.0, which compress badly. "
            "jaxprune.apply_masks(params, jaxprune.masks_from_params(params)) makes them +0.0."
        )
    if n_not_finite := _n_not_finite(array):
        lines.append(f"{path}: {n_not_finite:,} entries are NaN or infinite.")
    if mask is not None and (n_wrong := int(np.count_nonzero(_nonzero(array) & ~mask))):
        lines.append(
            f"{path}: {n_wrong:,} of {int(np.sum(~mask)):,} weights that the masks in the file "
            "drop are not zero. Make jaxprune.prune the last link of the chain."
        )
    return lines


def _nonzero(array: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return array != 0


def _n_not_finite(array: np.ndarray) -> int:
    if not jnp.issubdtype(array.dtype, np.inexact):
        return 0
    with np.errstate(invalid="ignore"):
        return int(np.count_nonzero(~np.isfinite(array)))


def _n_minus_zero(array: np.ndarray) -> int:
    return int(np.count_nonzero(is_stored(array) & ~_nonzero(array)))


# plan and prune


def plan(
    file: Path, sparsity: float, rules: Rules, layout: str = "auto", *, as_json: bool = False
) -> None:
    """Prints what `prune` would do."""
    with _open_params(file) as source:
        report = planned(source, sparsity, rules, layout).report
    if as_json:
        print(json.dumps({"file": str(file)} | _as_dict(report), indent=1))
    else:
        screen.console().print(report)


def _as_dict(report: Report) -> dict[str, Any]:
    """A report for JSON."""
    rows = [
        {"path": r.path, "shape": list(r.shape), "dtype": r.dtype, "weights": r.size}
        | {"nonzero": None if r.n_zero is None else r.size - r.n_zero}
        | {"sparsity": r.sparsity, "note": r.note, "roles": r.roles}
        for r in report.leaves
    ]
    totals = {"weights": report.size, "nonzero": report.size - report.n_zero}
    return {**totals, "sparsity": report.sparsity, "leaves": rows, "notes": list(report.notes)}


def prune(
    file: Path,
    out: Path,
    sparsity: float,
    rules: Rules,
    layout: str = "auto",
    *,
    kind: str | None = None,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Prunes the params of a file into another file, and prints what was done."""
    output = checked_output(file, out, kind, force=force)
    decide = decision_rules(rules)
    with _open_params(file) as source:
        plan, leaves = planned(source, sparsity, rules, layout), source.leaves
        check_source(output, source)
    if plan.shared:
        plan = with_shares(plan, decide, functools.partial(_read, file, leaves))
    with _open_params(file, leaves) as source, screen.progress(source, file.name) as arrays:
        pruned = (
            (path, _pruned(path, array, plan.parts[path], decide) if path in plan.parts else array)
            for path, array in arrays
        )
        written = write(output, source, pruned)
    report = plan.report
    screen.print_written(file, written, _as_dict(report), report, as_json=as_json)


def _read(
    file: Path, leaves: Sequence[Leaf], title: str, paths: Collection[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Some of the leaves of a file, which is opened once more."""
    with _open_params(file, leaves) as source, screen.progress(source.only(paths), title) as arrays:
        yield from arrays


def _pruned(path: str, array: np.ndarray, part: Part, rules: DecisionRules) -> np.ndarray:
    """A chosen leaf after pruning; the leaf itself where it keeps everything."""
    del path  # for tests
    return array if part.n_keep == part.n_units else pruned_leaf(part, array, rules)


# export


def export(
    file: Path,
    out: Path,
    *,
    kind: str | None = None,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Writes the params of a file in another format, and prints what was done."""
    output = checked_output(file, out, kind, force=force)
    with _open_params(file) as source:
        check_source(output, source)
        with screen.progress(source, file.name) as arrays:
            written = write(output, source, arrays)
        summary = {"leaves": [leaf.path for leaf in source.leaves]}
    screen.print_written(file, written, summary, as_json=as_json)
