"""Several `jax.distributed` processes make the masks of one, and notice where they differ."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from test_multidevice import (
    AUTO,
    DISTRIBUTIONS,
    STRUCTURES,
    make_params,
    masks_of,
    transform,
)

from helpers import assert_says

ROOT = Path(__file__).parents[2]
LIMIT_S = 60

CONNECT = """
import sys
import jax
rank, count, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, rank, initialization_timeout=30)
assert jax.device_count() == 2 * count
"""

PRELUDE = """
import json
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jaxprune

mesh = Mesh(np.array(jax.devices()[: 2 * count]).reshape(-1, 2), ("data", "model"))
SPECS = {"w": P("data", "model"), "v": P(("data", "model")), "bias": P()}
tx = jaxprune.prune(jaxprune.cubic_schedule(0.8, 0, 2, 1), inner=optax.sgd(0.5))

def tree(seed):
    rng = np.random.default_rng(seed)
    shapes = {"w": (64, 32), "v": (16, 8), "bias": (32,)}
    host = {k: np.round(8 * rng.normal(size=s)).astype(np.float32) for k, s in shapes.items()}
    return {k: jax.make_array_from_callback(x.shape, NamedSharding(mesh, SPECS[k]), x.__getitem__)
            for k, x in host.items()}

def whole(masks):
    gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
    return {k: np.asarray(gather(m).addressable_data(0)) for k, m in masks.items()}

def start():
    params = tree(0)
    return params, jax.jit(tx.init)(params)

@jax.jit
def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state
"""

RUN = """
params, state = start()
for t in range(4):
    params, state = step(params, state, tree(t + 1))
np.savez(f"{folder}/{count}-{rank}.npz", **whole(jaxprune.get_masks(state, params)))
"""

DISAGREE = """
from jaxprune._base.agreement import check_agreement
check_agreement({"schedule": jaxprune.one_shot_schedule(0.5)})
try:
    check_agreement({"schedule": jaxprune.one_shot_schedule(0.5 if rank != 1 else 0.6)})
    schedule = "no error"
except ValueError as error:
    schedule = str(error)

everywhere = NamedSharding(mesh, P())

def shared(x):  # one array, replicated from what each process holds
    return jax.make_array_from_callback(x.shape, everywhere, lambda index: np.asarray(x)[index])

def checked(*, like):
    transformation = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
    w = np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 4)
    params = {"w": w if like else w[::-1]}
    updates, state = jax.jit(transformation.update)(params, transformation.init(params), params)
    params = optax.apply_updates(params, updates)
    try:
        jaxprune.check(*jax.tree.map(shared, (params, state)))
    except ValueError as error:
        return str(error)
    return "no error"

copies = [checked(like=True), checked(like=rank != 1)]

def after_one_update(**more):  # long before anything is pruned; the tree is sharded
    transformation = jaxprune.prune(jaxprune.cubic_schedule(0.5, 100, 200, 10), **more)
    params = {"sharded": tree(0), **{name: tree(1) for name in more}}
    _, state = jax.jit(transformation.update)(params, jax.jit(transformation.init)(params), params)
    try:
        jaxprune.check(params, state)
    except ValueError as error:
        return str(error)
    return "no error"

settings = [
    after_one_update(),
    after_one_update(exclude=".*/w" if rank != 1 else ".*/v"),
    after_one_update(score=(lambda params, grads, key: abs(params))),
    after_one_update(distribution=jaxprune.min_density(0.1 if rank != 1 else 0.2)),
]
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump([schedule, *copies, *settings], file)
"""

CHECKPOINT = """
import orbax.checkpoint as ocp
params, state = start()
with ocp.StandardCheckpointer() as checkpointer:
    if count == 4:
        for t in range(2):
            params, state = step(params, state, tree(t + 1))
        checkpointer.save(f"{folder}/saved", (params, state))
        checkpointer.wait_until_finished()
    else:
        state = step(params, state, tree(1))[1]  # with the shardings of a state after an update
        params, state = checkpointer.restore(f"{folder}/saved", (params, state))
np.savez(f"{folder}/{count}-{rank}.npz", **whole(jaxprune.get_masks(state, params)))
for t in range(2, 4):
    params, state = step(params, state, tree(t + 1))
np.savez(f"{folder}/end-{count}-{rank}.npz", **whole(jaxprune.get_masks(state, params)))
"""

TABLE = """
sys.path[:0] = sys.argv[5:7]
from test_multidevice import AUTO, EXPLICIT, ROWS, SPECS, make_params, transform
from test_multiprocess import form_of, pairs

def placed(axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    shardings = {k: NamedSharding(mesh, spec) for k, spec in SPECS.items()}
    return mesh, {k: jax.make_array_from_callback(x.shape, shardings[k], x.__getitem__)
                  for k, x in make_params().items()}

saved = {}
for number, pair in enumerate(pairs(sys.argv[7])):
    mesh, params = placed(EXPLICIT if number % 2 else AUTO)
    tx = transform(*pair, **form_of(number))
    with jax.set_mesh(mesh):
        _, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
        gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
        masks = {k: gather(m) for k, m in jaxprune.get_masks(state, params).items()}
    print("done", *pair, flush=True)
    saved |= {"|".join([*pair, k]): np.asarray(m.addressable_data(0)) for k, m in masks.items()}
np.savez(f"{folder}/{count}-{rank}.npz", **saved)
"""


ARRAYS = """
from jax.experimental import multihost_utils

params, state = start()
params, state = step(params, state, tree(1))
gathered = multihost_utils.process_allgather(params, tiled=True)
masks = whole(jaxprune.get_masks(state))
as_set = jaxprune.set_masks(start()[1], masks)
same_masks = whole(jaxprune.get_masks(as_set))

def error_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"

def checked(sparsity):
    run = jaxprune.prune(jaxprune.cubic_schedule(sparsity, 100, 200, 10))
    _, new = jax.jit(run.update)(params, jax.jit(run.init)(params), params)
    return error_of(lambda: jaxprune.check(params, new))

checks = [error_of(lambda: jaxprune.check(params, state))]
if rank == 0:  # looks at another transformation, and runs none
    jax.eval_shape(lambda p: jaxprune.prune(jaxprune.one_shot_schedule(0.9)).update(
        p, jaxprune.prune(jaxprune.one_shot_schedule(0.9)).init(p), p), params)
checks.append(error_of(lambda: jaxprune.check(params, state)))
checks += [checked(s) for s in (0.5, 0.5 if rank else 0.6, 0.5)]
found = {
    "summary": str(jaxprune.summarize(params)),
    "of gathered": str(jaxprune.summarize(gathered)),
    "with masks": str(jaxprune.summarize(params, state)),
    "host masks": str(jaxprune.summarize(params, masks)),
    "gathered, with masks": str(jaxprune.summarize(gathered, state)),
    "same masks": all(np.array_equal(masks[k], same_masks[k]) for k in masks),
    "placed": [m.sharding == start()[1].masks[k].sharding for k, m in as_set.masks.items()],
    "save": error_of(lambda: jaxprune.save(f"{folder}/{rank}.st", params, level=None)),
    "pack_matrix": error_of(lambda: jaxprune.pack_matrix(params["w"])),
    "checks": checks,
}
jaxprune.save(f"{folder}/gathered-{rank}.safetensors", gathered, masks, level=None)
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
"""


FEW = [("unstructured", "global"), ("2:4", "uniform"), ("block max", "global min density")]


def pairs(part):
    """A `few` pairs of a structure and a distribution, or all possible ones of a structure."""
    if part == "few":
        return FEW
    return [(part, name) for name in DISTRIBUTIONS if is_possible(part, name)]


def is_possible(structure, distribution):
    """Whether the pair has a budget: groups need a uniform one, and few channels may be lost."""
    try:
        transform(structure, distribution).init(make_params())
    except ValueError:
        return False
    return True


def form_of(number):
    """The options of one of three forms: a link of a chain, around an optimizer, bit masks."""
    inner = {"inner": optax.scale(-1.0)}
    return ({}, inner, {**inner, "packed": True})[number % 3]


def launch(script, count, folder, *words, limit_s=LIMIT_S):
    """Runs `script` in `count` processes of two devices each; all must succeed in time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    flags = " ".join([*flags, "--xla_force_host_platform_device_count=2"])
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    code = CONNECT + PRELUDE + textwrap.dedent(script)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(count), str(port), str(folder), *words],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=limit_s)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


def masks_in(folder, name):
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("count", (2, pytest.param(4, marks=pytest.mark.slow)))
def test_masks_of_several_processes_are_those_of_one(count, tmp_path):
    if jax.device_count() < 2:
        launch(RUN, 1, tmp_path)
    else:
        exec(PRELUDE + RUN, {"rank": 0, "count": 1, "folder": tmp_path})
    launch(RUN, count, tmp_path)
    single = masks_in(tmp_path, "1-0")
    assert np.sum(~single["w"]) == 1638  # round(0.8 * 64 * 32)
    for rank in range(count):
        assert_equal(masks_in(tmp_path, f"{count}-{rank}"), single)


@pytest.mark.slow
def test_every_process_raises_where_one_differs(tmp_path):
    launch(DISAGREE, 2, tmp_path)
    for rank in range(2):
        schedule, alike, unlike, *settings = json.loads((tmp_path / f"{rank}.json").read_text())
        assert alike == "no error"
        told = [text.startswith("prune was given different arguments") for text in settings]
        assert told == [False, True, False, True]
        assert [text for text in settings if not text.startswith("prune")] == ["no error"] * 2
        assert_says(settings[1], "process 1 of 2")
        assert unlike.startswith("w: ")
        assert_says(unlike, "another copy on device", "prune state 0/masks/w:")
        assert_says(schedule, "process 1 of 2", "process 0", f"in process {rank}")


@pytest.mark.slow
def test_arrays_of_several_processes_are_counted_where_they_lie_or_need_a_gather(tmp_path):
    launch(ARRAYS, 2, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["summary"] == found["of gathered"]
        assert found["with masks"] == found["host masks"] == found["gathered, with masks"]
        assert found["same masks"]
        assert found["placed"] == [True] * 3
        for name, where in (("save", "v"), ("pack_matrix", "pack_matrix: w")):
            assert found[name].startswith(f"{where}: "), found[name]
            assert_says(found[name], f"process {rank} can't read", "process_allgather(", "host")
        right, looked, first, wrong, again = found["checks"]
        assert (right, looked, first, again) == ("no error",) * 4
        assert_says(wrong, "prune was given different arguments", "process 1 of 2")
        assert not (tmp_path / f"{rank}.st").exists()
        assert (tmp_path / f"gathered-{rank}.safetensors").exists()


@pytest.mark.slow
def test_a_checkpoint_of_four_processes_resumes_on_two(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    launch(CHECKPOINT, 4, tmp_path)
    launch(CHECKPOINT, 2, tmp_path)
    for part in ("", "end-"):
        saved = masks_in(tmp_path, f"{part}4-0")
        for rank in range(2):
            assert_equal(masks_in(tmp_path, f"{part}2-{rank}"), saved)


def assert_masks_of_one_device(part, folder, limit_s):
    words = (str(ROOT / "tests"), str(Path(__file__).parent), part)
    launch(TABLE, 4, folder, *words, limit_s=limit_s)
    expected = {}
    for pair in pairs(part):
        masks = masks_of(*pair, 1, AUTO)
        expected |= {"|".join([*pair, name]): mask for name, mask in masks.items()}
    for rank in range(4):
        assert_equal(masks_in(folder, f"4-{rank}"), expected)


@pytest.mark.slow
def test_a_few_combinations_have_the_masks_of_one_device_in_four_processes(tmp_path):
    assert_masks_of_one_device("few", tmp_path, 300)


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_combination_on_every_number_of_processes(structure, tmp_path):
    """By hand, as the test of that name in test_multidevice.py: 80 pairs, about ten minutes."""
    assert_masks_of_one_device(structure, tmp_path, 1_200)
