"""Orbax checkpoints on a full disk, and damaged ones: an error, and the last good one resumes."""

import contextlib
import functools
import gc
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import assert_same

ocp = pytest.importorskip("orbax.checkpoint")

N_SAVED, N_STEPS = 3, 6
# Orbax leaves coroutines on a closed event loop where a restore fails.
LEFT_BEHIND = "ignore::pytest.PytestUnraisableExceptionWarning"


pytestmark = pytest.mark.filterwarnings(LEFT_BEHIND)


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.collect()  # so that what is left behind warns now, and not in another test


def make(form):
    inner, schedule = optax.adamw(1e-2), jaxprune.cubic_schedule(0.75, 0, 4, every=2)
    if form == "packed":
        return jaxprune.prune(schedule, inner=inner, packed=True)
    return optax.chain(inner, jaxprune.prune(schedule))


@functools.cache
def run(form):
    """The step of a run, and params and state after each of its steps."""
    tx = make(form)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {"w": draw(40, 48), "v": draw(48, 8), "bias": jnp.ones(8)}

    @jax.jit
    def step(params, state, t):
        grads = jax.tree.map(lambda p: jnp.sin(7 * p + t), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    both, history = (params, tx.init(params)), []
    for t in range(N_STEPS):
        both = step(*both, jnp.float32(t))
        history.append(both)
    return step, history


def manager_of(folder, *, in_background=False):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=in_background)
    return ocp.CheckpointManager(folder, options=options)


def save(manager, step, both):
    manager.save(step, args=ocp.args.StandardSave(both))
    manager.wait_until_finished()  # an error of the background appears here


def restored(manager, step, like):
    spec = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return manager.restore(step, args=ocp.args.StandardRestore(spec))


def assert_resumes(form, manager, last):
    """Checks that a run that starts from a checkpoint ends as one that never stopped."""
    step, history = run(form)
    both = restored(manager, last, history[0])
    assert_same(both, history[last])
    for t in range(last + 1, N_STEPS):
        both = step(*both, jnp.float32(t))
    assert_same(both, history[-1])


@contextlib.contextmanager
def small_disk(n_bytes):
    """No file may grow above this size, which programs meet as they meet a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form", ("packed", pytest.param("chain", marks=pytest.mark.slow)))
@pytest.mark.parametrize("in_background", (False, True), ids=("waits", "in background"))
def test_a_full_disk_is_an_error_and_the_last_checkpoint_is_used(tmp_path, in_background, form):
    _, history = run(form)
    with manager_of(tmp_path, in_background=in_background) as manager:
        for t in range(N_SAVED):
            save(manager, t, history[t])
        with pytest.raises(Exception, match="File too large") as caught, small_disk(5_000):
            save(manager, N_SAVED, history[N_SAVED])
        assert str(tmp_path) in str(caught.value)
        assert manager.latest_step() == N_SAVED - 1
    with manager_of(tmp_path) as manager:  # another process
        assert manager.latest_step() == N_SAVED - 1
        assert_resumes(form, manager, N_SAVED - 1)
        save(manager, N_SAVED + 1, history[N_SAVED + 1])
        assert manager.latest_step() == N_SAVED + 1


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with the checkpoints of the first steps."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with manager_of(folder) as manager:
        for t in range(N_SAVED):
            save(manager, t, run("packed")[1][t])
    return folder


DAMAGES = ("cut", *(pytest.param(name, marks=pytest.mark.slow) for name in ("empty", "gone")))


def damaged(checkpoints, folder, damage):
    """For each file of the newest checkpoint, a copy of the folder in which it is damaged."""
    newest = checkpoints / str(N_SAVED - 1)
    for i, file in enumerate(sorted(p for p in newest.rglob("*") if p.is_file())):
        copy = folder / f"{i}-{file.name}"
        shutil.copytree(checkpoints, copy)
        target = copy / file.relative_to(checkpoints)
        if damage == "gone":
            target.unlink()
        else:
            os.truncate(target, target.stat().st_size // 2 if damage == "cut" else 0)
        yield copy


def newest_whole(manager, like):
    """The newest step whose checkpoint can be read, its params and state, and how many can't."""
    n_errors = 0
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            return step, restored(manager, step, like), n_errors
        except Exception:
            n_errors += 1
    raise AssertionError("no checkpoint can be read")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_read_whole_or_not_at_all_and_the_one_before_it_resumes(
    checkpoints, tmp_path, damage
):
    _, history = run("packed")
    steps = []
    for folder in damaged(checkpoints, tmp_path, damage):
        with manager_of(folder) as manager:
            step, both, n_errors = newest_whole(manager, history[0])
            assert step + n_errors == N_SAVED - 1
            assert_same(both, history[step])
            steps.append(step)
    assert set(steps) == {N_SAVED - 2, N_SAVED - 1}
    with manager_of(checkpoints) as manager:
        assert_resumes("packed", manager, N_SAVED - 2)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_command_line_reads_a_damaged_checkpoint_whole_or_not_at_all(
    checkpoints, tmp_path, damage
):
    pytest.importorskip("typer")
    pytest.importorskip("zstandard")
    from jaxprune._cli import commands

    def export(folder, out):
        commands.export(folder, out, kind=None, force=True, as_json=True)
        return out.read_bytes()

    item = f"{N_SAVED - 1}/default"
    whole = export(checkpoints / item, tmp_path / "whole.zst")
    errors = {}
    for folder in damaged(checkpoints, tmp_path / "damaged", damage):
        out = tmp_path / f"{folder.name}.zst"
        try:
            assert export(folder / item, out) == whole
        except (ValueError, OSError) as error:
            errors[folder] = str(error)
            assert not out.exists()
    assert len(errors) >= 3
    for folder, text in errors.items():
        assert str(folder) in text
        assert "\n" not in text
