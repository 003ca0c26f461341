"""Ctrl-C and a full disk on the command line: one line, the right exit code, and no traces."""

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
from jaxprune._cli.interrupts import STOPPED, ctrl_c_raises, exit_at_ctrl_c
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
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have turned it off

class Presses(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                pass  # as a module may do

sys.meta_path.insert(0, Presses())
sys.argv[0] = "jaxprune"
runpy.run_module("jaxprune", run_name="__main__")
"""


@posix
@pytest.mark.parametrize(
    "module", ("typer", "jaxprune._cli.options", "jaxprune._cli.commands", "jax", "jax.numpy")
)
def test_ctrl_c_while_modules_are_imported(folder, module):
    words = ["prune", "in.safetensors", "-o", "out", "--format", "npz", "-s", "0.5", "--force"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(module=module), *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(jaxprune.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{STOPPED}\n")
    assert (folder / "out").read_text() == "old"
    assert len(list(folder.iterdir())) == 2


@posix
@pytest.mark.parametrize("module", ("jaxprune.demo.cli", "jaxprune.demo.pictures"))
def test_ctrl_c_while_the_demo_is_imported(tmp_path, module):
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(module=module), "demo", "--out", "out"],
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
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_importing_the_app_handles_no_signals():
    with handled_by(signal.default_int_handler):
        exit_at_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is interrupts._exit
        with pytest.raises(KeyboardInterrupt), ctrl_c_raises():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is interrupts._exit
    for handler in (signal.SIG_IGN, lambda *_: None):
        with handled_by(handler):
            exit_at_ctrl_c()
            with ctrl_c_raises():
                signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is handler
    with handled_by(signal.default_int_handler):
        code = "import signal, jaxprune.__main__; print(signal.getsignal(signal.SIGINT).__name__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "default_int_handler\n"


def test_ctrl_c_after_the_work_changes_nothing(folder):
    with handled_by(signal.default_int_handler):
        exit_at_ctrl_c()
        code, out, _ = run("inspect", folder / "in.safetensors", "--quick")
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert code == 0
    assert "Bytes by format" in out
    with handled_by(signal.default_int_handler):
        run("inspect", folder / "in.safetensors", "--quick")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_ctrl_c_that_became_another_error_is_one_again():
    def importing():
        with ctrl_c_raises():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("initialization failed") from None

    with handled_by(signal.default_int_handler):
        with pytest.raises(KeyboardInterrupt):
            importing()
        with pytest.raises(ImportError, match="really"), ctrl_c_raises():
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
