"""The paper's experiments from the command line: `python -m benchmarks.paper COMMAND`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

_INSTALL = "is not installed. Type: pip install -e '.[paper]'"
try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as error:
    sys.exit(f"benchmarks.paper: {error.name} {_INSTALL}")

if TYPE_CHECKING:
    from benchmarks.paper.study import Study

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Quick = Annotated[bool, typer.Option("--quick", help="Tiny, into a temporary folder.")]
Large = Annotated[bool, typer.Option("--large", help="The configuration for a GPU.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the results that are there.")]
Only = Annotated[str, typer.Option(help="Studies whose name contains this.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the results.")]
Jobs = Annotated[
    int, typer.Option(help="Networks trained at a time. Default: one for each core, one on a GPU.")
]
_RESULTS = Path(__file__).parent.parent / "results"


def console() -> Console:
    """Where tables go; piped, rich takes 80 columns for granted, too few for a table of figures."""
    return Console(width=None if sys.stdout.isatty() else 160)


def needs(*modules: str) -> None:
    """Ends the command with what to install, where one of these modules is missing."""
    for module in ("flax", "tqdm", *modules):
        if find_spec(module) is None:
            console().print(f"benchmarks.paper: {module} {_INSTALL}", highlight=False, markup=False)
            raise typer.Exit(2)


@app.command()
def sizes() -> None:
    """Counts the published networks at full size, beside what was printed. Needs no data."""
    needs()
    from benchmarks.paper.sizes import show

    show(console().print)


@app.command()
def lstm(
    quick: Quick = False,
    large: Large = False,
    resume: Resume = False,
    out: Out = None,
    jobs: Jobs = 0,
):
    """Language models of CPython's standard library."""
    needs()
    from benchmarks.paper import text

    _run([text.study(_size(quick, large))], quick, resume, out, jobs=jobs)


@app.command()
def cnn(
    quick: Quick = False,
    large: Large = False,
    resume: Resume = False,
    out: Out = None,
    only: Only = "",
    jobs: Jobs = 0,
):
    """Deep convolutional networks, depthwise-separable and plain, on scikit-learn's digits."""
    needs("sklearn")
    from benchmarks.paper import digits

    _run(_named(only, digits.studies, _size(quick, large)), quick, resume, out, jobs=jobs)


@app.command()
def seq2seq(
    quick: Quick = False,
    large: Large = False,
    resume: Resume = False,
    out: Out = None,
    only: Only = "",
    jobs: Jobs = 0,
):
    """Translation of number words and dates, English to German and back."""
    needs("num2words", "babel", "sacrebleu")
    from benchmarks.paper import phrases

    _run(_named(only, phrases.studies, _size(quick, large)), quick, resume, out, jobs=jobs)


@app.command("findings")
def other_findings(quick: Quick = False, resume: Resume = False, out: Out = None, jobs: Jobs = 0):
    """When, how often and where to prune: variants of one language model at 90%."""
    needs()
    from benchmarks.paper import findings

    study = findings.study("quick" if quick else "cpu")
    _run([study], quick, resume, out, findings, jobs=jobs)


@app.command()
def tables(out: Out = None):
    """The tables of docs/paper.md from the results that are there, and the picture of them all."""
    needs("matplotlib")
    from benchmarks.paper import story

    folder = out or _RESULTS
    found = story.load(folder)
    for lines in (story.comparison(found), story.variants(found)):
        print(*lines, "", sep="\n")
    console().print(f"wrote {story.draw(found, folder / 'paper-cpu.png')}", highlight=False)


@app.command()
def quality(
    quick: Quick = False,
    large: Large = False,
    resume: Resume = False,
    out: Out = None,
    only: Only = "",
    networks: Annotated[str, typer.Option(help="Networks whose name this regex finds.")] = "",
    jobs: Jobs = 0,
):
    """What structures cost: blocks, N:M, whole units against unstructured and small dense."""
    needs("sklearn")
    from benchmarks.paper import quality

    studies = _named(only, quality.studies, _size(quick, large))
    _run(studies, quick, resume, out, quality, only=networks, jobs=jobs)


@app.command()
def step(
    only: Annotated[str, typer.Option(help="Networks whose name contains this.")] = "",
    batch: Annotated[int, typer.Option(help="Examples.")] = 2,
):
    """One real training step of each full-size network, pruned, on made-up data: up to 5 GB."""
    needs()
    from benchmarks.paper import fullsize

    table = Table("network", "sparsity", "loss", "zeros", "compile s", "step s", "peak GB so far")
    for name in (name for name in fullsize.RECIPES if only in name):
        found = fullsize.one_step(name, batch)
        numbers = (f"{found[k]:.1f}" for k in ("compile_s", "step_s", "peak_gb"))
        zeros, loss = f"{found['n_zero']:,}", f"{found['loss']:.3f}"
        table.add_row(name, f"{100 * found['sparsity']:g}%", loss, zeros, *numbers)
        console().print(f"{name}: {found['step_s']:.1f} s", highlight=False)
    console().print(table)


@app.command()
def train(
    network: Annotated[
        str, typer.Argument(help="As `sizes` names it: 'PTB LSTM small', GNMT, ...")
    ],
    data: Annotated[
        list[Path], typer.Argument(help="PTB folder, image folder, or two text files.")
    ],
    sparsity: Annotated[float | None, typer.Option(help="Default: a row of the paper.")] = None,
    steps: Annotated[int | None, typer.Option(help="Default: as published.")] = None,
    batch: Annotated[int | None, typer.Option(help="Default: as published.")] = None,
    every: Annotated[int | None, typer.Option(help="Steps between fires.")] = None,
):
    """Trains a published network on your own data, pruning it as the paper does."""
    import dataclasses

    needs()
    from benchmarks.paper import fullsize

    if network not in fullsize.RECIPES:
        raise typer.BadParameter(f"no network {network!r}: choose one of {list(fullsize.RECIPES)}")
    if network in ("InceptionV3", "MobileNet v1"):
        needs("PIL")
    given = {"sparsity": sparsity, "steps": steps, "batch": batch, "every": every}
    changes = {name: value for name, value in given.items() if value is not None}
    recipe = dataclasses.replace(fullsize.RECIPES[network], **changes)

    def report(step: int, loss: float, zeros: float) -> None:
        line = f"step {step:,} loss {loss:.4f} zeros {100 * zeros:.2f}%"
        console().print(line, highlight=False)

    fullsize.train(network, fullsize.batches_of(network, data, recipe), recipe, report)


def _size(quick: bool, large: bool) -> str:
    if quick and large:
        raise typer.BadParameter("choose one of --quick and --large")
    return "quick" if quick else "gpu" if large else "cpu"


def _named(only: str, studies: Callable[[str], list[Study]], size: str) -> list[Study]:
    found = [study for study in studies(size) if only in study.name]
    if not found:
        names = [study.name for study in studies(size)]
        raise typer.BadParameter(f"no study {only!r}: choose one of {names}")
    return found


def _run(
    studies: Iterable[Study],
    quick: bool,
    resume: bool,
    out: Path | None,
    how: Any = None,
    *,
    jobs: int,
    **more: Any,
) -> None:
    """Runs, shows and draws; `how` has the networks, the table and the pictures, if not usual."""
    import jax

    from benchmarks.common import n_cores
    from benchmarks.paper import store, summary

    jobs = jobs or (n_cores() if jax.default_backend() == "cpu" else 1)
    folder = out or (Path(tempfile.mkdtemp()) if quick else _RESULTS)
    look = summary if how is None else how
    for study in studies:
        try:
            more |= {} if how is None else {"networks": how.networks}
            results = store.run(study, folder, resume=resume, jobs=jobs, **more)
        except KeyboardInterrupt:
            console().print(f"Stopped. Go on with --resume --out {folder}.", highlight=False)
            raise typer.Exit(130) from None
        console().print(look.table(results, study))
        path = store.results_file(study, folder)
        for file in (path, *look.draw(results, study, path)):
            console().print(f"wrote {file}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
