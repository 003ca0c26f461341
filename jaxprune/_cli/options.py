"""The commands `inspect`, `plan`, `prune` and `export`: their options, and their exit codes.

`commands.py` does the work and is imported when a command runs, so that `--help` does not load JAX.
Exit codes: 1 for an error, 2 for a wrong option, 3 for a failed check, 130 for Ctrl-C, and likewise
128 plus the number of another signal that stops a command.
"""

import contextlib
import os
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxprune._cli.interrupts import (
    STOPPED,
    exit_if_program,
    ignore_signals_if_program,
    number_of,
)
from jaxprune._cli.words import (
    DISTRIBUTIONS,
    LAYOUTS,
    SCORES,
    TIES,
    FailedCheck,
    WrongOption,
    as_number,
    rules_for,
    sparsity_for,
    told,
)
from jaxprune._files.formats import FORMATS


def add_commands(app: Any) -> None:
    """Adds the commands to a typer app."""
    for add in (_add_inspect, _add_plan, _add_prune, _add_export):
        add(app)


_FILE = "A .safetensors, .zst or .npz file, a folder of shards with its index, or an orbax folder."
_STRUCTURES = ("unstructured", "nm:2:4", "nm:4:8", "block:1x16", "block:1x16:balanced", "channel")


def _options() -> Any:
    """The options that several commands share, as defaults of their parameters."""
    import typer

    return types.SimpleNamespace(
        file=typer.Argument(..., help=_FILE, show_default=False),
        out=typer.Option(
            ...,
            "--out",
            "-o",
            help="File to write; its suffix sets the format. For shards, a folder.",
        ),
        kind=_choice(None, "--format", FORMATS, "|".join(FORMATS)),
        force=typer.Option(False, "--force", help="Replace an existing file."),
        as_json=typer.Option(False, "--json", help="Print JSON."),
        sparsity=typer.Option(
            None,
            "--sparsity",
            "-s",
            help="Fraction of zeros, in [0, 1). Optional with nm:N:M, which implies it.",
            parser=as_number,
            metavar="<float>",
        ),
        params=_repeated(
            "--params", "<path>", "Tree of params in a training state, where this is not clear."
        ),
        include=_repeated("--include", "<regex>", "Regex for whole paths of leaves to prune."),
        exclude=_repeated("--exclude", "<regex>", "Regex for leaves not to prune."),
        override=_repeated("--override", "<rule>", "REGEX=SPARSITY, for some leaves."),
        **_ways_to_prune(),
    )


def _ways_to_prune() -> dict[str, Any]:
    """The options that say how leaves are pruned; each takes one of a few words."""
    structure = "nm:2:4[:AXIS], block:1x16[:balanced], channel[:AXIS]. --layout finds the axis."
    layout = "auto|jax|torch: weights are (in, out) in jax, (out, in) in torch."
    distribution = f"How sparsity is spread over leaves: {'|'.join(DISTRIBUTIONS)}"
    ties = f"Which of equal scores are kept: {'|'.join(TIES)}"
    return {
        "structure": _choice("unstructured", "--structure", _STRUCTURES, structure),
        "distribution": _choice("uniform", "--distribution", DISTRIBUTIONS, distribution),
        "score": _choice(
            "magnitude", "--score", SCORES, f"Which weights to keep: {'|'.join(SCORES)}"
        ),
        "ties": _choice("index", "--ties", TIES, ties),
        "layout": _choice("auto", "--layout", LAYOUTS, layout),
    }


def _choice(default: str | None, name: str, values: Iterable[str], about: str) -> Any:
    """An option whose values a shell completes."""
    import typer

    words = list(values)
    complete = lambda incomplete: [word for word in words if word.startswith(incomplete)]
    return typer.Option(default, name, help=about, autocompletion=complete)


def _repeated(name: str, value: str, about: str) -> Any:
    """An option that can be given several times."""
    import typer

    about = f"{about} Can be repeated."
    return typer.Option(None, name, metavar=value, help=about, show_default=False)


def example_lines(*lines: str) -> str:
    """The examples below the help of a command, which are not wrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  jaxprune {line}" for line in lines)


def _add_inspect(app: Any) -> None:
    import typer

    of = _options()

    examples = example_lines("inspect model.safetensors", "inspect checkpoints/ --quick --check")

    @app.command("inspect", epilog=examples)
    def command(
        file: Path = of.file,
        quick: bool = typer.Option(False, "--quick", help="Leave out the formats that compress."),
        check: bool = typer.Option(
            False,
            "--check",
            help="Exit with 3 if weights that the masks in the file drop are not zero.",
        ),
        params: list[str] | None = of.params,
        as_json: bool = of.as_json,
    ) -> None:
        """Shows how sparse each leaf of a file is, its size in other formats, and any problems."""
        with _exit_codes():
            from jaxprune._cli import commands

            commands.inspect(file, params=params, quick=quick, check=check, as_json=as_json)


def _add_plan(app: Any) -> None:
    of = _options()

    examples = example_lines(
        "plan model.safetensors -s 0.9", "plan model/ --structure nm:2:4 --exclude '.*embed.*'"
    )

    @app.command("plan", epilog=examples)
    def command(
        file: Path = of.file,
        sparsity: float | None = of.sparsity,
        params: list[str] | None = of.params,
        include: list[str] | None = of.include,
        exclude: list[str] | None = of.exclude,
        override: list[str] | None = of.override,
        structure: str = of.structure,
        distribution: str = of.distribution,
        score: str = of.score,
        ties: str = of.ties,
        layout: str = of.layout,
        as_json: bool = of.as_json,
    ) -> None:
        """Shows what `prune` would do, without doing it."""
        with _exit_codes():
            from jaxprune._cli import commands

            names = (structure, distribution, score, ties, layout)
            rules = rules_for(include, exclude, override, *names)
            target = sparsity_for(sparsity, rules)
            commands.plan(file, target, rules, layout, params=params, as_json=as_json)


def _add_prune(app: Any) -> None:
    of = _options()

    examples = example_lines(
        "prune model.safetensors -s 0.9 -o small.safetensors.zst",
        "prune model.safetensors --structure nm:2:4 -o sparse.safetensors",
        "prune model/ -s 0.5 --distribution global -o pruned/",
    )

    @app.command("prune", epilog=examples)
    def command(
        file: Path = of.file,
        out: Path = of.out,
        sparsity: float | None = of.sparsity,
        params: list[str] | None = of.params,
        include: list[str] | None = of.include,
        exclude: list[str] | None = of.exclude,
        override: list[str] | None = of.override,
        structure: str = of.structure,
        distribution: str = of.distribution,
        score: str = of.score,
        ties: str = of.ties,
        layout: str = of.layout,
        kind: str | None = of.kind,
        force: bool = of.force,
        as_json: bool = of.as_json,
    ) -> None:
        """Prunes a file into another file, one leaf at a time.

        Leaves that are not pruned keep their bits. Of an orbax folder, masks and optimizer states
        are left out.
        """
        with _exit_codes():
            from jaxprune._cli import commands

            names = (structure, distribution, score, ties, layout)
            rules = rules_for(include, exclude, override, *names)
            target = sparsity_for(sparsity, rules)
            commands.prune(
                file,
                out,
                target,
                rules,
                layout,
                params=params,
                kind=kind,
                force=force,
                as_json=as_json,
            )


def _add_export(app: Any) -> None:
    of = _options()

    examples = example_lines(
        "export small.safetensors.zst -o dense.npz", "export checkpoints/ -o model.safetensors"
    )

    @app.command("export", epilog=examples)
    def command(
        file: Path = of.file,
        out: Path = of.out,
        params: list[str] | None = of.params,
        kind: str | None = of.kind,
        force: bool = of.force,
        as_json: bool = of.as_json,
    ) -> None:
        """Converts a file to another format; every value keeps its bits.

        Of an orbax folder, masks and optimizer states are left out.
        """
        with _exit_codes():
            from jaxprune._cli import commands

            commands.export(file, out, params=params, kind=kind, force=force, as_json=as_json)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Prints an error as one line on standard error, and raises `typer.Exit` with its exit code."""
    import typer

    stopped_by = 0
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        stopped_by = number_of(interrupt)
    except BrokenPipeError:  # `jaxprune inspect FILE | head`
        _discard_output()
        raise typer.Exit(1) from None
    except (ValueError, TypeError, OSError, ImportError, WrongOption, FailedCheck) as error:
        ignore_signals_if_program()
        typer.echo(f"jaxprune: {_told(error)}", err=True)
        code = {WrongOption: 2, FailedCheck: 3}.get(type(error), 1)
        raise typer.Exit(code) from None
    if stopped_by:  # by now the interrupt is freed, and so are the objects that it kept alive
        exit_if_program(stopped_by)
        typer.echo(STOPPED, err=True)
        raise typer.Exit(128 + stopped_by)
    ignore_signals_if_program()


def _told(error: Exception) -> str:
    """The text of an error, in the words of the command line."""
    if not isinstance(error, OSError) or not error.strerror:
        return told(error)
    if error.filename is None:  # an error of a file has its path, so this one comes from printing
        _discard_output()
        return f"standard output: {error.strerror}."
    return f"{os.fsdecode(error.filename)}: {error.strerror}."


def _discard_output() -> None:
    """Discards the rest of standard output, which Python flushes once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
