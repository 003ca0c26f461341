"""Runs a command of the command line in this process."""

import contextlib
import functools
import io
import json

import pytest

typer = pytest.importorskip("typer")

from jaxprune._cli.options import add_commands  # noqa: E402


@functools.cache
def commands():
    """The commands, built once."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    add_commands(app)
    return typer.main.get_command(app)


def run(*words, code=0):
    """Standard output and error of a command."""
    out, error = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(error)
    with streams[0], streams[1], pytest.raises(SystemExit) as end:
        commands()([str(word) for word in words], prog_name="jaxprune")
    assert (end.value.code or 0) == code, out.getvalue() + error.getvalue()
    return out.getvalue(), error.getvalue()


def as_json(*words, code=0):
    """The JSON that a command prints."""
    return json.loads(run(*words, "--json", code=code)[0])
