"""The output folder of the demo when the disk is full: an error with the path, and no traces."""

import contextlib
import errno
import os

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")
pytest.importorskip("matplotlib")
resource = pytest.importorskip("resource")

from jaxprune.demo import cli, job  # noqa: E402
from jaxprune.demo.store import Store, ocp  # noqa: E402


def state(seed):
    return {"w": np.random.default_rng(seed).normal(size=(90, 90))}


@pytest.fixture
def store(tmp_path):
    """A folder with results and a checkpoint."""
    store = Store(tmp_path)
    store.write({"runs": []})
    store.save("run", 1, state(1))
    return store


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def files_of_at_most(n_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("n_bytes", (100, 2000, 40_000))
def test_a_checkpoint_that_is_too_large_leaves_the_earlier_one(store, n_bytes):
    before = contents(store.folder)
    with files_of_at_most(n_bytes), pytest.raises(OSError, match="File too large") as error:
        store.save("run", 2, state(2))
    path = store.folder / "checkpoints" / "run" / "2"
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))
    assert contents(store.folder) == before
    assert not list(store.folder.rglob("*tmp*"))
    np.testing.assert_array_equal(store.restore("run", state(0))["w"], state(1)["w"])
    store.save("run", 2, state(2))
    np.testing.assert_array_equal(store.restore("run", state(0))["w"], state(2)["w"])


@pytest.mark.parametrize("kind", (KeyboardInterrupt, RuntimeError))
def test_a_checkpoint_that_is_interrupted_leaves_no_traces(store, monkeypatch, kind):
    before = contents(store.folder)

    def interrupted(self, step, args):
        (store.folder / "checkpoints" / "run" / "2.orbax-checkpoint-tmp-3").mkdir()
        raise kind

    monkeypatch.setattr(ocp.CheckpointManager, "save", interrupted)
    with pytest.raises(kind):
        store.save("run", 2, state(2))
    assert contents(store.folder) == before
    assert not list(store.folder.rglob("*tmp*"))


def test_results_that_can_not_be_written_leave_the_earlier_ones(store):
    before = contents(store.folder)
    with files_of_at_most(10), pytest.raises(OSError, match="File too large") as error:
        store.write({"runs": list(range(100))})
    assert error.value.filename == str(store.results_file)
    assert contents(store.folder) == before


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*args, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "a"))

    arguments = {"resume": False, "small": True, "options": {}, "stop": lambda: False}
    monkeypatch.setattr(job, "prepare", lambda *args, **more: {"finished": False})
    monkeypatch.setattr(job, "train", full)
    assert cli.main(tmp_path, **arguments) == 1
    line = f"jaxprune demo: {tmp_path / 'a'}: No space left on device. To continue: "
    assert capsys.readouterr().err == f"{line}{cli.command_line(tmp_path, True, {})} --resume\n"
    monkeypatch.setattr(job, "prepare", full)
    assert cli.main(tmp_path, **arguments) == 1
    assert capsys.readouterr().err == f"{line.partition(' To')[0]}\n"
