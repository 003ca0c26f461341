"""What would a fire cost a transformer of 70 billion weights on 256 and on 4,096 devices?

Nothing runs and no weight exists. The update of a step that fires is compiled ahead of time for as
many simulated devices as the plan has, from shapes and shardings alone, and what the compiler says
is reported: bytes of memory per device, collectives and their bytes, those of a loop once; a fire
is given the most passes that a measured one took. That is done in a process of its own, since the
number of devices is fixed when JAX starts. Where XLA cannot compile for that many here, the step is
lowered, the row is computed from the shapes, and says so.

The network is that of Llama 2 70B: 80 layers stacked for `scan`, so that its largest leaf has
1.9e10 weights and is counted in 64 bits, bfloat16, sharded over both axes of the mesh.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from rich.table import Table

import jaxprune
from benchmarks.bench_sharding import crossings
from benchmarks.common import Case, Check, Row

WIDTH, LAYERS, HIDDEN, KEYS, WORDS = 8192, 80, 28672, 1024, 32000
MESHES = {256: (16, 16), 4096: (64, 64)}
POOLS = {"leaves": jaxprune.uniform, "one pool": jaxprune.global_pool}
_N_CUTS, _LIMIT_S = 7, 900
# The most reads that any fire took of normal weights on 8 devices, in three leaves of up to 4e6.
_PASSES = 13


def network(scale: int = 1) -> dict[str, tuple[tuple[int, ...], P]]:
    """Shape and layout of every leaf, each width divided by `scale`."""
    d, f, k, v = (n // scale for n in (WIDTH, HIDDEN, KEYS, WORDS))
    into, out = P(None, "data", "model"), P(None, "model", "data")
    return {
        "embed": ((v, d), P("model", "data")),
        "q": ((LAYERS, d, d), into),
        "k": ((LAYERS, d, k), into),
        "v": ((LAYERS, d, k), into),
        "o": ((LAYERS, d, d), out),
        "gate": ((LAYERS, d, f), into),
        "up": ((LAYERS, d, f), into),
        "down": ((LAYERS, f, d), out),
        "head": ((d, v), P("data", "model")),
    }


def computed(n_devices: int, pools: str, scale: int = 1) -> Row:
    """What follows from the shapes: memory of params, masks and updates, bytes of all counts."""
    leaves = network(scale)
    sizes = [math.prod(shape) for shape, _ in leaves.values()]
    wide = (sum(sizes) if pools == "one pool" else max(sizes)) >= 2**31 - 1
    counts = len(leaves) * _N_CUTS * (8 if wide else 4)
    # Violations, once a fire: two counts of each leaf.
    counts += sum(2 * (8 if size >= 2**31 - 1 else 4) for size in sizes)
    per_pass = 2 * counts  # one all-reduce along each axis of the mesh
    return {
        "how": "computed",
        "devices": n_devices,
        "pools": pools,
        "weights": sum(sizes),
        "largest_leaf": max(sizes),
        "params_bytes": 2 * sum(sizes) // n_devices,
        "masks_bytes": sum(sizes) // n_devices,
        "n_pools": 1 if pools == "one pool" else len(leaves),
        "bytes_per_pass": per_pass,
        "passes": _PASSES,
        "bytes_per_fire": per_pass * _PASSES,
    }


def compiled(n_devices: int, pools: str, scale: int = 1) -> Row:
    """The same as the compiler says it, for the devices of this process."""
    mesh = jax.make_mesh(
        MESHES.get(n_devices, (n_devices // 2, 2)),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
    )
    params: Any = {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for name, (shape, spec) in network(scale).items()
    }
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), distribution=POOLS[pools])
    shardings = shardings_of(tx, params, mesh)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        shardings,
    )
    update = jax.jit(tx.update, donate_argnums=(0, 1))
    lowered = update.lower(params, state, params)
    row = computed(n_devices, pools, scale)
    try:
        made = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        why = str(error).splitlines()[0][:200]
        return row | {"how": "lowered, then computed", "why": why}
    found = crossings(made.as_text())
    memory = made.memory_analysis()
    per_pass = sum(n for _, n in found)
    return row | {
        "how": "compiled",
        "collectives": len(found),
        "kinds": sorted({kind for kind, _ in found}),
        "largest_collective": max((n for _, n in found), default=0),
        "bytes_per_pass": per_pass,
        "bytes_per_fire": per_pass * _PASSES,
        "arguments_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def shardings_of(tx: Any, params: Any, mesh: Any) -> Any:
    """Masks placed like the params, the rest on every device."""
    return optax.tree.map_params(
        tx,
        lambda _, p: p.sharding,
        jax.eval_shape(tx.init, params),
        params,
        transform_non_params=lambda _: NamedSharding(mesh, P()),
    )


def planned(n_devices: int, pools: str, scale: int = 1) -> Row:
    """`compiled` in a process of that many devices; `computed`, and why, where that fails."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n_devices}"
    command = [sys.executable, "-m", "benchmarks.scale_plan", str(n_devices), pools, str(scale)]
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()},
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return computed(n_devices, pools, scale) | {"why": f"not compiled within {_LIMIT_S} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return computed(n_devices, pools, scale) | {"why": last[:200]}
    return json.loads(done.stdout.splitlines()[-1])


def cases(quick: bool) -> list[Case]:
    """One per number of devices and kind of pools; tiny, on 8 devices, where `quick`."""
    numbers, scale = ((8,), 128) if quick else (tuple(MESHES), 1)

    def rows(n_devices: int, pools: str) -> list[Row]:
        return [{"case": "scale", **planned(n_devices, pools, scale)}]

    return [
        Case(f"{pools} on {n} devices", lambda n=n, pools=pools: rows(n, pools))
        for n in numbers
        for pools in POOLS
    ]


def checks(rows: Sequence[Row]) -> list[Check]:
    """A fire moves no more than 4 KiB per pool."""
    return [
        Check(
            f"bytes between devices per fire and pool, {r['pools']}, {r['devices']} devices",
            4096,
            r["bytes_per_fire"] / r["n_pools"],
        )
        for r in rows
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    """What a person reads."""
    table = Table(title="A fire of 70 billion weights")
    names = ("devices", "pools", "", "weights", "params", "masks", "temporary", "collectives")
    for column in (*names, "of", "bytes a pass", "bytes a fire"):
        table.add_column(column, justify="right")
    for r in rows:
        memory = [r["params_bytes"], r["masks_bytes"], r.get("temporary_bytes")]
        shown = ["-" if n is None else f"{n / 2**20:,.1f} MiB" for n in memory]
        facts = str(r["devices"]), r["pools"], r["how"], f"{r['weights']:.2e}"
        traffic = str(r.get("collectives", "-")), ", ".join(r.get("kinds", ()))
        numbers = f"{r['bytes_per_pass']:,}", f"{r['bytes_per_fire']:,}"
        table.add_row(*facts, *shown, *traffic, *numbers)
    return [table] if rows else []


if __name__ == "__main__":
    print(json.dumps(compiled(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
