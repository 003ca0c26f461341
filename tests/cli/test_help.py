"""Help, completion and exit codes; and what must not be imported for them."""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import jaxprune

pytest.importorskip("typer")

from cli_command import run

ROOT = pathlib.Path(jaxprune.__file__).parents[1]
COMMANDS = ("inspect", "plan", "prune", "export")


def run_program(*words, code="", **environment):
    """Standard output of `jaxprune WORDS` in a process of its own, and of some code behind it."""
    program = (
        f"import sys; sys.argv[1:] = {list(words)!r}\n"
        "from jaxprune.__main__ import app\n"
        "try: app(prog_name='jaxprune')\n"
        "except SystemExit: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("words", (("--version",), ("--help",), ("prune", "--help")))
def test_help_and_version_import_little(words):
    """The time that they take is that of their imports: no JAX, no NumPy."""
    slow = ("jax", "numpy", "optax", "flax", "orbax")
    code = f"print([name for name in {slow!r} if name in sys.modules])"
    assert run_program(*words, code=code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    out, _ = run(command, "--help")
    assert "Examples:" in out
    assert f"  jaxprune {command} " in out


def test_exit_codes_are_documented():
    out = " ".join(run_program("--help").split())
    assert "Examples: jaxprune inspect model.safetensors jaxprune plan" in out
    assert "0 success, 1 an error, 2 a wrong option, 3 a failed check, 130 Ctrl-C" in out


@pytest.mark.parametrize(
    "words, candidates",
    (
        ("jaxprune pr", ["prune"]),
        ("jaxprune prune a --distribution g", ["global"]),
        ("jaxprune plan a --layout ", ["auto", "jax", "torch"]),
        ("jaxprune plan a --structure nm", ["nm:2:4", "nm:4:8"]),
        ("jaxprune prune a --fo", ["--format", "--force"]),
        ("jaxprune export a --format ", ["jaxprune", "safetensors", "npz", "csr"]),
    ),
)
def test_shells_complete_commands_options_and_values(words, candidates):
    out = run_program(
        _JAXPRUNE_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split(" ")) - 1),
        code="print('jax' in sys.modules)",
    )
    lines = out.split()
    assert sorted(lines[:-1]) == sorted(candidates)
    assert lines[-1] == "False"


def test_completion_can_be_shown():
    out = run_program("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_JAXPRUNE_COMPLETE" in out


def test_progress_shows_bytes_and_the_time_left(tmp_path, monkeypatch):
    rich = pytest.importorskip("rich.console")
    from jaxprune._cli import screen
    from jaxprune._files.any_kind import open_source

    np.savez(tmp_path / "a.npz", w=np.ones((512, 512)))
    shown = io.StringIO()
    terminal = rich.Console(file=shown, force_terminal=True, width=100)
    monkeypatch.setattr(screen, "console", lambda **_: terminal)
    with open_source(tmp_path / "a.npz") as source, screen.progress(source, "a.npz") as arrays:
        assert [path for path, _ in arrays] == ["w"]
    assert "a.npz" in shown.getvalue()
    assert "2.0/2.0 MiB" in shown.getvalue() or "/2.0 MiB" in shown.getvalue()
    assert ":" in shown.getvalue()
