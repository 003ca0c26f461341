"""The paper's experiments from the command line: `python -m benchmarks.paper COMMAND`."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


def console() -> Console:
    """Where tables go; piped, rich takes 80 columns for granted, too few for a table of figures."""
    return Console(width=None if sys.stdout.isatty() else 160)


@app.command()
def sizes() -> None:
    """Counts the published networks at full size, beside what was printed. Needs no data."""
    from benchmarks.paper.sizes import show

    show(console().print)


@app.callback()
def _several() -> None:
    """Zhu & Gupta (2017), reproduced."""


if __name__ == "__main__":
    app()
