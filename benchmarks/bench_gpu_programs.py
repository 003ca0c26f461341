"""How much memory do programs hold on a GPU, and how many kernels do they start? Without a GPU.

XLA compiles for GPUs that the machine does not have: `pip install 'jaxprune[gpu-programs]'`, then
`JAX_PLATFORMS=cpu python -m benchmarks gpu_programs`. Nothing runs, so there are no times but those
of compiling. All other numbers are read from the compiled programs.

- mask: the mask of one leaf, given scores or `abs(w)`, and by sorting.
- step: a training step of each kind of pruning, given gradients. Its entry is the quiet step; a
  fire is two loops in it, one in the other, and a pass of the search is a loop in these.
  `quiet_extra` is how many kernels the entry has more than that of adamw alone.
- layer: Wanda, SparseGPT and `packed_matmul` of one kernel of 4096 x 11008.
- fire: the firing step of the 70B transformer of `scale_plan`, on 256 devices.

Devices are one or eight, on Auto and Explicit axes. `--target` compiles every program for an H100,
an A100 or a GPU described in a file, with both dtypes on all of these. Without it, a part of that
is compiled: what differs most on an H100, and float32 on an A100.

Bytes are for each weight that a device holds. The bytes of a pass follow from the shapes that its
kernels read and write. Without a GPU, XLA compiles `sort` to a slower algorithm with other scratch
memory than with one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import gpu_kinds, gpu_targets, scale_plan
from benchmarks.common import Case, Check, Row
from benchmarks.gpu_kinds import AUTO, EXPLICIT
from benchmarks.gpu_limits import worst_checks
from benchmarks.gpu_reading import about, place, rows_of, step_row
from benchmarks.gpu_targets import A100, H100, Target

_POD = 256
_PLACES = ((1, AUTO), (8, AUTO), (8, EXPLICIT), (1, EXPLICIT))
_ALL = tuple((dtype, *where) for dtype in ("float32", "bfloat16") for where in _PLACES)
_OTHERS = (("float32", 1, AUTO), ("float32", 8, EXPLICIT))
# For each target: dtype, number of devices and axes of its programs. `prepare` chooses another.
_chosen: dict[Target, Any] = {H100: (*_ALL[:3], ("bfloat16", 1, AUTO)), A100: _OTHERS}
# The results that hold the number of passes.
_PASSES = Path(__file__).parent / "results" / "scale_plan-cpu.json"


def prepare(target: str | None) -> str:
    """Chooses the target; returns why its programs can't be compiled here, "" if they can."""
    if target is not None:
        try:
            chosen = gpu_targets.target_named(target)
        except ValueError as error:
            return str(error)
        _chosen.clear()
        _chosen[chosen] = _ALL
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        return "gpu_programs: set JAX_PLATFORMS=cpu, so that jax does not start a GPU."
    return next(filter(None, map(gpu_targets.why_not, _chosen)), "")


# Cases


def masks(target: Target, n_devices: int, axes: Any, dtype: str, *, compare: bool) -> list[Row]:
    """Masks of one leaf; with `compare` by sorting, too."""
    where = place(target, n_devices, axes)
    programs = gpu_kinds.masks(where, dtype, sorting=compare)
    return rows_of("mask", programs, about("mask", target, where, dtype))


def layers(target: Target, dtype: str) -> list[Row]:
    """Programs of one kernel, on one device."""
    where = place(target, 1, AUTO)
    return rows_of("layer", gpu_kinds.layers(where, dtype), about("layer", target, where, dtype))


def fire(target: Target, layout: str) -> list[Row]:
    """The firing step of one layout of the 70B transformer."""
    devices = gpu_targets.devices(target, _POD)
    row = {"case": "fire", "target": target.name, "devices": len(devices), "layout": layout}
    start = time.perf_counter()
    row |= scale_plan.compiled(layout, devices, scale_plan.LAYERS)
    return [row | {"layers": scale_plan.LAYERS, "compile_s": time.perf_counter() - start}]


def cases(quick: bool) -> list[Case]:
    """Masks, then every kind of step, then single layers, then the plan of scale."""
    if quick:
        run = partial(step_row, H100, "unstructured", 1, AUTO, "float32")
        return [Case("step unstructured", lambda: [run()])]
    all_cases = []
    for target, combinations in _chosen.items():
        for dtype, n_devices, axes in combinations:
            all_cases += _cases_of(target, dtype, n_devices, axes)
    target = next(iter(_chosen))
    sorts = partial(masks, target, 8, AUTO, "float32", compare=True)
    all_cases.append(Case(f"sort {target.name} 8 Auto float32", lambda: sorts()[-3:]))
    layouts = [name for name in scale_plan.LAYOUTS if name.startswith("stacked")]
    return all_cases + [
        Case(f"fire {target.name} {layout}", partial(fire, target, layout)) for layout in layouts
    ]


def _cases_of(target: Target, dtype: str, n_devices: int, axes: Any) -> list[Case]:
    """Masks and every kind of step on one place; single layers, and sorts of float32, on one."""
    where = f"{target.name} {n_devices} {axes.name} {dtype}"
    is_one = (n_devices, axes) == (1, AUTO)
    compare = is_one and (target, dtype) == (H100, "float32")
    run = partial(masks, target, n_devices, axes, dtype, compare=compare)
    some_cases = [Case(f"mask {where}", run)]
    for kind in gpu_kinds.STEPS:
        if is_one or kind != "150 leaves":  # on eight devices it takes minutes to compile
            step = partial(step_row, target, kind, n_devices, axes, dtype)
            some_cases.append(Case(f"step {kind} {where}", lambda step=step: [step()]))
    if is_one:
        some_cases.append(Case(f"layer {where}", partial(layers, target, dtype)))
    return some_cases


# Targets and tables


def checks(rows: Sequence[Row]) -> list[Check]:
    """The limits, each with the worst program; bytes per fire and pool of the plan of scale."""
    passes = json.loads(_PASSES.read_text(encoding="utf-8"))["rows"]
    most_passes = max(r["passes"] for r in passes if r["case"] == "passes")
    return worst_checks([row for row in rows if row["case"] != "fire"]) + [
        Check(
            f"bytes between devices per fire and pool, {r['layout']}, {r['devices']} {r['target']}",
            4096,
            scale_plan.bytes_of_a_fire(r, most_passes),
        )
        for r in rows
        if r["case"] == "fire"
    ]


_PROGRAM_COLUMNS = ("program", "target", "devices", "dtype", "temporary", "entry", "extra", "fire")
_PROGRAM_COLUMNS += ("a pass", "reads", "writes", "all-reduces", "compiles in")


def tables(rows: Sequence[Row]) -> list[Table]:
    """All programs, then the fires of the plan of scale."""
    title = "Programs: bytes per weight; kernels of the entry, beyond adamw, of a fire, of a pass"
    programs = Table(title=title)
    for column in _PROGRAM_COLUMNS:
        programs.add_column(column, justify="right")
    for r in (r for r in rows if r["case"] != "fire"):
        programs.add_row(*_cells(r))
    fires = Table(title="A fire of 70B weights: memory per device, traffic between devices")
    for column in ("devices", "layout", "params", "masks", "temporary", "bytes/pass", "other"):
        fires.add_column(column, justify="right")
    for r in (r for r in rows if r["case"] == "fire"):
        memory = [f"{r[k] / 2**20:,.1f} MiB" for k in ("param_bytes", "mask_bytes", "temp_bytes")]
        traffic = f"{r['bytes_per_pass']:,}", f"{r['bytes_besides']:,}"
        fires.add_row(f"{r['devices']} {r['target']}", r["layout"], *memory, *traffic)
    return [table for table in (programs, fires) if table.row_count]


def _cells(r: Row) -> tuple[str, ...]:
    program = r["kind"], r["target"], f"{r['devices']} {r['axes']}", r["dtype"]
    if "error" in r:
        return (*program, r["error"][:40])
    is_step, has_pass = r["case"] == "step", r["searches"] > 0
    return (
        *program,
        f"{r['temp_per_weight']:.2f}",
        str(r["entry_kernels"]),
        f"{r['quiet_extra']:+d}" if is_step else "",
        str(r["fire_kernels"]) if is_step else "",
        str(r["pass_kernels"]) if has_pass else "",
        f"{r['pass_read_per_weight']:.2f}" if has_pass else "",
        f"{r['pass_written_per_weight']:.2f}" if has_pass else "",
        str(r["pass_collectives"]) if has_pass else "",
        f"{r['compile_s']:.1f} s",
    )
