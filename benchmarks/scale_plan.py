"""How much memory and traffic would a fire of a 70B transformer need on 256 or 4,096 devices?

Nothing runs and no weights are allocated. The update is lowered from shapes and compiled for a mesh
(data, model) of that many simulated CPU devices, with every matrix sharded over both axes. One
process simulates at most 2,048 devices, so 4,096 need two. `how` in the rows says where their
numbers come from:

- `compiled`: read from the compiled program. These are the temporary bytes on each device, and the
  collectives, counted separately for a pass of the search and for the rest of the fire.
- `computed`: a leaf per layer is compiled with few layers only; the row for all 80 layers is a
  linear extrapolation. In every row, the bytes of params and masks follow from the shapes, and the
  largest possible number of passes from the search: it runs over 32 or 16 bits and then over ranks,
  and two passes narrow it at least eight times.
- `measured`: the number of passes depends on the weights, so it is counted on normal weights of
  smaller sizes, with the search that sharded devices use.

XLA compiles differently for CPUs and accelerators; `python -m benchmarks tpu` uses its compiler for
TPUs.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from rich.table import Table

import jaxprune
from benchmarks.common import Case, Check, Row
from benchmarks.hlo import LOOPS_AROUND_A_PASS, collectives_in, lines_with_depth
from benchmarks.topk_oracle import weights

# The sizes of Llama 3 70B: 80 layers, 8 heads for keys and values, gated feed-forward layers.
WIDTH, KV, HIDDEN, VOCABULARY, LAYERS = 8192, 1024, 28_672, 128_256, 80
IN, OUT = P("data", "model"), P("model", "data")
MATRICES = {
    "query": ((WIDTH, WIDTH), IN),
    "key": ((WIDTH, KV), IN),
    "value": ((WIDTH, KV), IN),
    "attended": ((WIDTH, WIDTH), OUT),
    "gate": ((WIDTH, HIDDEN), IN),
    "up": ((WIDTH, HIDDEN), IN),
    "down": ((HIDDEN, WIDTH), OUT),
}
# For each layout of the layers in the tree: the pools, and the axis type of the mesh.
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
LAYOUTS = {
    "a leaf per layer": (jaxprune.uniform, AUTO),
    "stacked": (jaxprune.uniform, AUTO),
    "stacked, one pool": (jaxprune.global_pool, AUTO),
    "stacked, one pool, Explicit": (jaxprune.global_pool, EXPLICIT),
}
MODEL_AXIS = 16
_MOST_DEVICES = 2048  # in one process: a limit of the CPU client
_LIMIT_S = 900


# The tree


def tree(layout: str, layers: int, scale: int = 1) -> dict[str, tuple[tuple[int, ...], P]]:
    """Shape and sharding of every leaf; every width is divided by `scale`."""
    full_size: dict[str, tuple[tuple[int, ...], P]] = {
        "embed": ((VOCABULARY, WIDTH), OUT),
        "head": ((WIDTH, VOCABULARY), IN),
    }
    for name, (shape, spec) in MATRICES.items():
        if layout == "a leaf per layer":
            full_size |= {f"{name}{i}": (shape, spec) for i in range(layers)}
        else:
            full_size[name] = ((layers, *shape), P(None, *spec))
    scaled = {
        n: (_smaller(shape, len(spec), scale), spec) for n, (shape, spec) in full_size.items()
    }
    return scaled | {"norm": ((layers, 2, WIDTH // scale), P())}


def _smaller(shape: tuple[int, ...], rank: int, scale: int) -> tuple[int, ...]:
    return (*shape[: rank - 2], *(n // scale for n in shape[rank - 2 :]))


def mesh_shape(n_devices: int) -> tuple[int, int]:
    """Devices along (data, model)."""
    model = min(MODEL_AXIS, n_devices // 2)
    return n_devices // model, model


# Compilation, in a process with the simulated devices


def compiled(layout: str, devices: Sequence[Any], layers: int, scale: int = 1) -> Row:
    """Compiles the update of one layout and reads memory and traffic from the program."""
    distribution, axis_type = LAYOUTS[layout]
    mesh = Mesh(
        np.array(devices).reshape(mesh_shape(len(devices))),
        ("data", "model"),
        axis_types=(axis_type,) * 2,
    )
    placed = {k: (s, NamedSharding(mesh, p)) for k, (s, p) in tree(layout, layers, scale).items()}

    def abstract(dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {k: jax.ShapeDtypeStruct(s, dtype, sharding=p) for k, (s, p) in placed.items()}

    tx = jaxprune.prune(
        jaxprune.cubic_schedule(0.8, 0, 100_000, 1_000),
        exclude="embed|head|norm",
        distribution=distribution,
    )
    params, everywhere = abstract(jnp.bfloat16), NamedSharding(mesh, P())
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(tx.init, params),
    )._replace(masks=abstract(jnp.uint8))
    program = jax.jit(tx.update, donate_argnums=(0, 1)).lower(params, state, params).compile()
    depth_of = lines_with_depth(hlo := program.as_text())
    collectives = [(depth, *c) for depth, line in depth_of for c in collectives_in(line)]
    in_passes = [c for c in collectives if c[0] >= LOOPS_AROUND_A_PASS]
    besides = [c for c in collectives if c[0] < LOOPS_AROUND_A_PASS]
    memory = program.memory_analysis()
    shards = [math.prod(p.shard_shape(s)) for s, p in placed.values()]
    pruned = [s for k, (s, _) in placed.items() if k not in ("embed", "head", "norm")]
    assert len(collectives) == len(collectives_in(hlo))
    return {
        "params": sum(math.prod(s) for s, _ in placed.values()),
        "largest_pool": (sum if distribution is jaxprune.global_pool else max)(
            math.prod(s) for s in pruned
        ),
        "pools": 1 if distribution is jaxprune.global_pool else len(pruned),
        "param_bytes": 2 * sum(shards),
        "mask_bytes": sum(shards),
        "temp_bytes": memory.temp_size_in_bytes,
        "collectives_per_pass": len(in_passes),
        "bytes_per_pass": sum(n for *_, n in in_passes),
        "collectives_besides": len(besides),
        "bytes_besides": sum(n for *_, n in besides),
        "largest_crossing": max((n for *_, n in collectives), default=0),
        "kinds": sorted({kind for _, kind, _ in collectives}),
    }


def lowered(layout: str, n_devices: int, layers: int, scale: int = 1) -> Row:
    """Runs `compiled` in as many new processes as the simulated devices need."""
    count = -(-n_devices // _MOST_DEVICES)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count="
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags}{n_devices // count}"}
    task = json.dumps([layout, n_devices, layers, scale])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scale_plan", task, str(rank), str(count), str(port)],
            cwd=Path(__file__).parents[1],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=_LIMIT_S) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{layout}, {n_devices} devices: {errors[-2000:]}")
    about = {"case": "fire", "layout": layout, "devices": n_devices, "layers": layers}
    about |= {"mesh": mesh_shape(n_devices), "dtype": "bfloat16", "how": "compiled"}
    return about | json.loads(outputs[0][0].splitlines()[-1])


def extrapolated(few: Row, more: Row, layers: int) -> Row:
    """The row for `layers` layers, extrapolated linearly from two rows with fewer."""
    step = more["layers"] - few["layers"]

    def on_line(key: str) -> Any:
        if not isinstance(more[key], int) or key in ("devices", "largest_pool", "largest_crossing"):
            return more[key]
        slope = (more[key] - few[key]) / step
        return round(more[key] + slope * (layers - more["layers"]))

    how = f"computed from {few['layers']} and {more['layers']} layers"
    return {key: on_line(key) for key in more} | {"layers": layers, "how": how}


# Passes


def passes(n: int, dtype: str) -> list[Row]:
    """Counts the passes of the search over `n` normal weights, cold and with a warm start.

    It searches like sharded devices, without the sample that a single device takes first.
    """
    from jaxprune._topk import count as counts
    from jaxprune._topk.topk import select

    count_members, calls = counts._count_members, []
    w = jnp.abs(jnp.asarray(weights("normal", n), dtype))
    last_threshold = select([w], [round(0.22 * n)])[1]
    rows = []
    counts._count_members = lambda *args: (calls.append(1), count_members(*args))[1]
    try:
        for start in (None, last_threshold):
            calls.clear()
            with jax.disable_jit():
                select([w], [round(0.2 * n)], start=start)
            rows.append({"start": "cold" if start is None else "warm", "passes": len(calls)})
    finally:
        counts._count_members = count_members
    about = {"case": "passes", "n": n, "dtype": dtype, "how": "measured"}
    about["worst"] = most_passes_of(n, dtype)
    return [about | row for row in rows]


def most_passes_of(n: int, dtype: str) -> int:
    """Upper bound on the passes: two for every three bits of the key, then of the rank of ties."""
    bits = 8 * jnp.dtype(dtype).itemsize
    return 2 * math.ceil(bits / 3) + 2 * math.ceil(max(n, 2).bit_length() / 3)


# The benchmark


def fires(layout: str, n_devices: int, quick: bool) -> list[Row]:
    """The rows of one layout on one number of devices."""
    scale, layers = (16, 2) if quick else (1, LAYERS)
    if layout != "a leaf per layer":
        rows = [lowered(layout, n_devices, layers, scale)]
    else:
        rows = [lowered(layout, n_devices, n, scale) for n in (1, 2, 4)]
        rows.append(extrapolated(*rows[1:], LAYERS))
    for row in rows:
        row["worst_passes"] = most_passes_of(row["largest_pool"], row["dtype"])
    return rows


def cases(quick: bool) -> list[Case]:
    """Passes of the search, then each layout on each number of devices."""
    all_cases = [
        Case(f"passes {dtype} {n:.0e}", lambda n=n, dtype=dtype: _passes_with_two_devices(n, dtype))
        for dtype in ("float32", "bfloat16")
        for n in ((2**12,) if quick else (2**16, 2**20, 2**24))
    ]
    for n_devices in (8,) if quick else (256, 4096):
        for layout in ("stacked",) if quick else LAYOUTS:
            all_cases.append(
                Case(
                    f"{layout} {n_devices}",
                    lambda layout=layout, n=n_devices: fires(layout, n, quick),
                )
            )
    return all_cases


def _passes_with_two_devices(n: int, dtype: str) -> list[Row]:
    """Runs `passes`, in a new process with two devices if this one has a single device."""
    if jax.device_count() > 1:
        return passes(n, dtype)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale_plan", json.dumps([n, dtype])],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def checks(rows: Sequence[Row]) -> list[Check]:
    """Bytes per fire and pool, with as many passes as the slowest measured search took."""
    most_passes = max((r["passes"] for r in rows if r["case"] == "passes"), default=0)
    return [
        Check(
            f"bytes between devices per fire and pool, {r['layout']}, {r['devices']} devices",
            4096,
            bytes_of_a_fire(r, most_passes),
        )
        for r in rows
        if r["case"] == "fire" and r["layers"] == LAYERS
    ]


def bytes_of_a_fire(row: Row, n_passes: int) -> float:
    """Bytes between devices, per pool, in a fire with `n_passes` passes."""
    return (row["bytes_besides"] + n_passes * row["bytes_per_pass"]) / row["pools"]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Passes of the searches, then memory and traffic of the fires."""
    fire = Table(title="A fire: memory per device, traffic between devices")
    for column in (
        "layout, layers",
        "devices",
        "how",
        "weights",
        "pools",
        "params",
        "masks",
        "temporary",
        "collectives/pass",
        "bytes/pass",
        "other collectives",
        "other bytes",
    ):
        fire.add_column(column, justify="right")
    for r in (r for r in rows if r["case"] == "fire"):
        memory = [f"{r[key] / 2**20:,.1f} MiB" for key in ("param_bytes", "mask_bytes")]
        memory.append(f"{r['temp_bytes'] / 2**20:,.1f} MiB")
        about = f"{r['layout']}, {r['layers']}", f"{r['devices']:,}", r["how"]
        counts = f"{r['collectives_per_pass']}", f"{r['bytes_per_pass']:,}"
        others = f"{r['collectives_besides']}", f"{r['bytes_besides']:,}"
        sizes = f"{r['params'] / 1e9:.2f}e9", str(r["pools"])
        fire.add_row(*about, *sizes, *memory, *counts, *others)
    searches = Table(title="Passes of the search")
    for column in ("weights", "dtype", "start", "passes", "at most"):
        searches.add_column(column, justify="right")
    for r in (r for r in rows if r["case"] == "passes"):
        cells = f"{r['n']:.0e}", r["dtype"], r["start"], str(r["passes"]), str(r["worst"])
        searches.add_row(*cells)
    return [table for table in (searches, fire) if table.row_count]


def _main(task: list[Any], rank: int = 0, count: int = 1, port: int = 0) -> None:
    if len(task) == 2:
        print(json.dumps(passes(*task)))
        return
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
    layout, _, layers, scale = task
    print(json.dumps(compiled(layout, jax.devices(), layers, scale)))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]), *map(int, sys.argv[2:]))
