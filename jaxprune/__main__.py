"""The command line, `python -m jaxprune`.

Each command imports what it needs when it runs, so that `--version` and `--help` need no JAX. The
commands that work on files are in `_cli`, the demo is in `demo`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from jaxprune._cli.interrupts import exit_at_signals, ignore_signals_if_program
from jaxprune._cli.streams import open_streams

# Before the slow imports, and not where a program or a test only imports `app`.
if __name__ == "__main__" or Path((sys.argv or [""])[0]).stem == "jaxprune":
    exit_at_signals()
    open_streams()

_DEMO_PACKAGES = ("typer", "rich", "tqdm", "flax", "orbax", "matplotlib", "sklearn")


def missing_extra(error: ImportError, packages: Sequence[str], extra: str) -> str | None:
    """The message for an error that one of `packages` is missing; None for any other error."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in packages:
        return None
    return f"jaxprune: {package} is not installed. Type: pip install 'jaxprune[{extra}]'"


try:
    import typer
except ImportError as error:
    _message = missing_extra(error, _DEMO_PACKAGES, "demo" if "demo" in sys.argv[1:2] else "cli")
    if _message is None:
        raise
    sys.exit(_message)

import jaxprune  # noqa: E402
from jaxprune._cli.options import add_commands, example_lines  # noqa: E402

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich takes longer than all else
)
add_commands(app)


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"jaxprune {jaxprune.__version__}")
        raise typer.Exit


_EXAMPLES = example_lines(
    "inspect model.safetensors",
    "plan model.safetensors --sparsity 0.9",
    "prune model.safetensors --sparsity 0.9 --out sparse.safetensors",
    "COMMAND --help",
)


@app.callback(epilog=_EXAMPLES)
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Pruning for JAX: inspects, prunes and converts files of params.

    Exit codes: 0 success, 1 an error, 2 a wrong option, 3 a failed check, 130 Ctrl-C,
    143 SIGTERM, 129 SIGHUP.
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("jaxprune-demo"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the job in that folder.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first answer in 40 seconds: 90%, two seeds.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Runs per network.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps per run.")] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(metavar="<float>", help="A final sparsity; can be repeated."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the table.")
    ] = False,
) -> None:
    """Trains dense, sparse and small dense networks to read handwritten numbers, and compares them.

    Takes a bit over three minutes on two idle cores. Ctrl-C saves a checkpoint; --resume continues
    from it.
    """
    try:
        from jaxprune.demo import cli
        from jaxprune.demo.interrupt import stop_requested
    except ImportError as error:
        message = missing_extra(error, _DEMO_PACKAGES, "demo")
        if message is None:
            raise
        typer.echo(message, err=True)
        raise typer.Exit(1) from None
    options = {"--seeds": seeds, "--steps": steps, "--sparsity": sparsity}
    with stop_requested() as stop:
        code = cli.main(
            out, resume=resume, small=quick, options=options, stop=stop, as_json=as_json
        )
    ignore_signals_if_program()
    raise typer.Exit(code)


if __name__ == "__main__":
    app(prog_name="python -m jaxprune")
