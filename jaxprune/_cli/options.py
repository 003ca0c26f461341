"""The commands `inspect`, `plan`, `prune` and `export`: their options, and their exit codes.

`commands.py` does the work and is imported when a command runs, so that `--help` does not load JAX.
Exit codes: 1 for an error, 2 for a wrong option, 130 for Ctrl-C.
"""

import contextlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxprune._cli.interrupts import STOPPED, exit_if_program, ignore_ctrl_c_if_program
from jaxprune._cli.words import (
    DISTRIBUTIONS,
    SCORES,
    TIES,
    WrongOption,
    rules_for,
    sparsity_for,
    told,
)
from jaxprune._files.formats import FORMATS


def add_commands(app: Any) -> None:
    """Adds the commands to a typer app."""
    for add in (_add_inspect, _add_plan, _add_prune, _add_export):
        add(app)


def _options() -> Any:
    """The options that several commands share, as defaults of their parameters."""
    import typer

    return types.SimpleNamespace(
        file=typer.Argument(..., help="A .safetensors, .zst or .npz file, or an orbax folder."),
        out=typer.Option(..., "--out", "-o", help="File to write; its suffix sets the format."),
        kind=typer.Option(None, "--format", help="|".join(FORMATS)),
        force=typer.Option(False, "--force", help="Replace an existing file."),
        as_json=typer.Option(False, "--json", help="Print JSON."),
        sparsity=typer.Option(
            None, "--sparsity", "-s", help="Fraction of zeros, in [0, 1). nm:2:4 implies 0.5."
        ),
        include=typer.Option(
            None, "--include", help="Regex for whole paths of leaves to prune. Can be repeated."
        ),
        exclude=typer.Option(
            None, "--exclude", help="Regex for leaves not to prune. Can be repeated."
        ),
        override=typer.Option(
            None, "--override", help="REGEX=SPARSITY, for some leaves. Can be repeated."
        ),
        structure=typer.Option(
            "unstructured", "--structure", help="nm:2:4[:axis], block:1x16[:balanced], channel:-1"
        ),
        distribution=typer.Option("uniform", "--distribution", help="|".join(DISTRIBUTIONS)),
        score=typer.Option("magnitude", "--score", help="|".join(SCORES)),
        ties=typer.Option("index", "--ties", help="|".join(TIES)),
        layout=typer.Option(
            "auto",
            "--layout",
            help="auto|jax|torch: jax is (in, out), torch (out, in).",
        ),
    )


def _add_inspect(app: Any) -> None:
    import typer

    of = _options()

    @app.command("inspect")
    def command(
        file: Path = of.file,
        quick: bool = typer.Option(False, "--quick", help="Leave out the formats that compress."),
        as_json: bool = of.as_json,
    ) -> None:
        """Shows how sparse each leaf of a file is, its size in other formats, and any problems."""
        with _exit_codes():
            from jaxprune._cli import commands

            commands.inspect(file, quick=quick, as_json=as_json)


def _add_plan(app: Any) -> None:
    of = _options()

    @app.command("plan")
    def command(
        file: Path = of.file,
        sparsity: float | None = of.sparsity,
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
            commands.plan(file, target, rules, layout, as_json=as_json)


def _add_prune(app: Any) -> None:
    of = _options()

    @app.command("prune")
    def command(
        file: Path = of.file,
        out: Path = of.out,
        sparsity: float | None = of.sparsity,
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
        """Prunes a file by magnitude into another file, one leaf at a time."""
        with _exit_codes():
            from jaxprune._cli import commands

            names = (structure, distribution, score, ties, layout)
            rules = rules_for(include, exclude, override, *names)
            target = sparsity_for(sparsity, rules)
            commands.prune(
                file, out, target, rules, layout, kind=kind, force=force, as_json=as_json
            )


def _add_export(app: Any) -> None:
    of = _options()

    @app.command("export")
    def command(
        file: Path = of.file,
        out: Path = of.out,
        kind: str | None = of.kind,
        force: bool = of.force,
        as_json: bool = of.as_json,
    ) -> None:
        """Converts a file to another format; every value keeps its bits."""
        with _exit_codes():
            from jaxprune._cli import commands

            commands.export(file, out, kind=kind, force=force, as_json=as_json)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Prints an error as one line on standard error, and raises `typer.Exit` with its exit code."""
    import typer

    is_stopped = False
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        is_stopped = True
    except BrokenPipeError:  # `jaxprune inspect FILE | head`
        _discard_output()
        raise typer.Exit(1) from None
    except (ValueError, TypeError, OSError, ImportError, WrongOption) as error:
        ignore_ctrl_c_if_program()
        typer.echo(f"jaxprune: {_told(error)}", err=True)
        raise typer.Exit(2 if isinstance(error, WrongOption) else 1) from None
    if is_stopped:  # the interrupt is freed by now, and with it what it kept from being cleaned up
        exit_if_program()
        typer.echo(STOPPED, err=True)
        raise typer.Exit(130)
    ignore_ctrl_c_if_program()


def _told(error: Exception) -> str:
    """The text of an error, in the words of the command line."""
    if not isinstance(error, OSError) or not error.strerror:
        return told(error)
    if error.filename is None:  # files name their path: this is a print
        _discard_output()
        return f"standard output: {error.strerror}."
    return f"{os.fsdecode(error.filename)}: {error.strerror}."


def _discard_output() -> None:
    """Discards the rest of standard output, which Python flushes once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
