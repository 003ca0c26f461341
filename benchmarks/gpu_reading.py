"""Compiles one program for a GPU and reads from it: memory, kernels, bytes moved, collectives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import gpu_kinds, gpu_targets
from benchmarks.common import Row, version_of
from benchmarks.gpu_kinds import Place, Program
from benchmarks.gpu_targets import OPTIONS, PLUGINS, Target
from benchmarks.hlo import LOOPS_AROUND_A_PASS, collectives_in, large_copies
from benchmarks.hlo_kernels import Region, regions, workspace


class Compiled(NamedTuple):
    """A compiled program: its HLO text, its temporary bytes, and the seconds that it took."""

    hlo: str
    temp_bytes: int
    trace_s: float
    compile_s: float


def place(target: Target, n_devices: int, axes: Any) -> Place:
    """A mesh of devices of a target."""
    return gpu_kinds.place(gpu_targets.devices(target, n_devices), axes)


def compiled(program: Program) -> Compiled:
    """Compiles a program for the devices on which its arguments are placed."""
    start = time.perf_counter()
    traced = jax.jit(program.function, donate_argnums=program.donated).trace(*program.arguments)
    lowered = traced.lower(lowering_platforms=("cuda",))
    middle = time.perf_counter()
    executable = lowered.compile(compiler_options=OPTIONS)
    seconds = middle - start, time.perf_counter() - middle
    n_temporary = executable.memory_analysis().temp_size_in_bytes
    return Compiled(executable.as_text(), n_temporary, *seconds)


def about(case: str, target: Target, where: Place, dtype: str) -> Row:
    """What every row says of its program: target, devices, dtype and compiler."""
    compiler = next((f"{p} {version}" for p in PLUGINS if (version := version_of(p))), "")
    row = {"case": case, "target": target.name, "devices": where.n_devices, "axes": where.axes}
    return row | {"dtype": dtype, "item_bytes": jnp.dtype(dtype).itemsize, "compiler": compiler}


def numbers(built: Compiled, program: Program) -> Row:
    """What a compiled program holds, moves and starts; bytes "per weight" are per local weight.

    The scratch memory of a library, 32 MiB for a matrix product, is not counted as its own.
    """
    n, collectives = program.n_weights, collectives_in(built.hlo)
    row: Row = {"weights": n, "trace_s": built.trace_s, "compile_s": built.compile_s}
    all_regions = regions(built.hlo)
    scratch = workspace(all_regions)
    row |= {"temp_bytes": built.temp_bytes, "workspace_bytes": scratch}
    row["temp_per_weight"] = (built.temp_bytes - scratch) / n
    row["collectives"] = sorted({kind for kind, _ in collectives})
    row["gathered"] = sum(size for kind, size in collectives if kind != "all-reduce")
    return row | _by_region(all_regions, program)


def _by_region(all_regions: Sequence[Region], program: Program) -> Row:
    """Kernels and bytes of the entry, of the trip of a fire, and of a pass of the search.

    In a step a pass is a loop in the loops of the fire, and elsewhere the innermost loop. There may
    be a search among keys and one among ties: each number of a pass is the larger one.
    """
    most = partial(max, default=0)
    deepest = max(region.depth for region in all_regions)
    pass_depth = LOOPS_AROUND_A_PASS if program.is_step else max(deepest, 1)
    passes = [r for r in all_regions if r.depth >= pass_depth]
    fire = [r for r in all_regions if 0 < r.depth < pass_depth] if program.is_step else []
    n = program.n_weights
    return {
        "entry_kernels": len(all_regions[0].kernels),
        "fire_kernels": sum(len(r.kernels) for r in fire),
        "fire_bytes_per_weight": sum(r.n_read + r.n_written for r in fire) / n,
        "searches": len(passes),
        "pass_kernels": most(len(r.kernels) for r in passes),
        "pass_read_per_weight": most(r.n_read / n for r in passes),
        "pass_written_per_weight": most(r.n_written / n for r in passes),
        "pass_collectives": most(len(r.collectives) for r in passes),
        "pass_collective_bytes": most(sum(k for _, k in r.collectives) for r in passes),
    }


def step_row(target: Target, kind: str, n_devices: int, axes: Any, dtype: str) -> Row:
    """The training step of one kind, next to that of adamw alone."""
    where = place(target, n_devices, axes)
    program = gpu_kinds.step(kind, where, dtype)
    built = compiled(program)
    n_leaves = len(program.arguments[0])
    row = about("step", target, where, dtype) | {"kind": kind, "leaves": n_leaves}
    row |= numbers(built, program)
    with_params = "unstructured" if gpu_kinds.is_usual(kind) else kind
    alone = _alone(target, with_params, n_devices, axes, dtype)
    # A mask of one bit has an eighth of the entries of its leaf.
    row["copies"] = len(large_copies(built.hlo, program.n_weights // n_leaves // 8))
    row["quiet_extra"] = row["entry_kernels"] - alone
    return row


@cache
def _alone(target: Target, kind: str, n_devices: int, axes: Any, dtype: str) -> int:
    """Kernels of the step of adamw alone, with the params of a kind."""
    program = gpu_kinds.reference(kind, place(target, n_devices, axes), dtype)
    return len(regions(compiled(program).hlo)[0].kernels)


def rows_of(case: str, programs: dict[str, Program], known: Row) -> list[Row]:
    """One row per program; with the reason where one can't be compiled: sorts on Explicit axes."""
    rows = []
    for kind, program in programs.items():
        row = known | {"case": case, "kind": kind}
        try:
            rows.append(row | numbers(compiled(program), program))
        except (jax.errors.JaxRuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            rows.append(row | {"error": f"{type(error).__name__}: {reason}"[:200]})
    return rows
