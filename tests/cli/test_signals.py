"""Signals such as Ctrl-C, and full disks: one line, the right exit code, and no traces."""

import contextlib
import errno
import io
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import jaxprune
from jaxprune._cli import interrupts
from jaxprune._cli.interrupts import STOPPED, exit_at_signals, signals_raise
from jaxprune._files import atomic
from jaxprune._files.interchange import save_safetensors

typer = pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("zstandard")

from jaxprune._cli.options import add_commands  # noqa: E402

posix = pytest.mark.skipif(os.name != "posix", reason="signals")


def run(*words):
    """Exit code, standard output and error of a command in this process."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    add_commands(app)
    out, error = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(error)
    with streams[0], streams[1], pytest.raises(SystemExit) as end:
        app([str(word) for word in words], prog_name="jaxprune")
    return end.value.code or 0, out.getvalue(), error.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder with a file to read, and an earlier one where the new one goes."""
    params = {"w": np.random.default_rng(0).normal(size=(9, 9)), "v": np.ones(5)}
    save_safetensors(tmp_path / "in.safetensors", params)
    (tmp_path / "out").write_text("old")
    return tmp_path


# Presses Ctrl-C when a module is about to be imported.
CHILD = """
import importlib.abc, runpy, signal, sys
signal.signal({number}, {usual})  # a shell may have turned it off

class Presses(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            try:
                signal.raise_signal({number})
            except BaseException:
                pass  # as a module may do

sys.meta_path.insert(0, Presses())
sys.argv[0] = "jaxprune"
runpy.run_module("jaxprune", run_name="__main__")
"""


MODULES = ("typer", "jaxprune._cli.options", "jaxprune._cli.commands", "jax", "jax.numpy")
INT = int(signal.SIGINT)


def child(module, number=INT):
    usual = "signal.default_int_handler" if number == INT else "signal.SIG_DFL"
    return CHILD.format(module=module, number=number, usual=usual)


@posix
@pytest.mark.parametrize(
    "module, number",
    [*((module, INT) for module in MODULES), *(("jax.numpy", int(n)) for n in interrupts._USUAL)],
)
def test_a_signal_while_modules_are_imported(folder, module, number):
    words = ["prune", "in.safetensors", "-o", "out", "--format", "npz", "-s", "0.5", "--force"]
    done = subprocess.run(
        [sys.executable, "-c", child(module, number), *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(jaxprune.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"{STOPPED}\n")
    assert (folder / "out").read_text() == "old"
    assert len(list(folder.iterdir())) == 2


@posix
@pytest.mark.parametrize("module", ("jaxprune.demo.cli", "jaxprune.demo.pictures"))
def test_ctrl_c_while_the_demo_is_imported(tmp_path, module):
    done = subprocess.run(
        [sys.executable, "-c", child(module), "demo", "--out", "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(jaxprune.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{STOPPED}\n")
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def handled_by(handler):
    handlers = interrupts._USUAL | {signal.SIGINT: handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_importing_the_app_handles_no_signals():
    with handled_by(signal.default_int_handler):
        exit_at_signals()
        assert signal.getsignal(signal.SIGINT) is interrupts._exit
        with pytest.raises(KeyboardInterrupt), signals_raise():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is interrupts._exit
    for handler in (signal.SIG_IGN, lambda *_: None):
        with handled_by(handler):
            exit_at_signals()
            with signals_raise():
                signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is handler
    with handled_by(signal.default_int_handler):
        code = "import signal, jaxprune.__main__; print(signal.getsignal(signal.SIGINT).__name__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "default_int_handler\n"


def test_ctrl_c_after_the_work_changes_nothing(folder):
    with handled_by(signal.default_int_handler):
        exit_at_signals()
        code, out, _ = run("inspect", folder / "in.safetensors", "--quick")
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert code == 0
    assert "Bytes by format" in out
    with handled_by(signal.default_int_handler):
        run("inspect", folder / "in.safetensors", "--quick")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", interrupts._USUAL)
def test_any_of_the_signals_raises_while_a_file_is_written(folder, monkeypatch, number):
    before, written = sorted(folder.iterdir()), atomic._File.write

    def write(file, data):
        signal.raise_signal(number)
        return written(file, data)

    monkeypatch.setattr(atomic._File, "write", write)
    monkeypatch.setattr(os, "_exit", lambda code: None)  # which would end the tests
    words = ("export", folder / "in.safetensors", "-o", folder / "out", "--format", "npz")
    with handled_by(signal.default_int_handler):
        exit_at_signals()
        code, out, _ = run(*words, "--force")
    assert (code, out) == (128 + number, "")
    assert (folder / "out").read_text() == "old"
    assert sorted(folder.iterdir()) == before


def test_signals_that_are_ignored_stay_ignored():
    with handled_by(signal.default_int_handler):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as `nohup` does with SIGHUP
        exit_at_signals()
        with signals_raise():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_ctrl_c_that_became_another_error_is_one_again():
    def importing():
        with signals_raise():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("initialization failed") from None

    with handled_by(signal.default_int_handler):
        with pytest.raises(KeyboardInterrupt):
            importing()
        with pytest.raises(ImportError, match="really"), signals_raise():
            raise ImportError("really missing")


KINDS = ("jaxprune", "safetensors", "npz")
ERRORS = {
    "a full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "too large": OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
    "Ctrl-C": KeyboardInterrupt(),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_write_that_fails(folder, monkeypatch, kind, name):
    written, before = atomic._File.write, sorted(folder.iterdir())
    words = ("export", folder / "in.safetensors", "-o", folder / "out", "--format", kind, "--force")
    for n in range(50):
        n_left = n

        def write(file, data):
            nonlocal n_left
            n_left -= 1
            if n_left == -1:
                with atomic.errors_of(file._path):
                    raise ERRORS[name]
            return written(file, data)

        monkeypatch.setattr(atomic._File, "write", write)
        code, out, error = run(*words)
        if code == 0:
            break
        assert out == ""
        if name == "Ctrl-C":
            assert (code, error) == (130, f"{STOPPED}\n")
        else:
            text = ERRORS[name].strerror
            assert (code, error) == (1, f"jaxprune: {folder / 'out'}: {text}.\n")
        assert (folder / "out").read_text() == "old"
        assert sorted(folder.iterdir()) == before
    assert n >= 1
    assert sorted(folder.iterdir()) == before
    assert (folder / "out").read_bytes() != b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("more", ((), ("--json",)))
def test_output_that_can_not_be_printed(folder, more):
    error = io.StringIO()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    add_commands(app)
    with open("/dev/full", "w") as full:
        streams = contextlib.redirect_stdout(full), contextlib.redirect_stderr(error)
        with streams[0], streams[1], pytest.raises(SystemExit) as end:
            app(["inspect", str(folder / "in.safetensors"), *more], prog_name="jaxprune")
    assert end.value.code == 1
    assert error.getvalue() == "jaxprune: standard output: No space left on device.\n"


@posix
@pytest.mark.parametrize("closed", ("stdout", "stderr"))
def test_a_closed_stream_does_not_stop_a_command(folder, closed):
    number = {"stdout": 1, "stderr": 2}[closed]
    words = ["prune", "in.safetensors", "-o", "out", "--format", "npz", "-s", "0.5", "--force"]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {number}>&-', "sh", sys.executable, "-m", "jaxprune", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(jaxprune.__file__).parents[1])},
        check=False,
    )
    assert done.returncode == 0
    assert np.load(folder / "out")["v"].shape == (5,)


def test_a_name_that_the_output_has_no_characters_for(tmp_path):
    save_safetensors(tmp_path / "in.safetensors", {"вес": np.eye(4), "b": np.ones(3)})
    done = subprocess.run(
        [sys.executable, "-m", "jaxprune", "inspect", "in.safetensors", "--quick"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(pathlib.Path(jaxprune.__file__).parents[1])}
        | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u0432\u0435\u0441" in done.stdout
