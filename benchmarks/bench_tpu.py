"""What the compiler of TPUs makes of a mask update; no TPU is needed, and nothing runs.

`libtpu` compiles for chips that are not here: `pip install 'jax[tpu]'`, then `JAX_PLATFORMS=cpu
python -m benchmarks tpu`. Read from its programs are what they hold besides arguments and results,
on each chip, and what crosses between chips. Times are not: they need a TPU.

- mask: one leaf, on a chip of a v5e and over 256 of them, by this library and by sorting.
- fire: the firing step of the 70B transformer of `scale_plan`, on 256 chips of a v5e and 4,096 of
  a v5p. A pass stands in the program once; `scale_plan` counts them.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from rich.table import Table

from benchmarks import scale_plan
from benchmarks.bench_sharding import OURS, crossings, methods
from benchmarks.common import Case, Check, Row, version_of

POD, LARGE_POD = "v5e:16x16", "v5p:16x16x16"
# A matrix, a kernel of a convolution, the embedding of a medium LSTM language model.
SHAPES = [(4096, 4096), (3, 3, 512, 512), (10_000, 650)]
SHARDED = (8192, 28_672)
_KEEP = 0.2
# What a fire took at most in scale_plan-cpu.json.
_PASSES = Path(__file__).parent / "results" / "scale_plan-cpu.json"


def facts(case: str, topology: str, n_chips: int) -> Row:
    """What every row says of where its program would run, and of who made it."""
    compiler = f"libtpu {version_of('libtpu')}"
    return {"case": case, "topology": topology, "chips": n_chips, "compiler": compiler}


def chips(topology: str) -> Sequence[Any]:
    """The devices of a topology, of which none needs to be here."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # of the machine that would hold them
    return topologies.get_topology_desc(topology, platform="tpu").devices


def masks(
    topology: str, shape: tuple[int, ...], dtype: str, spec: P | None, *, only_ours: bool = False
) -> list[Row]:
    """One row for each way to mask one leaf, on one chip or sharded over all."""
    devices = np.array(chips(topology)[:1] if spec is None else chips(topology))
    mesh = Mesh(
        devices.reshape(1 if spec is None else -1, 1 if spec is None else 16),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
    )
    sharding = NamedSharding(mesh, spec or P())
    w = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    size = math.prod(shape)
    about = facts("mask", topology, devices.size) | {"shape": list(shape)}
    rows = []
    ways = methods(round(_KEEP * size))
    for name, method in {OURS: ways[OURS]}.items() if only_ours else ways.items():
        row = about | {"dtype": dtype, "method": name}
        try:
            program = jax.jit(method, out_shardings=sharding).lower(w).compile()
        except jax.errors.JaxRuntimeError as error:
            rows.append(row | {"error": str(error).splitlines()[0][:200]})
            continue
        found = crossings(program.as_text())
        temp = program.memory_analysis().temp_size_in_bytes
        row |= {"temp_bytes": temp, "temp_bytes_per_weight": temp * devices.size / size}
        row |= {"bytes": sum(n for _, n in found), "kinds": sorted({kind for kind, _ in found})}
        rows.append(row)
    return rows


def fires(topology: str, layout: str, quick: bool) -> list[Row]:
    """The firing step of one layout."""
    layers, scale = (2, 16) if quick else (scale_plan.LAYERS, 1)
    devices = chips(topology)
    about = facts("fire", topology, len(devices)) | {"layout": layout, "layers": layers}
    return [about | scale_plan.compiled(layout, devices, layers, scale)]


def cases(quick: bool) -> list[Case]:
    """Masks of one leaf, then fires; one note where libtpu is missing."""
    if version_of("libtpu") is None:
        note = "libtpu is not installed: pip install 'jax[tpu]'"
        return [Case("note", lambda: [{"case": "note", "note": f"tpu: {note}"}])]
    found = []
    for dtype in ("float32", "bfloat16"):
        for shape in SHAPES[:1] if quick else SHAPES:
            # Half a minute to compile each sort.
            ours = (shape, dtype) != (SHAPES[0], "float32")
            find = functools.partial(masks, "v5e:2x2", shape, dtype, None, only_ours=ours)
            found.append(Case(f"mask {dtype} {shape}", find))
    if not quick:
        spec = P("data", "model")
        found.append(Case("mask sharded", lambda: masks(POD, SHARDED, "bfloat16", spec)))
    layouts = [name for name in scale_plan.LAYOUTS if name.startswith("stacked")]
    for topology in (POD,) if quick else (POD, LARGE_POD):
        for layout in layouts[:1] if quick else layouts:
            find = functools.partial(fires, topology, layout, quick)
            found.append(Case(f"fire {topology} {layout}", find))
    return found


def checks(rows: Sequence[Row]) -> list[Check]:
    """As for `scale_plan`, with as many passes as the slowest search took there."""
    counted = json.loads(_PASSES.read_text())["rows"]
    slowest = max(r["passes"] for r in counted if r["case"] == "passes")
    return [
        Check(
            f"bytes between chips per fire and pool, {r['layout']}, {r['topology']}",
            4096,
            scale_plan.bytes_of_a_fire(r, slowest),
        )
        for r in rows
        if r["case"] == "fire"
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    """What a person reads."""
    one = Table(title="A mask: temporary bytes per weight; bytes between chips, a loop once")
    for column in ("leaf", "dtype", "chips", "method", "temporary", "between", "kinds"):
        one.add_column(column, justify="right")
    for r in (r for r in rows if r["case"] == "mask"):
        shape = "x".join(map(str, r["shape"]))
        facts = shape, r["dtype"], f"{r['chips']:,}", r["method"]
        if "error" in r:
            one.add_row(*facts, r["error"][:60], "", "")
            continue
        found = f"{r['temp_bytes_per_weight']:.2f}", f"{r['bytes']:,}"
        one.add_row(*facts, *found, ", ".join(r["kinds"]), style="bold" * (r["method"] == OURS))
    fire = Table(title="A fire: per chip, and between chips")
    for column in ("chips", "layout", "params", "masks", "temporary", "bytes/pass", "besides"):
        fire.add_column(column, justify="right")
    for r in (r for r in rows if r["case"] == "fire"):
        memory = [f"{r[k] / 2**20:,.1f} MiB" for k in ("param_bytes", "mask_bytes", "temp_bytes")]
        counts = f"{r['bytes_per_pass']:,}", f"{r['bytes_besides']:,}"
        fire.add_row(r["topology"], r["layout"], *memory, *counts)
    return [table for table in (one, fire) if table.row_count]
