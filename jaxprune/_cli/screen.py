"""What the commands print: tables, progress bars on terminals, and lines about written files."""

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune._base.paths import listed, shown_path
from jaxprune._base.plurals import counted
from jaxprune._cli.interrupts import Stopped, signals_raise
from jaxprune._cli.writing import Written
from jaxprune._files.any_kind import Source
from jaxprune._files.extras import import_extra
from jaxprune._report.table import Report

_FORMAT_LABELS = {"bound": "lower bound, values uncompressed", "jaxprune": "jaxprune.save"}
_LEFT_ALIGNED = ("leaf", "shape", "dtype", "structure")
# Columns that are left out on a narrow terminal, in this order.
_OPTIONAL = ("dense bytes", "nonzero", "dtype", "shape")


def console(*, err: bool = False) -> Any:
    """Standard output or error; if it is piped, without colours and as wide as the tables need."""
    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() else 10_000
    return import_extra("rich.console", "cli").Console(stderr=err, width=width, highlight=False)


@contextlib.contextmanager
def progress(source: Source, name: str) -> Iterator[Iterator[tuple[str, Any]]]:
    """The paths and arrays of a source, with a bar on a terminal: bytes, and time left.

    Ctrl-C and the like raise after the current leaf at the latest.
    """
    sizes = {leaf.path: leaf.n_bytes for leaf in source.leaves}
    screen = console(err=True)
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(signals_raise())
        advance: Callable[[str], Any] = lambda path: None
        if screen.is_terminal:
            rich = import_extra("rich.progress", "cli")
            columns = (
                rich.TextColumn("{task.description}"),
                rich.BarColumn(),
                rich.DownloadColumn(binary_units=True),
                rich.TimeRemainingColumn(),
            )
            bar = rich.Progress(*columns, console=screen, transient=True)
            stack.enter_context(bar)
            task = bar.add_task(name, total=sum(sizes.values()))
            advance = lambda path: bar.advance(task, sizes[path])

        def arrays() -> Iterator[tuple[str, Any]]:
            for path, array in source.arrays():
                yield path, array
                if interrupts:
                    raise Stopped(interrupts[0])
                advance(path)

        yield arrays()


def print_inspection(report: Mapping[str, Any], left_out: Mapping[str, str]) -> None:
    """Prints the report of `inspect`: a table of leaves, a table of sizes, and the warnings.

    Args:
      report: as printed with `--json`.
      left_out: why parts of the file are not in the report, by path or name.
    """
    from rich.table import Table
    from rich.text import Text

    screen = console()
    title = Text(f"{report['file']}: {report['kind']}, {report['file_bytes']:,} bytes")
    others = {name: x for name, x in report["groups"].items() if name != "params" and x["leaves"]}
    sizes = Table(title="Bytes by format" + ", of the params" * bool(others))
    sizes.add_column("format")
    sizes.add_column("bytes", justify="right")
    sizes.add_column("compression", justify="right")
    for name, n_bytes in report["bytes"].items():
        ratio = report["bytes"]["dense"] / max(n_bytes, 1)
        sizes.add_row(_FORMAT_LABELS.get(name, name), f"{n_bytes:,}", f"{ratio:.2f}x")
    screen.print(_widest_table(screen, title, _leaf_rows(report)))
    for name, group in others.items():
        counts = (
            counted(group["leaves"], "leaf", "leaves"),
            counted(group["weights"], "entry", "entries"),
            counted(group["dense_bytes"], "byte"),
        )
        line = f"{name}: {', '.join(counts)}; not in the total"
        screen.print(Text(line), soft_wrap=True)
    screen.print(sizes)
    print_left_out(left_out)
    for line in report["warnings"]:
        screen.print(Text(f"warning: {line}"), soft_wrap=True)


def _leaf_rows(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of the table of leaves, by column; the last one is the total."""
    sizes = report["bytes"]
    smallest = "jaxprune" if "jaxprune" in sizes else "bitmask"
    total = {"path": "total", "shape": [], "dtype": "", "structure": "", "bytes": sizes}
    return [
        {
            "leaf": shown_path(row["path"]),
            "shape": "x".join(map(str, row["shape"])),
            "dtype": row["dtype"],
            "weights": f"{row['weights']:,}",
            "nonzero": f"{row['nonzero']:,}",
            "sparsity": f"{row['sparsity']:.2%}",
            "structure": row["structure"],
            "dense bytes": f"{row['bytes']['dense']:,}",
            f"{smallest} bytes": f"{row['bytes'][smallest]:,}",
        }
        for row in [*report["leaves"], total | report["total"]]
    ]


def _widest_table(screen: Any, title: Any, rows: Sequence[Mapping[str, str]]) -> Any:
    """The table with as many columns as fit on the screen."""
    from rich.cells import cell_len

    width_of = {name: max(cell_len(row[name]) for row in [{name: name}, *rows]) for name in rows[0]}
    without: list[str] = []
    for name in _OPTIONAL:
        if sum(width_of.values()) + 3 * len(width_of) + 1 <= screen.width:  # with lines and spaces
            break
        del width_of[name]
        without.append(name)
    return _table(title, rows, without)


def _table(title: Any, rows: Sequence[Mapping[str, str]], without: Sequence[str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    columns = [name for name in rows[0] if name not in without]
    for name in columns:
        table.add_column(
            name, justify="left" if name in _LEFT_ALIGNED else "right", overflow="fold"
        )
    for row in rows[:-1]:
        table.add_row(*(Text(row[name]) for name in columns))
    table.add_section()
    table.add_row(*(Text(rows[-1][name]) for name in columns))
    return table


def print_left_out(left_out: Mapping[str, str]) -> None:
    """Prints what is not taken from a file, one line for each reason.

    Args:
      left_out: the reasons, by path or name.

    Example:
      >>> print_left_out({"a_opt/mu": "training", "a_opt/nu": "training", "b_opt/mu": "training"})
      left out: a_opt/... (2 leaves), b_opt/mu: training
    """
    paths_of: dict[str, list[str]] = {}
    for path, reason in left_out.items():
        paths_of.setdefault(reason, []).append(path)
    for reason, paths in paths_of.items():
        line = f"left out: {_together(paths)}: {reason}"
        console().print(line, markup=False, soft_wrap=True)


def _together(paths: Sequence[str]) -> str:
    """Several paths by what those with the same first key have in common."""
    by_top: dict[str, list[str]] = {}
    for path in paths:
        by_top.setdefault(path.partition("/")[0], []).append(path)
    return listed([_common(group) for group in by_top.values()])


def _common(paths: Sequence[str]) -> str:
    """Several paths by the keys that all of them begin with."""
    levels = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    common = [keys[0] for keys in itertools.takewhile(lambda keys: len(set(keys)) == 1, levels)]
    if len(paths) == 1 or not common:
        return listed(paths)
    return f"{shown_path('/'.join(common))}/... ({len(paths):,} leaves)"


def print_written(
    file: Path,
    written: Written,
    summary: Mapping[str, Any],
    report: Report | None = None,
    *,
    as_json: bool,
) -> None:
    """Prints which file was written, how large it is, and what was left out.

    Args:
      file: that was read.
      written: what was written.
      summary: further entries of the JSON.
      report: a table to print before.
      as_json: print JSON instead.
    """
    if as_json:
        print(json.dumps({"file": str(file), **written.as_dict(), **summary}, indent=1))
        return
    screen = console()
    if report is not None:
        screen.print(report)
    print_left_out(written.not_read)
    for name in written.left_out:
        screen.print(f"left out: {name} {written.reason}", markup=False, soft_wrap=True)
    line = f"wrote {written.path}, {written.n_bytes:,} bytes"
    screen.print(line, markup=False, soft_wrap=True)
