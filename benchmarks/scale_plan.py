"""What would a fire of a 70B-parameter transformer cost on 256 and on 4,096 devices?

Nothing runs and no weight is allocated: the update is lowered from shapes and compiled for that
many simulated CPU devices, for a whole mesh of (data, model), with every matrix sharded over both
axes. Read from the compiled program, and so `compiled` in the rows: what it holds besides arguments
and results on each device, and every collective, those of a pass over the data apart from those of
a fire. One process simulates 2,048 devices at most, so that 4,096 take two.

`computed` in the rows: the bytes of params and masks (shapes over devices), the worst number of
passes (a search of 32 or 16 bits and then of ranks, eight times narrower every two passes at
least), and what a leaf per layer costs with all 80 layers, on a line through fewer. How many passes
a search takes depends on the weights: `measured` on normal ones of sizes that fit here, as devices
with shards search.

XLA CPU lays out programs otherwise than the compilers of accelerators; `python -m benchmarks tpu`
asks that of TPUs.
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
from benchmarks.bench_select import weights
from benchmarks.bench_sharding import crossings
from benchmarks.common import Case, Check, Row

# Widths as in Llama 3 70B: 80 layers, grouped queries of 8 heads, a gated feed-forward layer.
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
# How the layers lie in the tree, who competes with whom, and of what kind the axes of the mesh are.
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
LAYOUTS = {
    "a leaf per layer": (jaxprune.uniform, AUTO),
    "stacked": (jaxprune.uniform, AUTO),
    "stacked, one pool": (jaxprune.global_pool, AUTO),
    "stacked, one pool, Explicit": (jaxprune.global_pool, EXPLICIT),
}
MODEL_AXIS = 16
_MOST_DEVICES = 2048  # of one process: the CPU client numbers no more
_LIMIT_S = 900


# The tree


def tree(layout: str, layers: int, scale: int = 1) -> dict[str, tuple[tuple[int, ...], P]]:
    """Shape and sharding of every leaf, each width `scale` times smaller."""
    whole: dict[str, tuple[tuple[int, ...], P]] = {
        "embed": ((VOCABULARY, WIDTH), OUT),
        "head": ((WIDTH, VOCABULARY), IN),
    }
    for name, (shape, spec) in MATRICES.items():
        if layout == "a leaf per layer":
            whole |= {f"{name}{i}": (shape, spec) for i in range(layers)}
        else:
            whole[name] = ((layers, *shape), P(None, *spec))
    small = {n: (_smaller(shape, len(spec), scale), spec) for n, (shape, spec) in whole.items()}
    return small | {"norm": ((layers, 2, WIDTH // scale), P())}


def _smaller(shape: tuple[int, ...], rank: int, scale: int) -> tuple[int, ...]:
    return (*shape[: rank - 2], *(n // scale for n in shape[rank - 2 :]))


def mesh_shape(n_devices: int) -> tuple[int, int]:
    """Devices along (data, model)."""
    model = min(MODEL_AXIS, n_devices // 2)
    return n_devices // model, model


# What is compiled, in a process of its own


def compiled(layout: str, devices: Sequence[Any], layers: int, scale: int = 1) -> Row:
    """The firing step of one layout: memory and traffic of its program."""
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
    depth_of = depths(hlo := program.as_text())
    found = [(depth, *c) for depth, line in depth_of for c in crossings(line)]
    memory = program.memory_analysis()
    shards = [math.prod(p.shard_shape(s)) for s, p in placed.values()]
    pruned = [s for k, (s, _) in placed.items() if k not in ("embed", "head", "norm")]
    assert len(found) == len(crossings(hlo))
    return {
        "params": sum(math.prod(s) for s, _ in placed.values()),
        "largest_pool": (sum if distribution is jaxprune.global_pool else max)(
            math.prod(s) for s in pruned
        ),
        "pools": 1 if distribution is jaxprune.global_pool else len(pruned),
        "param_bytes": 2 * sum(shards),
        "mask_bytes": sum(shards),
        "temp_bytes": memory.temp_size_in_bytes,
        "collectives_per_pass": sum(depth >= 2 for depth, *_ in found),
        "bytes_per_pass": sum(n for depth, _, n in found if depth >= 2),
        "collectives_besides": sum(depth < 2 for depth, *_ in found),
        "bytes_besides": sum(n for depth, _, n in found if depth < 2),
        "largest_crossing": max((n for *_, n in found), default=0),
        "kinds": sorted({kind for _, kind, _ in found}),
    }


def depths(hlo: str) -> list[tuple[int, str]]:
    """Every line of a compiled program with the number of loops that it is in.

    The fire is a loop of at most one trip, and the search for the cuts a loop inside it.
    """
    lines: dict[str, list[str]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        if line.endswith("{") and " -> " in line:
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry = name if line.startswith("ENTRY ") else entry
        lines.setdefault(name, []).append(line)
    found: list[tuple[int, str]] = []
    left = [(entry, 0)]
    while left:
        name, depth = left.pop()
        for line in lines.pop(name, []):  # a computation is called from one place
            found.append((depth, line))
            words = line.replace(",", " ").replace("{", " ").replace("}", " ").split()
            for word in words:
                key, _, called = word.partition("=%")
                inside = key in ("body", "condition")
                if called in lines and (inside or key in ("to_apply", "calls")):
                    left.append((called, depth + inside))
                elif word.startswith("%") and "branch_computations=" in line:
                    left += [(word[1:], depth)] * (word[1:] in lines)
    return found


def lowered(layout: str, n_devices: int, layers: int, scale: int = 1) -> Row:
    """`compiled`, in one process or as many as it takes to simulate the devices."""
    count = -(-n_devices // _MOST_DEVICES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
        done = [process.communicate(timeout=_LIMIT_S) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    for process, (_, errors) in zip(processes, done, strict=True):
        if process.returncode:
            raise RuntimeError(f"{layout}, {n_devices} devices: {errors[-2000:]}")
    facts = {"case": "fire", "layout": layout, "devices": n_devices, "layers": layers}
    facts |= {"mesh": mesh_shape(n_devices), "dtype": "bfloat16", "how": "compiled"}
    return facts | json.loads(done[0][0].splitlines()[-1])


def extrapolated(few: Row, more: Row, layers: int) -> Row:
    """A row of `layers` layers on the line through two rows of fewer."""
    step = more["layers"] - few["layers"]

    def on_line(key: str) -> Any:
        if not isinstance(more[key], int) or key in ("devices", "largest_pool", "largest_crossing"):
            return more[key]
        slope = (more[key] - few[key]) / step
        return round(more[key] + slope * (layers - more["layers"]))

    of = f"computed from {few['layers']} and {more['layers']} layers"
    return {key: on_line(key) for key in more} | {"layers": layers, "how": of}


# Passes


def passes(n: int, dtype: str) -> list[Row]:
    """How many passes the search takes over `n` normal weights, cold and from the last threshold.

    It searches as devices with shards do, without the sample that one device takes first.
    """
    from jaxprune._topk import search
    from jaxprune._topk.topk import select

    count, calls = search._count_reaching, []
    w = jnp.abs(jnp.asarray(weights("normal", n), dtype))
    before = select([w], [round(0.22 * n)])[1]
    rows = []
    search._count_reaching = lambda *args: (calls.append(1), count(*args))[1]
    try:
        for start in (None, before):
            calls.clear()
            with jax.disable_jit():
                select([w], [round(0.2 * n)], start=start)
            rows.append({"start": "cold" if start is None else "warm", "passes": len(calls)})
    finally:
        search._count_reaching = count
    same = {"case": "passes", "n": n, "dtype": dtype, "how": "measured", "worst": worst(n, dtype)}
    return [same | row for row in rows]


def worst(n: int, dtype: str) -> int:
    """Passes at most: two for every three bits of the key, then of the rank among equal keys."""
    bits = 8 * jnp.dtype(dtype).itemsize
    return 2 * math.ceil(bits / 3) + 2 * math.ceil(max(n, 2).bit_length() / 3)


# The benchmark


def fires(layout: str, n_devices: int, quick: bool) -> list[Row]:
    """The rows of one layout."""
    scale, layers = (16, 2) if quick else (1, LAYERS)
    if layout != "a leaf per layer":
        rows = [lowered(layout, n_devices, layers, scale)]
    else:
        rows = [lowered(layout, n_devices, some, scale) for some in (1, 2, 4)]
        rows.append(extrapolated(*rows[1:], LAYERS))
    for row in rows:
        row["worst_passes"] = worst(row["largest_pool"], row["dtype"])
    return rows


def cases(quick: bool) -> list[Case]:
    """Passes over what fits here, then each layout on each number of devices."""
    found = [
        Case(f"passes {dtype} {n:.0e}", lambda n=n, dtype=dtype: _passes_apart(n, dtype))
        for dtype in ("float32", "bfloat16")
        for n in ((2**12,) if quick else (2**16, 2**20, 2**24))
    ]
    for n_devices in (8,) if quick else (256, 4096):
        for layout in ("stacked",) if quick else LAYOUTS:
            found.append(
                Case(
                    f"{layout} {n_devices}",
                    lambda layout=layout, n=n_devices: fires(layout, n, quick),
                )
            )
    return found


def _passes_apart(n: int, dtype: str) -> list[Row]:
    """`passes`, in a process of two devices where this one has one."""
    if jax.device_count() > 1:
        return passes(n, dtype)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale_plan", json.dumps([n, dtype])],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def checks(rows: Sequence[Row]) -> list[Check]:
    """Bytes of a fire for each pool, with as many passes as the slowest search here took."""
    slowest = max((r["passes"] for r in rows if r["case"] == "passes"), default=0)
    return [
        Check(
            f"bytes between devices per fire and pool, {r['layout']}, {r['devices']} devices",
            4096,
            bytes_of_a_fire(r, slowest),
        )
        for r in rows
        if r["case"] == "fire" and r["layers"] == LAYERS
    ]


def bytes_of_a_fire(row: Row, n_passes: int) -> float:
    """Between devices and for each pool, in a fire of so many passes."""
    return (row["bytes_besides"] + n_passes * row["bytes_per_pass"]) / row["pools"]


def tables(rows: Sequence[Row]) -> list[Table]:
    """What a person reads."""
    fire = Table(title="A fire: per device, and between devices")
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
        "besides",
        "bytes",
    ):
        fire.add_column(column, justify="right")
    for r in (r for r in rows if r["case"] == "fire"):
        memory = [f"{r[key] / 2**20:,.1f} MiB" for key in ("param_bytes", "mask_bytes")]
        memory.append(f"{r['temp_bytes'] / 2**20:,.1f} MiB")
        where = f"{r['layout']}, {r['layers']}", f"{r['devices']:,}", r["how"]
        counts = f"{r['collectives_per_pass']}", f"{r['bytes_per_pass']:,}"
        besides = f"{r['collectives_besides']}", f"{r['bytes_besides']:,}"
        size = f"{r['params'] / 1e9:.2f}e9", str(r["pools"])
        fire.add_row(*where, *size, *memory, *counts, *besides)
    searches = Table(title="Passes of a search")
    for column in ("weights", "dtype", "start", "passes", "at most"):
        searches.add_column(column, justify="right")
    for r in (r for r in rows if r["case"] == "passes"):
        facts = f"{r['n']:.0e}", r["dtype"], r["start"], str(r["passes"]), str(r["worst"])
        searches.add_row(*facts)
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
