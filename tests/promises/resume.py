"""Runs that are killed at random moments resume from their checkpoints to the same bits.

Each case starts a process that trains and saves after every step, kills it with SIGKILL at a random
moment, starts it again, and so on until it ends by itself. Params and state must then hash to what
an uninterrupted run has. `python -m promises.resume FORM FOLDER` is the process.
"""

import functools
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from promises.runner import Promise

N_STEPS, N_KILLS = 24, 3
FORMS = ("chain", "inner", "packed", "rigl", "sweep", "sharded", "async")
_ROOT = Path(__file__).parents[2]


def train(form, folder):
    """Trains from the newest checkpoint in a folder to the end, and prints the hash of the end."""
    import jax
    import jax.numpy as jnp
    import optax
    import orbax.checkpoint as ocp

    import jaxprune

    schedule = jaxprune.cubic_schedule(0.75, 2, 20, every=3)
    inner = optax.adamw(1e-2)
    tx = {
        "chain": lambda: optax.chain(inner, jaxprune.prune(schedule)),
        "packed": lambda: jaxprune.prune(schedule, inner=inner, packed=True),
        "rigl": lambda: jaxprune.rigl(0.75, 20, every=3, inner=inner),
        "sweep": lambda: jaxprune.prune([jaxprune.one_shot_schedule(0.5), schedule], inner=inner),
    }.get(form, lambda: jaxprune.prune(schedule, inner=inner, score=jaxprune.movement))()
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {"w": draw(16, 24), "v": draw(24, 8), "bias": jnp.ones(8)}
    if form == "sharded":
        mesh = jax.make_mesh((4, 2), ("data", "model"))
        spec = lambda p: jax.P("data", "model") if p.ndim == 2 else jax.P()
        put = lambda p: jax.device_put(p, jax.NamedSharding(mesh, spec(p)))
        params = jax.tree.map(put, params)
    state = jax.jit(tx.init)(params)
    if form == "sweep":
        state = jaxprune.choose_schedule(state, 1)

    @jax.jit
    def step(params, state, t):
        grads = jax.tree.map(lambda p: jnp.sin(7 * p + t), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=form == "async"
    )
    with ocp.CheckpointManager(Path(folder).resolve(), options=options) as manager:
        first = 0
        if manager.latest_step() is not None:
            first = manager.latest_step() + 1
            as_saved = jax.tree.map(ocp.utils.to_shape_dtype_struct, (params, state))
            restore = ocp.args.StandardRestore(as_saved)
            params, state = manager.restore(manager.latest_step(), args=restore)
        print("training", first, flush=True)
        for t in range(first, N_STEPS):
            params, state = step(params, state, jnp.float32(t))
            manager.save(t, args=ocp.args.StandardSave((params, state)))
    jaxprune.check(params, state, done=True)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((params, state)):
        digest.update(np.asarray(leaf).tobytes())
    print("hash", digest.hexdigest(), flush=True)


def start(form, folder):
    """Starts the process that trains."""
    paths = os.pathsep.join((str(_ROOT), str(_ROOT / "tests")))
    devices = "--xla_force_host_platform_device_count=8" if form == "sharded" else ""
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    command = [sys.executable, "-m", "promises.resume", form, str(folder)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end_of(process):
    """The hash that a run printed, and the seconds that it trained."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return out.split("hash ")[1].strip()


@functools.cache
def uninterrupted(form):
    """The hash of a run that nobody kills, and how many seconds it trains."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(form, folder)
        process.stdout.readline()
        started = time.monotonic()
        digest = end_of(process)
        return digest, time.monotonic() - started


def check(chunk):
    """Kills one run up to three times; returns how many kills met a process that trained."""
    form = FORMS[chunk % len(FORMS)]
    digest, seconds = uninterrupted(form)
    rng = np.random.default_rng(chunk)
    n_kills = 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(N_KILLS):
            process = start(form, folder)
            line = process.stdout.readline()
            assert line.startswith("training"), process.communicate()[1][-3000:]
            try:
                process.wait(rng.uniform(0, 0.7 * seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                n_kills += 1
            process.communicate()
        assert end_of(start(form, folder)) == digest, f"{form}: another end after {n_kills} kills"
    return n_kills


PROMISE = Promise(
    "resume",
    "A run that is killed at any moment resumes from its checkpoint and ends hash-identical.",
    6 * len(FORMS),
    check,
    few=(),
)

if __name__ == "__main__":
    train(*sys.argv[1:])
