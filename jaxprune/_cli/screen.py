"""What the commands print: tables for people, bars on terminals, lines of what was written."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune._base.paths import shown_path
from jaxprune._files.any_kind import Source
from jaxprune._files.stream import extra
from jaxprune._report.table import Report

_SHOWN = {"bound": "entropy bound", "jaxprune": "jaxprune.save"}
_LEFT = ("leaf", "shape", "dtype", "structure")
# Columns that a narrow terminal goes without, the first ones first.
_SPARE = ("dense bytes", "nonzero", "dtype", "shape")


def console(*, err: bool = False) -> Any:
    """Standard output or error; piped, without colours and as wide as the tables need."""
    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() else 10_000
    return extra("rich.console", "cli").Console(stderr=err, width=width, highlight=False)


@contextlib.contextmanager
def progress(found: Source, name: str) -> Iterator[Callable[[], Iterator[Any]]]:
    """The arrays of a source, with a bar on a terminal of how many bytes have gone by."""
    sizes = {leaf.path: leaf.n_bytes for leaf in found.leaves}
    screen = console(err=True)
    with contextlib.ExitStack() as stack:
        pressed = stack.enter_context(_ctrl_c())
        advance: Callable[[str], Any] = lambda path: None
        if screen.is_terminal:
            bar = extra("rich.progress", "cli").Progress(console=screen, transient=True)
            stack.enter_context(bar)
            task = bar.add_task(name, total=sum(sizes.values()))
            advance = lambda path: bar.advance(task, sizes[path])

        def arrays() -> Iterator[Any]:
            for path, array in found.arrays():
                yield path, array
                if pressed:
                    raise KeyboardInterrupt
                advance(path)

        yield arrays


@contextlib.contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C is pressed: what that raises in a callback of JAX is lost."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        if callable(before):
            before(number, frame)

    if before is not signal.default_int_handler:  # ignored, or somebody else's
        yield pressed
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def show(what: Mapping[str, Any]) -> None:
    """Prints what `inspect` found."""
    from rich.table import Table
    from rich.text import Text

    screen = console()
    title = Text(f"{what['file']}: {what['kind']}, {what['file_bytes']:,} bytes")
    sizes = Table(title="Bytes by format")
    sizes.add_column("format")
    sizes.add_column("bytes", justify="right")
    sizes.add_column("smaller", justify="right")
    for name, n_bytes in what["bytes"].items():
        ratio = what["bytes"]["dense"] / max(n_bytes, 1)
        sizes.add_row(_SHOWN.get(name, name), f"{n_bytes:,}", f"{ratio:.2f}x")
    screen.print(_fitting(screen, title, _cells(what)))
    screen.print(sizes)
    for line in what["warnings"]:
        screen.print(Text(f"warning: {line}"), soft_wrap=True)


def _cells(what: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of the table of leaves, the last one their total, by column."""
    smallest = "jaxprune" if "jaxprune" in what["bytes"] else "bitmask"
    total = {"path": "total", "shape": [], "dtype": "", "structure": "", "bytes": what["bytes"]}
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
        for row in [*what["leaves"], total | what["total"]]
    ]


def _fitting(screen: Any, title: Any, rows: Sequence[Mapping[str, str]]) -> Any:
    """A table with as many columns as the screen is wide."""
    unbound = screen.options.update(width=10_000)
    tables = [_table(title, rows, _SPARE[:n]) for n in range(len(_SPARE) + 1)]
    widths = [screen.measure(table, options=unbound).maximum for table in tables]
    fit = [table for table, width in zip(tables, widths, strict=True) if width <= screen.width]
    return [*fit, tables[-1]][0]


def _table(title: Any, rows: Sequence[Mapping[str, str]], without: Sequence[str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    columns = [name for name in rows[0] if name not in without]
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    for row in rows[:-1]:
        table.add_row(*(Text(row[name]) for name in columns))
    table.add_section()
    table.add_row(*(Text(rows[-1][name]) for name in columns))
    return table


def tell(
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
    screen = console()
    if report is not None:
        screen.print(report)
    for path in left_out:
        screen.print(f"left out: {path} has not two axes", markup=False)
    screen.print(f"wrote {out}, {n_bytes:,} bytes", markup=False, soft_wrap=True)
