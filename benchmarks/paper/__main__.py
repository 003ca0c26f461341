"""The paper's experiments from the command line: `python -m benchmarks.paper COMMAND`."""

from __future__ import annotations

import os
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

Quick = Annotated[
    bool, typer.Option("--quick", help="Run a tiny configuration and write to a temporary folder.")
]
Large = Annotated[bool, typer.Option("--large", help="Run the configuration for a GPU.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Keep the runs in the results file and train only the missing ones."
    ),
]
Only = Annotated[str, typer.Option(help="Run only the studies whose name contains this text.")]
Names = Annotated[str, typer.Option(help="Train only the networks whose name matches this regex.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the results.")]
Jobs = Annotated[
    int, typer.Option(help="Networks to train in parallel (default: one per core, one on a GPU).")
]
_RESULTS = Path(__file__).parent.parent / "results"


def console() -> Console:
    """The console for tables. When the output is piped, rich would assume only 80 columns."""
    return Console(width=None if sys.stdout.isatty() else 160)


def require(*modules: str) -> None:
    """Exits with the command to install if one of these modules is missing."""
    for module in ("flax", "tqdm", *modules):
        if find_spec(module) is None:
            console().print(f"benchmarks.paper: {module} {_INSTALL}", highlight=False, markup=False)
            raise typer.Exit(2)


@app.command()
def sizes() -> None:
    """Counts the parameters of the published networks and compares them. Needs no data."""
    require()
    from benchmarks.paper.sizes import show

    show(console().print)


@app.command()
def lstm(
    quick: Quick = False,
    large: Large = False,
    long: Annotated[
        bool,
        typer.Option("--long", help="Train a million weights for one pass over the text: hours."),
    ] = False,
    one_layer: Annotated[
        bool, typer.Option("--one-layer", help="Train and prune networks with one layer.")
    ] = False,
    resume: Resume = False,
    out: Out = None,
    networks: Names = "",
    jobs: Jobs = 0,
):
    """Trains language models on the source code of CPython's standard library."""
    require()
    if long + one_layer + large > 1:
        raise typer.BadParameter("pass only one of --long, --one-layer and --large")
    if long or one_layer:
        _use_one_core_per_run()
    from benchmarks.paper import text

    make_study = text.long_study if long else text.one_layer_study if one_layer else text.study
    studies = [make_study(_size(quick, large))]
    rows = {"networks": text.networks_with_erk if one_layer else text.networks}
    _run(studies, quick, resume, out, text, only=networks, order=text.order, jobs=jobs, **rows)


@app.command()
def cnn(
    quick: Quick = False,
    large: Large = False,
    resume: Resume = False,
    out: Out = None,
    only: Only = "",
    jobs: Jobs = 0,
):
    """Trains deep CNNs, depthwise-separable and plain, on scikit-learn's digits."""
    require("sklearn")
    from benchmarks.paper import digits

    _run(_named(only, digits.studies, _size(quick, large)), quick, resume, out, jobs=jobs)


@app.command()
def fashion(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of four IDX files, such as /usr/share/datasets/fashion-mnist of Debian's "
            "package dataset-fashion-mnist."
        ),
    ],
    quick: Quick = False,
    large: Large = False,
    long: Annotated[
        bool, typer.Option("--long", help="Train for three times as many steps: hours.")
    ] = False,
    resume: Resume = False,
    out: Out = None,
    only: Only = "",
    networks: Names = "",
    jobs: Jobs = 0,
):
    """Trains deep CNNs, plain and depthwise-separable, on your Fashion-MNIST files."""
    require()
    if long + quick + large > 1:
        raise typer.BadParameter("pass only one of --long, --quick and --large")
    _use_one_core_per_run()
    from benchmarks.paper import fashion

    try:
        size = "long" if long else _size(quick, large)
        studies = _named(only, lambda size: fashion.studies(size, data), size)
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--data") from None
    _run(studies, quick, resume, out, fashion, only=networks, order=fashion.order, jobs=jobs)


@app.command()
def seq2seq(
    quick: Quick = False,
    large: Large = False,
    resume: Resume = False,
    out: Out = None,
    only: Only = "",
    jobs: Jobs = 0,
):
    """Trains translation of number words, money and dates, English-German in both directions."""
    require("num2words", "babel", "sacrebleu")
    from benchmarks.paper import phrases

    _run(_named(only, phrases.studies, _size(quick, large)), quick, resume, out, jobs=jobs)


@app.command("findings")
def other_findings(quick: Quick = False, resume: Resume = False, out: Out = None, jobs: Jobs = 0):
    """Compares when, how often and where to prune: variants of one language model at 90%."""
    require()
    from benchmarks.paper import findings

    study = findings.study("quick" if quick else "cpu")
    _run([study], quick, resume, out, findings, jobs=jobs)


@app.command()
def tables(out: Out = None):
    """Prints the tables of docs/paper.md from the results files and draws their plot."""
    require("matplotlib")
    from benchmarks.paper import paired, pictures, story

    folder = out or _RESULTS
    results = story.load(folder)
    for lines in (story.comparison(results), story.variants(results)):
        print(*lines, "", sep="\n")
    for part in story.load_paired(folder).values():
        print(part["title"], "", *paired.markdown(part), "", sep="\n")
    console().print(f"wrote {pictures.overview(folder)}", highlight=False)


@app.command()
def quality(
    quick: Quick = False,
    large: Large = False,
    resume: Resume = False,
    out: Out = None,
    only: Only = "",
    networks: Names = "",
    jobs: Jobs = 0,
):
    """Compares the quality of blocks, N:M, whole units, unstructured and small dense."""
    require("sklearn")
    from benchmarks.paper import quality

    studies = _named(only, quality.studies, _size(quick, large))
    _run(studies, quick, resume, out, quality, only=networks, jobs=jobs)


@app.command()
def step(
    only: Annotated[
        str, typer.Option(help="Run only the networks whose name contains this text.")
    ] = "",
    batch: Annotated[int, typer.Option(help="Number of examples.")] = 2,
):
    """Takes one training step of each full-size network on random data: up to 5 GB of memory."""
    require()
    from benchmarks.paper import fullsize

    table = Table("network", "sparsity", "loss", "zeros", "compile s", "step s", "peak GB so far")
    for name in (name for name in fullsize.RECIPES if only in name):
        result = fullsize.one_step(name, batch)
        numbers = (f"{result[k]:.1f}" for k in ("compile_s", "step_s", "peak_gb"))
        zeros, loss = f"{result['n_zero']:,}", f"{result['loss']:.3f}"
        table.add_row(name, f"{100 * result['sparsity']:g}%", loss, zeros, *numbers)
        console().print(f"{name}: {result['step_s']:.1f} s", highlight=False)
    console().print(table)


@app.command()
def train(
    network: Annotated[
        str, typer.Argument(help="A name that `sizes` prints, such as 'PTB LSTM small' or GNMT.")
    ],
    data: Annotated[
        list[Path], typer.Argument(help="A PTB folder, an image folder, or two text files.")
    ],
    sparsity: Annotated[
        float | None, typer.Option(help="Default: a sparsity of the paper.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Default: as published.")] = None,
    batch: Annotated[int | None, typer.Option(help="Default: as published.")] = None,
    every: Annotated[int | None, typer.Option(help="Steps between fires.")] = None,
):
    """Trains and prunes a published network on your own data."""
    import dataclasses

    require()
    from benchmarks.paper import fullsize

    if network not in fullsize.RECIPES:
        raise typer.BadParameter(
            f"unknown network {network!r}: choose one of {list(fullsize.RECIPES)}"
        )
    if network in ("InceptionV3", "MobileNet v1"):
        require("PIL")
    given = {"sparsity": sparsity, "steps": steps, "batch": batch, "every": every}
    changes = {name: value for name, value in given.items() if value is not None}
    recipe = dataclasses.replace(fullsize.RECIPES[network], **changes)

    def report(step: int, loss: float, zeros: float) -> None:
        line = f"step {step:,} loss {loss:.4f} zeros {100 * zeros:.2f}%"
        console().print(line, highlight=False)

    fullsize.train(network, fullsize.batches_of(network, data, recipe), recipe, report)


def _use_one_core_per_run() -> None:
    """Makes results independent of the number of cores, and no core waits for another."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"


def _size(quick: bool, large: bool) -> str:
    if quick and large:
        raise typer.BadParameter("--quick and --large exclude each other: pass only one")
    return "quick" if quick else "gpu" if large else "cpu"


def _named(only: str, studies: Callable[[str], list[Study]], size: str) -> list[Study]:
    chosen = [study for study in studies(size) if only in study.name]
    if not chosen:
        names = [study.name for study in studies(size)]
        raise typer.BadParameter(f"no study name contains {only!r}: choose one of {names}")
    return chosen


def _run(
    studies: Iterable[Study],
    quick: bool,
    resume: bool,
    out: Path | None,
    module: Any = None,
    *,
    jobs: int,
    **options: Any,
) -> None:
    """Trains the studies, then prints and draws their results.

    `module` provides `networks` and `table`; None for those of `study` and `summary`.
    """
    import jax

    from benchmarks.common import n_cores
    from benchmarks.paper import pictures, store, summary

    jobs = jobs or (n_cores() if jax.default_backend() == "cpu" else 1)
    folder = out or (Path(tempfile.mkdtemp()) if quick else _RESULTS)
    shown_by = summary if module is None else module
    for study in studies:
        try:
            made_by = {} if module is None else {"networks": module.networks}
            results = store.run(study, folder, resume=resume, jobs=jobs, **made_by | options)
        except KeyboardInterrupt:
            console().print(f"Stopped. To continue, add --resume --out {folder}.", highlight=False)
            raise typer.Exit(130) from None
        except store.OtherStudy as error:
            raise typer.BadParameter(str(error), param_hint="--resume") from None
        console().print(shown_by.table(results, study))
        path = store.results_file(study, folder)
        for file in (path, *pictures.draw(results, path)):
            console().print(f"wrote {file}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
