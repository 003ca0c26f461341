"""The commands `inspect`, `plan`, `prune` and `export`: their options, and their exit codes.

`commands.py` does the work and is imported when a command runs, so that `--help` does not load JAX.
Exit codes: 1 for an error, 2 for a wrong option, 130 for Ctrl-C.
"""

import contextlib
import os
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
            "unstructured", "--structure", help="nm:2:4, block:1x16[:balanced], channel:-1"
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
        as_json: bool = of.as_json,
    ) -> None:
        """Shows what `prune` would do, without doing it."""
        with _exit_codes():
            from jaxprune._cli import commands

            rules = _rules(include, exclude, override, structure)
            target = _sparsity_for(sparsity, rules)
            commands.plan(file, target, rules, as_json=as_json)


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
        kind: str | None = of.kind,
        force: bool = of.force,
        as_json: bool = of.as_json,
    ) -> None:
        """Prunes a file by magnitude into another file, one leaf at a time."""
        with _exit_codes():
            from jaxprune._cli import commands

            rules = _rules(include, exclude, override, structure)
            target = _sparsity_for(sparsity, rules)
            commands.prune(file, out, target, rules, kind=kind, force=force, as_json=as_json)


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

    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        typer.echo("Stopped; no file was changed half-way.", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `jaxprune inspect FILE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        raise typer.Exit(1) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        from jaxprune._base.arguments import BadArgument

        text = error.told(as_option) if isinstance(error, BadArgument) else str(error)
        typer.echo(f"jaxprune: {text}", err=True)
        raise typer.Exit(1) from None


# Between options and arguments of the library


def as_option(argument: str, value: Any) -> str:
    """An argument of the library and its value as options of a command, for error messages.

    `...` is a value that the user has to choose.

    Example:
      >>> as_option("exclude", "fc/bias"), as_option("overrides", {"w": 0.5, "v": ...})
      ("--exclude 'fc/bias'", "--override 'w=0.5' --override 'v=...'")
      >>> as_option("final_sparsity", 0.5)
      '--sparsity 0.5'
    """
    from jaxprune._base.arguments import as_python

    if argument in ("include", "exclude"):
        rules = [value] if isinstance(value, str) else value
        return " ".join(f"--{argument} {_quoted(rule)}" for rule in rules)
    if argument == "overrides":
        items = [f"{rule}={_number(sparsity)}" for rule, sparsity in value.items()]
        return " ".join(f"--override {_quoted(item)}" for item in items)
    if argument in ("sparsity", "final_sparsity"):
        return f"--sparsity {_number(value)}"
    if argument == "structure":
        return "--structure ..."
    return as_python(argument, value)


def _number(value: Any) -> str:
    return "..." if value is ... else f"{float(value):g}"


def _quoted(text: str) -> str:
    """The text in single quotes, as one word for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def _rules(
    include: list[str] | None, exclude: list[str] | None, override: list[str] | None, structure: str
) -> dict[str, Any]:
    """The options as arguments of `prune_params` and `plan`."""
    overrides = {}
    for item in override or ():
        rule, equals, value = item.rpartition("=")
        with contextlib.suppress(ValueError):
            overrides[rule] = float(value)
        if not equals or rule not in overrides:
            raise _usage(
                f"--override {item!r} is not REGEX=SPARSITY. Write for example '.*head.*=0.5'."
            )
    return {
        "include": include or None,
        "exclude": exclude or (),
        "overrides": overrides or None,
        "structure": structure_for(structure),
    }


def _sparsity_for(sparsity: float | None, rules: dict[str, Any]) -> float:
    """`--sparsity` if it is given, otherwise the sparsity of an N:M structure."""
    from jaxprune._recipe.traits import traits_of

    final = traits_of(rules["structure"]).final_sparsity
    if sparsity is not None:
        return sparsity
    if final is not None:
        return float(final)
    raise _usage(
        "--sparsity is missing. Give one, like --sparsity 0.9; only --structure nm:N:M implies one."
    )


def structure_for(text: str) -> Any:
    """The structure that `--structure` names.

    Example:
      >>> structure_for("nm:2:4")
      NM(n=2, m=4, axis=-2)
    """
    from jaxprune._recipe.structures import NM, Block, Channel, Unstructured

    classes: dict[str, Any] = {
        "unstructured": Unstructured,
        "nm": NM,
        "block": Block,
        "channel": Channel,
    }
    name, *numbers = re.split("[:x]", text.removesuffix(":balanced"))
    make, reason = classes.get(name), ""
    try:
        if make is not None:
            values = [int(number) for number in numbers]
            arguments: list[Any] = [tuple(values)] if name == "block" and values else values
            options = {"balanced": True} if text.endswith(":balanced") else {}
            return make(*arguments, **options)
    except (TypeError, ValueError) as error:
        reason = f" ({error})"
    raise _usage(
        f"unknown --structure {text!r}{reason}. Write unstructured, nm:2:4, block:1x16, "
        "block:1x16:balanced or channel:-1."
    )


def _usage(text: str) -> Exception:
    import typer

    return typer.BadParameter(text)
