"""The paper's experiments from the command line: `python -m benchmarks.paper COMMAND`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.paper.study import Study

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Quick = Annotated[bool, typer.Option("--quick", help="Tiny, into a temporary folder.")]
Large = Annotated[bool, typer.Option("--large", help="The configuration for a GPU.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the results that are there.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the results.")]
_RESULTS = Path(__file__).parent.parent / "results"


def console() -> Console:
    """Where tables go; piped, rich takes 80 columns for granted, too few for a table of figures."""
    return Console(width=None if sys.stdout.isatty() else 160)


@app.command()
def sizes() -> None:
    """Counts the published networks at full size, beside what was printed. Needs no data."""
    from benchmarks.paper.sizes import show

    show(console().print)


@app.command()
def lstm(quick: Quick = False, large: Large = False, resume: Resume = False, out: Out = None):
    """Language models of CPython's standard library."""
    from benchmarks.paper import text

    _run([text.study(_size(quick, large))], quick, resume, out)


@app.command()
def cnn(quick: Quick = False, large: Large = False, resume: Resume = False, out: Out = None):
    """Deep convolutional networks, depthwise-separable and plain, on scikit-learn's digits."""
    from benchmarks.paper import digits

    _run(digits.studies(_size(quick, large)), quick, resume, out)


@app.command()
def seq2seq(quick: Quick = False, large: Large = False, resume: Resume = False, out: Out = None):
    """Translation of number words and dates, English to German and back."""
    from benchmarks.paper import phrases

    _run(phrases.studies(_size(quick, large)), quick, resume, out)


def _size(quick: bool, large: bool) -> str:
    if quick and large:
        raise typer.BadParameter("choose one of --quick and --large")
    return "quick" if quick else "gpu" if large else "cpu"


def _run(studies: Iterable[Study], quick: bool, resume: bool, out: Path | None) -> None:
    from benchmarks.paper import store, summary

    folder = out or (Path(tempfile.mkdtemp()) if quick else _RESULTS)
    for study in studies:
        try:
            results = store.run(study, folder, resume=resume)
        except KeyboardInterrupt:
            console().print(f"Stopped. Go on with --resume --out {folder}.", highlight=False)
            raise typer.Exit(130) from None
        console().print(summary.table(results, study))
        path = store.results_file(study, folder)
        for file in (path, *summary.draw(results, study, path)):
            console().print(f"wrote {file}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
