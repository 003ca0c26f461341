"""The command line, `python -m jaxprune`. Each command imports what it needs when it runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

_DEMO_PACKAGES = ("typer", "rich", "tqdm", "flax", "orbax", "matplotlib", "sklearn")


def missing_extra(error: ImportError, packages: Sequence[str], extra: str) -> str | None:
    """What to type when `error` says that one of `packages` is missing; None for other errors."""
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
from jaxprune._cli.options import add_commands  # noqa: E402

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
add_commands(app)


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"jaxprune {jaxprune.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Pruning for JAX: looks at files of params, prunes them, converts them.

    Exit codes: 0 well, 1 an error, 2 a wrong option, 130 Ctrl-C.
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("jaxprune-demo"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the job in that folder.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small job of half a minute: it works, no more.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Runs per network.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps per run.")] = None,
    sparsity: Annotated[
        list[float] | None, typer.Option(help="A final sparsity; give it once for each.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on standard output in place of the table.")
    ] = False,
) -> None:
    """Trains dense, sparse and small dense networks on handwritten digits and compares them.

    About five minutes on two cores. Ctrl-C leaves a checkpoint that --resume continues from.
    """
    from jaxprune.demo.interrupt import stop_requested

    with stop_requested() as stop:
        try:
            from jaxprune.demo import cli
        except ImportError as error:
            message = missing_extra(error, _DEMO_PACKAGES, "demo")
            if message is None:
                raise
            typer.echo(message, err=True)
            raise typer.Exit(1) from None
        options = {"--seeds": seeds, "--steps": steps, "--sparsity": sparsity}
        code = cli.main(
            out, resume=resume, small=quick, options=options, stop=stop, as_json=as_json
        )
        raise typer.Exit(code)


if __name__ == "__main__":
    app(prog_name="python -m jaxprune")
