"""How much memory and traffic does a mask update need on TPUs? Compiled without a TPU.

`libtpu` compiles for chips that the machine does not have: `pip install 'jax[tpu]'`, then
`JAX_PLATFORMS=cpu python -m benchmarks tpu`. Nothing runs, so there are no times. The temporary
bytes per chip and the bytes between chips are read from the compiled programs.

- mask: masking one leaf, on one chip of a v5e and sharded over 256, by jaxprune and by sorting.
- fire: the firing step of the 70B transformer of `scale_plan`, on 256 chips of a v5e and 4,096 of
  a v5p. The program contains a pass of the search once; `scale_plan` counts the passes.
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
from benchmarks.bench_sharding import JAXPRUNE, methods
from benchmarks.common import Case, Check, Row, version_of
from benchmarks.hlo import collectives_in

POD, LARGE_POD = "v5e:16x16", "v5p:16x16x16"
# A matrix, a kernel of a convolution, the embedding of a medium LSTM language model.
SHAPES = [(4096, 4096), (3, 3, 512, 512), (10_000, 650)]
SHARDED = (8192, 28_672)
_KEEP = 0.2
# The results that hold the number of passes.
_PASSES = Path(__file__).parent / "results" / "scale_plan-cpu.json"


def facts(case: str, topology: str, n_chips: int) -> Row:
    """The chips and the compiler of a program; part of every row."""
    compiler = f"libtpu {version_of('libtpu')}"
    return {"case": case, "topology": topology, "chips": n_chips, "compiler": compiler}


def chips(topology: str) -> Sequence[Any]:
    """The devices of a topology; the machine does not need to have them."""
    # Without this, libtpu looks for the metadata server of a TPU machine.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return topologies.get_topology_desc(topology, platform="tpu").devices


def masks(
    topology: str,
    shape: tuple[int, ...],
    dtype: str,
    spec: P | None = None,
    *,
    only_jaxprune: bool = False,
) -> list[Row]:
    """One row per method that masks a leaf, on one chip or sharded over all chips."""
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
    by_name = methods(round(_KEEP * size))
    for name, method in {JAXPRUNE: by_name[JAXPRUNE]}.items() if only_jaxprune else by_name.items():
        row = about | {"dtype": dtype, "method": name}
        try:
            program = jax.jit(method, out_shardings=sharding).lower(w).compile()
        except jax.errors.JaxRuntimeError as error:
            rows.append(row | {"error": str(error).splitlines()[0][:200]})
            continue
        collectives = collectives_in(program.as_text())
        n_temporary = program.memory_analysis().temp_size_in_bytes
        per_weight = n_temporary * devices.size / size
        kinds = sorted({kind for kind, _ in collectives})
        row |= {"temp_bytes": n_temporary, "temp_bytes_per_weight": per_weight}
        row |= {"bytes": sum(n for _, n in collectives), "kinds": kinds}
        rows.append(row)
    return rows


def fires(topology: str, layout: str, quick: bool) -> list[Row]:
    """The firing step of one layout of the 70B transformer."""
    layers, scale = (2, 16) if quick else (scale_plan.LAYERS, 1)
    devices = chips(topology)
    about = facts("fire", topology, len(devices)) | {"layout": layout, "layers": layers}
    return [about | scale_plan.compiled(layout, devices, layers, scale)]


def cases(quick: bool) -> list[Case]:
    """Masks of one leaf, then fires; only a note if libtpu is not installed."""
    if version_of("libtpu") is None:
        note = "libtpu is not installed: pip install 'jax[tpu]'"
        return [Case("note", lambda: [{"case": "note", "note": f"tpu: {note}"}])]
    all_cases = []
    for dtype in ("float32", "bfloat16"):
        for shape in SHAPES[:1] if quick else SHAPES:
            # A sort takes half a minute to compile, so only one shape is compared with sorting.
            compare = (shape, dtype) == (SHAPES[0], "float32")
            run = functools.partial(masks, "v5e:2x2", shape, dtype, only_jaxprune=not compare)
            all_cases.append(Case(f"mask {dtype} {shape}", run))
    if not quick:
        spec = P("data", "model")
        all_cases.append(Case("mask sharded", lambda: masks(POD, SHARDED, "bfloat16", spec)))
    layouts = [name for name in scale_plan.LAYOUTS if name.startswith("stacked")]
    for topology in (POD,) if quick else (POD, LARGE_POD):
        for layout in layouts[:1] if quick else layouts:
            run = functools.partial(fires, topology, layout, quick)
            all_cases.append(Case(f"fire {topology} {layout}", run))
    return all_cases


def checks(rows: Sequence[Row]) -> list[Check]:
    """Bytes per fire and pool, with as many passes as the slowest search in `scale_plan` took."""
    passes_rows = json.loads(_PASSES.read_text())["rows"]
    most_passes = max(r["passes"] for r in passes_rows if r["case"] == "passes")
    return [
        Check(
            f"bytes between chips per fire and pool, {r['layout']}, {r['topology']}",
            4096,
            scale_plan.bytes_of_a_fire(r, most_passes),
        )
        for r in rows
        if r["case"] == "fire"
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Memory and traffic of masks and of fires."""
    title = "A mask: temporary bytes per weight; bytes between chips, loops counted once"
    mask = Table(title=title)
    for column in ("leaf", "dtype", "chips", "method", "temporary", "bytes", "collectives"):
        mask.add_column(column, justify="right")
    for r in (r for r in rows if r["case"] == "mask"):
        shape = "x".join(map(str, r["shape"]))
        cells = shape, r["dtype"], f"{r['chips']:,}", r["method"]
        if "error" in r:
            mask.add_row(*cells, r["error"][:60], "", "")
            continue
        numbers = f"{r['temp_bytes_per_weight']:.2f}", f"{r['bytes']:,}"
        style = "bold" if r["method"] == JAXPRUNE else ""
        mask.add_row(*cells, *numbers, ", ".join(r["kinds"]), style=style)
    fire = Table(title="A fire: memory per chip, traffic between chips")
    for column in ("chips", "layout", "params", "masks", "temporary", "bytes/pass", "other bytes"):
        fire.add_column(column, justify="right")
    for r in (r for r in rows if r["case"] == "fire"):
        memory = [f"{r[k] / 2**20:,.1f} MiB" for k in ("param_bytes", "mask_bytes", "temp_bytes")]
        counts = f"{r['bytes_per_pass']:,}", f"{r['bytes_besides']:,}"
        fire.add_row(r["topology"], r["layout"], *memory, *counts)
    return [table for table in (mask, fire) if table.row_count]
