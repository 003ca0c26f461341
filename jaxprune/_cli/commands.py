"""What each command does: inspect a file of params, or make another file from it, leaf by leaf.

Results are printed by `screen.py`, or here as JSON. Errors are raised; `options.py` prints them.
"""

import contextlib
import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import listed, shown_path
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._cli import screen
from jaxprune._cli.planned import Part, Plan, Rules, planned, with_zeros_written
from jaxprune._cli.pruning import decision_rules, pruned_leaf, with_shares
from jaxprune._cli.stored_masks import mask_paths, read_masks, to_mask
from jaxprune._cli.training_state import (
    MASKS,
    OPTIMIZER,
    OTHER,
    PARAMS,
    outside_params,
    training_state_of,
    without_training,
)
from jaxprune._cli.words import FailedCheck, WrongOption
from jaxprune._cli.writing import check_exists, check_source, checked_output, write
from jaxprune._files import footprint
from jaxprune._files.any_kind import Source, open_source
from jaxprune._files.leaves import Leaf, is_stored
from jaxprune._transform.operand import Rules as DecisionRules

# The files


class _Model(NamedTuple):
    """What the commands take from a file.

    Attributes:
      source: the file, with the leaves that are taken.
      outside: why some of them are not pruned, by path: they are no params.
      unclear: trees of which only one may hold the params.
    """

    source: Source
    outside: dict[str, str]
    unclear: list[str]


@contextlib.contextmanager
def _open_model(
    file: Path, params: Sequence[str] | None = None, leaves: Sequence[Leaf] | None = None
) -> Iterator[_Model]:
    """Opens a file; of a checkpoint, without the masks and the state of the optimizer.

    Args:
      file: or folder.
      params: paths of the trees of params, if the user gives them.
      leaves: those that were in it before, which must not have changed.
    """
    check_exists(file)
    with open_source(file) as source:
        groups, _, unclear = training_state_of(source, params)
        if source.kind == "orbax":
            source = without_training(source, groups)
            if not source.leaves:
                raise _without_params(file)
        if leaves is not None and tuple(leaves) != source.leaves:
            raise ValueError(f"{file}: has changed while it was read. Start again.")
        kept = {leaf.path: groups[leaf.path] for leaf in source.leaves}
        yield _Model(source, outside_params(kept), unclear)


def _planned(file: Path, model: _Model, *words: Any) -> Plan:
    """The plan of a file, which must hold params."""
    if len(model.outside) == len(model.source.leaves):
        raise _without_params(file)
    if model.unclear:
        raise _unclear(file, model.unclear)
    return planned(model.source, *words, outside=model.outside)


def _unclear(file: Path, trees: Sequence[str]) -> WrongOption:
    example = next(tree for tree in trees if tree)  # an empty path is the root of the file
    return WrongOption(
        f"{file}: {listed(list(map(shown_path, trees)))} have the same paths and shapes. Which of "
        "them are the params that the optimizer trains, and not a copy? Say it, as in --params "
        f"{example}"
    )


def _without_params(file: Path) -> ValueError:
    return ValueError(
        f"{file}: holds no params, at most masks and optimizer state. Give the file or the folder "
        "of the params."
    )


# inspect


def inspect(
    file: Path,
    *,
    params: Sequence[str] | None = None,
    quick: bool = False,
    check: bool = False,
    as_json: bool = False,
) -> None:
    """Prints what is in a file: counts, structures, sizes in other formats, and problems.

    Raises:
      FailedCheck: with `check`, weights that the masks in the file drop are not zero.
      ValueError: with `check`, the file has no masks.
    """
    check_exists(file)
    formats = footprint.QUICK if quick else footprint.QUICK + footprint.SLOW
    with open_source(file) as source:
        groups, param_of, unclear = training_state_of(source, params)
        if check and unclear:
            raise _unclear(file, unclear)
        mask_of = {} if unclear else mask_paths(source.leaves, param_of)
        bit_masks = read_masks(source, mask_of)
        left_out = source.left_out
    if check and not bit_masks:
        raise ValueError(
            f"{file}: has no masks, so --check can't tell which weights must be zero. Save the "
            "optimizer state with the params, or leave the option out."
        )
    report, leaks = _inspection(file, formats, bit_masks, groups)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        screen.print_inspection(report, left_out)
    if check and leaks:
        n_leaves = counted(len(leaks), "leaf", "leaves")
        verb = "has" if len(leaks) == 1 else "have"
        raise FailedCheck(f"{file}: {n_leaves} {verb} dropped weights that are not zero.")


def _inspection(
    file: Path,
    formats: tuple[str, ...],
    bit_masks: Mapping[str, np.ndarray],
    groups: Mapping[str, str],
) -> tuple[dict[str, Any], list[str]]:
    """The report of `inspect`, and a line for each leaf whose dropped weights are not zero."""
    rows, problems, leaks = [], [], []
    with open_source(file) as source:  # once more: most kinds of file can be read only once
        with screen.progress(source, file.name) as arrays:
            for path, array in arrays:
                rows.append(_inspected(path, array, formats) | {"group": groups[path]})
                problems += _problems(path, array)
                if path in bit_masks:
                    leaks += _leaks(path, array, to_mask(bit_masks[path], array.shape))
        kind, n_file_bytes, left_out = source.kind, _file_bytes(file, source), source.left_out
    params = [row for row in rows if row["group"] == PARAMS]
    report = {
        "file": str(file),
        "kind": kind,
        "file_bytes": n_file_bytes,
        "bytes": {name: sum(row["bytes"][name] for row in params) for name in formats},
        "total": _total(params),
        "groups": {name: _total([r for r in rows if r["group"] == name]) for name in _GROUPS},
        "leaves": rows,
        "left_out": list(left_out),
        "warnings": problems + leaks,
    }
    return report, leaks


_GROUPS = (PARAMS, MASKS, OPTIMIZER, OTHER)


def _total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of some leaves together."""
    n, n_nonzero = (sum(row[name] for row in rows) for name in ("weights", "nonzero"))
    n_bytes = sum(row["bytes"]["dense"] for row in rows)
    counts = {"leaves": len(rows), "weights": n, "nonzero": n_nonzero}
    return {**counts, "sparsity": 1 - n_nonzero / max(n, 1), "dense_bytes": n_bytes}


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


def _problems(path: str, array: np.ndarray) -> list[str]:
    """What is wrong with the values of a leaf, one line for each problem."""
    lines = []
    if n_minus := _n_minus_zero(array):
        compresses, them = ("compresses", "it") if n_minus == 1 else ("compress", "them")
        lines.append(
            f"{path}: {counted(n_minus, 'zero')} {is_or_are(n_minus)} -0.0, which {compresses} "
            "badly. jaxprune.apply_masks(params, jaxprune.masks_from_params(params)) makes "
            f"{them} +0.0."
        )
    if n_not_finite := _n_not_finite(array):
        n_entries = counted(n_not_finite, "entry", "entries")
        lines.append(f"{path}: {n_entries} {is_or_are(n_not_finite)} NaN or infinite.")
    return lines


def _leaks(path: str, array: np.ndarray, mask: np.ndarray) -> list[str]:
    """A line where dropped weights are not zero."""
    n_wrong = int(np.count_nonzero(_nonzero(array) & ~mask))
    if not n_wrong:
        return []
    n_dropped = counted(int(np.sum(~mask)), "weight")
    return [
        f"{path}: {n_wrong:,} of {n_dropped} that the masks in the file drop {is_or_are(n_wrong)} "
        "not zero. Make jaxprune.prune the last link of the chain."
    ]


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
    file: Path,
    sparsity: float,
    rules: Rules,
    layout: str = "auto",
    *,
    params: Sequence[str] | None = None,
    as_json: bool = False,
) -> None:
    """Prints what `prune` would do."""
    with _open_model(file, params) as model:
        report = _planned(file, model, sparsity, rules, layout).report
        left_out = model.source.left_out
    if as_json:
        known = {"file": str(file), "left_out": list(left_out)}
        print(json.dumps(known | report.to_dict(), indent=1))
    else:
        screen.console().print(report)
        screen.print_left_out(left_out)


def prune(
    file: Path,
    out: Path,
    sparsity: float,
    rules: Rules,
    layout: str = "auto",
    *,
    params: Sequence[str] | None = None,
    kind: str | None = None,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Prunes the params of a file into another file, and prints what was done."""
    output = checked_output(file, out, kind, force=force)
    decide = decision_rules(rules)
    with _open_model(file, params) as model:
        plan, leaves = _planned(file, model, sparsity, rules, layout), model.source.leaves
        check_source(output, model.source)
    if plan.shared:
        plan = with_shares(plan, decide, functools.partial(_read, file, params, leaves))
    n_zero: dict[str, int] = {}
    with (
        _open_model(file, params, leaves) as (source, *_),
        screen.progress(source, file.name) as arrays,
    ):
        pruned = _pruned_arrays(arrays, plan.parts, decide, n_zero)
        written = write(output, source, pruned)
    report = with_zeros_written(plan.report, n_zero)
    screen.print_written(file, written, report.to_dict(), report, as_json=as_json)


def _read(
    file: Path,
    params: Sequence[str] | None,
    leaves: Sequence[Leaf],
    title: str,
    paths: Collection[str],
) -> Iterator[tuple[str, np.ndarray]]:
    """Some of the leaves of a file, which is opened once more."""
    with (
        _open_model(file, params, leaves) as (source, *_),
        screen.progress(source.only(paths), title) as arrays,
    ):
        yield from arrays


def _pruned_arrays(
    arrays: Iterable[tuple[str, np.ndarray]],
    parts: Mapping[str, Part],
    rules: DecisionRules,
    n_zero: dict[str, int],
) -> Iterator[tuple[str, np.ndarray]]:
    """All leaves, the chosen ones pruned; `n_zero` gets how many of their weights are zero then."""
    for path, array in arrays:
        if path not in parts:
            yield path, array
            continue
        pruned = _pruned(path, array, parts[path], rules)
        n_zero[path] = pruned.size - int(np.count_nonzero(_nonzero(pruned)))
        yield path, pruned


def _pruned(path: str, array: np.ndarray, part: Part, rules: DecisionRules) -> np.ndarray:
    """A chosen leaf after pruning; the leaf itself where it keeps everything."""
    del path  # for tests
    return array if part.n_keep == part.n_units else pruned_leaf(part, array, rules)


# export


def export(
    file: Path,
    out: Path,
    *,
    params: Sequence[str] | None = None,
    kind: str | None = None,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Writes a file in another format, and prints what was done."""
    output = checked_output(file, out, kind, force=force)
    with _open_model(file, params) as (source, *_):
        check_source(output, source)
        with screen.progress(source, file.name) as arrays:
            written = write(output, source, arrays)
        summary = {"leaves": [leaf.path for leaf in source.leaves]}
    screen.print_written(file, written, summary, as_json=as_json)
