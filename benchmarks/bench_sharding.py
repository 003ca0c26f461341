"""How many bytes cross devices when a sharded leaf is masked, and how long does it take?

There are 8 devices. Each method gets weights sharded along one axis or two, and returns a mask of
the largest magnitudes with the same sharding. Bytes are summed over the results of all collectives
in the compiled program. A collective in a loop counts once: the search of jaxprune loops once to a
few dozen times, the other methods have no loops. Simulated devices share the cores of one machine,
so times only rank the methods.

JAX fixes the number of devices when it starts. If this process has fewer than 8, another process
measures the rows.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from rich.table import Table

import jaxprune
from benchmarks.common import Case, Check, Row, interleaved
from benchmarks.hlo import collectives_in
from benchmarks.topk_oracle import judge, oracle, weights

N_DEVICES = 8
JAXPRUNE = "jaxprune"
LAYOUTS = {"rows": P(("data", "model")), "columns": P(None, ("data", "model"))}
LAYOUTS |= {"both": P("data", "model")}


def methods(n_keep: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """The methods to compare, by name: functions from weights to a mask."""

    def argsort(w: jax.Array) -> jax.Array:
        order = jnp.argsort(-jnp.abs(w).reshape(-1), stable=True)
        return jnp.zeros(w.size, bool).at[order[:n_keep]].set(True).reshape(w.shape)

    def sort(w: jax.Array) -> jax.Array:
        return jnp.abs(w) >= jnp.sort(jnp.abs(w).reshape(-1))[w.size - n_keep]

    def top_k(w: jax.Array) -> jax.Array:
        _, indices = jax.lax.top_k(jnp.abs(w).reshape(-1), n_keep)
        return jnp.zeros(w.size, bool).at[indices].set(True).reshape(w.shape)

    def topk_mask(w: jax.Array) -> jax.Array:
        return jaxprune.topk_mask(jnp.abs(w), n_keep)

    return {JAXPRUNE: topk_mask, "argsort": argsort, "sort": sort, "top_k": top_k}


def compare(layout: str, n: int, keep: float = 0.2) -> list[Row]:
    """Checks and times each method on one layout; one row per method. Needs 8 devices."""
    devices = np.array(jax.devices()[:N_DEVICES]).reshape(4, 2)
    mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, LAYOUTS[layout])
    host = weights("normal", n).reshape(math.isqrt(n), -1)
    n_keep = round(keep * n)
    w, expected = jax.device_put(host, sharding), oracle(host, n_keep)
    programs: dict[str, Any] = {
        name: jax.jit(method, out_shardings=sharding).lower(w).compile()
        for name, method in methods(n_keep).items()
    }
    answers = {
        name: judge(np.asarray(program(w)), host, expected) for name, program in programs.items()
    }
    if "wrong" in answers.values() or answers[JAXPRUNE] != "exact":
        raise AssertionError(f"{layout}: jaxprune must be exact and no mask wrong, got {answers}")
    times = interleaved(
        {name: lambda program=program: program(w) for name, program in programs.items()}
    )
    rows = []
    for name, program in programs.items():
        collectives = collectives_in(program.as_text())
        row = {"case": "sharding", "layout": layout, "n": n, "devices": N_DEVICES, "method": name}
        row |= {"answer": answers[name], "collectives": len(collectives)}
        row |= {
            "bytes": sum(n_bytes for _, n_bytes in collectives),
            "kinds": sorted({k for k, _ in collectives}),
        }
        row |= {"x_ours": times[name].median_ms / times[JAXPRUNE].median_ms}
        rows.append(row | times[name]._asdict())
    return rows


def measured(layout: str, n: int) -> list[Row]:
    """Runs `compare`, in a new process with 8 simulated devices if this one has fewer."""
    if jax.device_count() >= N_DEVICES:
        return compare(layout, n)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={N_DEVICES}"
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_sharding", layout, str(n)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if result.returncode:
        raise RuntimeError(f"{layout}: the process with 8 devices failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def cases(quick: bool) -> list[Case]:
    """One case per layout."""
    n = 2**14 if quick else 2**20
    return [
        Case(f"sharding {layout}", lambda layout=layout: measured(layout, n)) for layout in LAYOUTS
    ]


def checks(rows: Sequence[Row]) -> list[Check]:
    """jaxprune sends counts only, never a leaf."""
    own_rows = [r for r in rows if r["method"] == JAXPRUNE]
    return [
        Check(f"bytes between devices, loops counted once, {r['layout']}", 4096, r["bytes"])
        for r in own_rows
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Collectives, bytes and times by layout and method."""
    table = Table(title="Sharding")
    for column in ("layout", "weights", "", "answer", "collectives", "bytes", "ms", "x jaxprune"):
        table.add_column(column, justify="right")
    for r in rows:
        facts = f"{r['n']:.0e}", r["method"], r["answer"], str(r["collectives"])
        numbers = f"{r['bytes']:,}", f"{r['median_ms']:.2f}", f"{r['x_ours']:.2f}"
        table.add_row(r["layout"], *facts, *numbers)
    return [table] if rows else []


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1], int(sys.argv[2]))))
