"""A full disk or Ctrl-C at any point of a write: an error that names the path, and no traces."""

import contextlib
import errno
import functools
import gc
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import pytest

import jaxprune
from helpers import says
from jaxprune._files import any_kind, atomic, interchange, safetensors, shards
from jaxprune._files.interchange import save_csr, save_safetensors
from jaxprune._files.leaves import Leaf
from jaxprune._files.save_load import save

pytest.importorskip("zstandard")
pytest.importorskip("scipy")


def tree(seed):
    w = np.random.default_rng(seed).normal(size=(8, 9)).astype(np.float32)
    return {"fc": {"kernel": np.where(w < 1, np.float32(0), w), "bias": np.ones(3)}, "head": w}


def leaves_of(params):
    return [("fc/bias", params["fc"]["bias"]), ("fc/kernel", params["fc"]["kernel"])]


def written_as(kind):
    def write(out, params):
        arrays = leaves_of(params)
        leaves = [Leaf(path, array.shape, array.dtype) for path, array in arrays]
        any_kind.write(out, kind, leaves, arrays)

    return write


_SOURCES = tempfile.TemporaryDirectory(prefix="jaxprune-shards-")


@functools.cache
def model_in_shards(seed):
    """A folder with two shards, their index and another file."""
    folder, parts = pathlib.Path(_SOURCES.name, str(seed)), {}
    folder.mkdir()
    for i, (path, array) in enumerate(leaves_of(tree(seed))):
        parts[path] = f"m-{i}-of-2.safetensors"
        save_safetensors(folder / parts[path], {path: array})
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (folder / "config.json").write_text(f'{{"seed": {seed}}}')
    return folder


def write_in_shards(out, params):
    seed = next(i for i in (0, 1) if np.array_equal(tree(i)["head"], params["head"]))
    with any_kind.open_source(model_in_shards(seed)) as source:
        any_kind.write(out, "shards", source.leaves, source.arrays(), index=source.shards)


WRITERS = {
    "save": save,
    "save plain": lambda out, params: save(out, params, level=None),
    "save_safetensors": save_safetensors,
    "save_csr": save_csr,
    "by leaves": written_as("jaxprune"),
    "npz by leaves": written_as("npz"),
    "shards": write_in_shards,
}
writers = pytest.mark.parametrize("writer", WRITERS)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@writers
def test_a_file_that_is_replaced_keeps_its_permissions(writer, tmp_path):
    out = tmp_path / "out"
    WRITERS[writer](out, tree(0))
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o600)
    WRITERS[writer](out, tree(1))
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {
        path.name: 0o600 for path in files
    }


def contents(folder):
    """Everything in a folder: the bytes of files by path, and None for folders."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


class Disk:
    """What jaxprune writes to, which fails at one point."""

    def __init__(self, monkeypatch):
        self._patch = monkeypatch

    def room_for(self, n_bytes):
        """A disk on which so many more bytes fit."""
        room, written = n_bytes, atomic._File.write

        def write(file, data):
            nonlocal room
            fits = memoryview(data).cast("B")[:room]
            if not fits:
                with atomic.errors_of(file._path):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            room -= len(fits)
            return written(file, fits)

        self._patch.setattr(atomic._File, "write", write)

    def fails(self, name, places, kind):
        """A disk on which some calls of a function of `os` raise, by their number; others work."""
        call, n_calls = getattr(os, name), 0

        def counted(*args, **more):
            nonlocal n_calls
            n_calls += 1
            if n_calls - 1 in places and kind is OSError:
                path = () if name == "fsync" else (str(args[0]),)
                raise OSError(errno.EIO, os.strerror(errno.EIO), *path)
            if n_calls - 1 in places:
                raise kind
            return call(*args, **more)

        self._patch.setattr(os, name, counted)


def outcome(write, disk_fails, patch):
    """The error of a write, or None."""
    with patch.context() as during:
        disk_fails(Disk(during))
        try:
            write()
        except (OSError, KeyboardInterrupt) as error:
            return error
    return None


@pytest.fixture
def earlier(tmp_path):
    """A path with an earlier file, a function that writes a new one there, and both contents."""

    def prepare(writer):
        folder, write = tmp_path / "f", WRITERS[writer]
        folder.mkdir()
        out = folder / "out"
        write(out, tree(0))
        before = contents(folder)
        (tmp_path / "new").mkdir()
        write(tmp_path / "new" / "out", tree(1))
        return out, lambda: write(out, tree(1)), before, contents(tmp_path / "new")

    return prepare


# SciPy writes its .npz files by NumPy 2.0, which does not close its ZipFile after an error.
left_open = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@left_open
@writers
def test_a_disk_that_is_full_at_any_byte(earlier, monkeypatch, writer):
    out, write, before, after = earlier(writer)
    n_fits = None
    for n_bytes in range(0, 4000, 41):
        error = outcome(write, lambda disk, n=n_bytes: disk.room_for(n), monkeypatch)
        if error is None:
            n_fits = n_bytes
            break
        assert type(error) is OSError
        assert error.errno == errno.ENOSPC
        assert error.filename.startswith(str(out))
        assert error.filename in str(error)
        assert contents(out.parent) == before
    assert n_fits
    assert contents(out.parent) == after


@writers
@pytest.mark.parametrize("kind", (OSError, KeyboardInterrupt))
@pytest.mark.parametrize("name", ("fsync", "replace", "link", "mkdir"))
def test_any_call_of_the_system_that_fails(earlier, monkeypatch, writer, name, kind):
    out, write, before, after = earlier(writer)
    for n in range(20):
        error = outcome(write, lambda disk, n=n: disk.fails(name, {n}, kind), monkeypatch)
        if error is None:
            break
        assert type(error) is kind
        if kind is OSError:
            assert error.filename.startswith(str(out))
        assert contents(out.parent) == before
    assert error is None
    assert contents(out.parent) == after


MODULES = (atomic, any_kind, interchange, safetensors, shards, contextlib)
TRACED = {module.__file__ for module in MODULES}


def interrupted_at(n, write):
    """Runs `write` with Ctrl-C at the n-th line of the traced files; whether there were so many."""
    n_left = n

    def line(frame, event, arg):
        nonlocal n_left
        n_left -= 1
        if n_left == -1:
            raise KeyboardInterrupt
        return line

    def call(frame, event, arg):
        return line(frame, event, arg) if frame.f_code.co_filename in TRACED else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        write()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a file that Python closes by itself
@left_open
@writers
def test_ctrl_c_at_any_line(earlier, monkeypatch, writer):
    out, write, before, after = earlier(writer)
    monkeypatch.setattr(os, "fsync", lambda number: None)  # slow, and without effect here
    # A folder takes 1,400 lines, and 20 ms each time.
    every = 23 if writer in ("save_csr", "shards") else 1
    n = 0
    while interrupted_at(n, write):
        now = contents(out.parent)
        assert now in (before, after), n
        n += every
    assert n > 50
    assert contents(out.parent) == after


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
sys.argv[0] = "jaxprune"
runpy.run_module("jaxprune", run_name="__main__")
"""


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
def test_a_limit_on_the_size_of_files(tmp_path):
    pytest.importorskip("typer")
    rng = np.random.default_rng(0)
    save_safetensors(tmp_path / "in.safetensors", {"w": rng.normal(size=(40, 40))})
    (tmp_path / "out.zst").write_text("old")
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "export", "in.safetensors", "-o", "out.zst", "--force"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(jaxprune.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"jaxprune: out\.zst: File too large\.\n", done.stderr)
    assert contents(tmp_path) == before


# --- folders of CSR


@pytest.mark.parametrize("name", ("replace", "unlink"))
def test_ctrl_c_while_a_folder_is_restored(earlier, monkeypatch, name):
    out, write, before, _ = earlier("save_csr")
    (out / "head.npz").unlink()  # so that one file is replaced, and one is new
    before = {path: data for path, data in before.items() if path != "out/head.npz"}
    gc.freeze()  # the 40 collections below look only at what is made from here on
    for first in range(4):
        for second in range(first + 1, first + 5):
            with monkeypatch.context() as during:
                Disk(during).fails("replace", {first, second}, KeyboardInterrupt)
                if name == "unlink":
                    Disk(during).fails("unlink", {second - first - 1}, KeyboardInterrupt)
                with contextlib.suppress(KeyboardInterrupt):
                    write()
            gc.collect()  # deletes the objects of the block, which Python 3.13 leaves in a cycle
            assert contents(out.parent) == before, (first, second)


def test_a_folder_of_csr_keeps_its_other_files(tmp_path):
    out = tmp_path / "out"
    save_csr(out, {"w": np.eye(3), "v": np.eye(2)})
    (out / "notes").write_text("mine")
    kept = (out / "v.npz").read_bytes()
    assert save_csr(out, {"w": np.eye(4)}) == [out / "w.npz"]
    assert (out / "notes").read_text() == "mine"
    assert (out / "v.npz").read_bytes() == kept
    assert {path.name for path in out.iterdir()} == {"notes", "v.npz", "w.npz"}


def test_a_folder_of_csr_that_is_no_folder(tmp_path):
    params = {"w": np.eye(3)}
    with pytest.raises(ValueError, match=says("/c.npz:", "folder", str(tmp_path / "c"))):
        save_csr(tmp_path / "c.npz", params)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=says("/file:", "folder")):
        save_csr(tmp_path / "file", params)
    with pytest.raises(NotADirectoryError, match="/file/out"):
        save_csr(tmp_path / "file" / "out", params)
    (tmp_path / "out" / "w.npz").mkdir(parents=True)
    before = contents(tmp_path)
    with pytest.raises(IsADirectoryError, match=says("/w.npz:", "folder")):
        save_csr(tmp_path / "out", {"v": np.eye(2), "w": np.eye(3)})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", (OSError, KeyboardInterrupt))
@pytest.mark.parametrize("name", ("replace", "mkdir"))
def test_a_new_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch, name, kind):
    out = tmp_path / "a" / "out"
    write = functools.partial(save_csr, out, tree(0))
    for n in range(30):
        error = outcome(write, lambda disk, n=n: disk.fails(name, {n}, kind), monkeypatch)
        if error is None:
            break
        assert contents(tmp_path) == {}
    assert error is None
    assert set(contents(tmp_path)) == {"a", *(f"a/{p}" for p in OUT)}


OUT = ("out", "out/fc", "out/fc/kernel.npz", "out/head.npz")


@pytest.mark.parametrize("name", ("a" * 255, "ж" * 127))
def test_names_of_any_length_that_a_file_system_allows(name, tmp_path):
    save_safetensors(tmp_path / name, tree(0))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_system_that_deletes_nothing_names_the_path_of_the_user(tmp_path, monkeypatch):
    def refuse(path, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    monkeypatch.setattr(pathlib.Path, "replace", lambda path, _: refuse(path))
    with pytest.raises(OSError, match=says("Read-only file system")) as error:
        save_safetensors(tmp_path / "out", tree(0))
    assert error.value.filename == str(tmp_path / "out")


def test_matrices_whose_names_differ_in_case_where_a_file_system_does_not(tmp_path, monkeypatch):
    name = interchange._csr_name
    monkeypatch.setattr(interchange, "_csr_name", lambda path: name(path.lower()))
    with pytest.raises(ValueError, match=says("w: another matrix has a file of this name")):
        save_csr(tmp_path / "out", {"W": np.eye(4), "w": np.eye(3), "b": np.ones(3)})
    assert list(tmp_path.iterdir()) == []
