"""What crosses devices when a sharded leaf is masked, and what that costs, on 8 devices?

Each method gets weights sharded along one axis or two and returns a mask of the largest magnitudes
with the same sharding. Bytes are those of the results of all collectives in the compiled program.
What is in a loop counts once there: our search runs one to a few dozen such passes, the others have
none. Simulated devices share the cores of one machine, so that times only rank the methods.

The number of devices is fixed when JAX starts. Where this process has fewer than 8, the rows are
measured in another one.
"""

from __future__ import annotations

import json
import math
import os
import re
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
from benchmarks.bench_select import judge, oracle, weights
from benchmarks.common import Case, Check, Row, interleaved

N_DEVICES = 8
OURS = "jaxprune"
LAYOUTS = {"rows": P(("data", "model")), "columns": P(None, ("data", "model"))}
LAYOUTS |= {"both": P("data", "model")}
_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
_ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}


def methods(n_keep: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """What is compared: weights -> mask."""

    def argsort(w: jax.Array) -> jax.Array:
        order = jnp.argsort(-jnp.abs(w).reshape(-1), stable=True)
        return jnp.zeros(w.size, bool).at[order[:n_keep]].set(True).reshape(w.shape)

    def sort(w: jax.Array) -> jax.Array:
        return jnp.abs(w) >= jnp.sort(jnp.abs(w).reshape(-1))[w.size - n_keep]

    def top_k(w: jax.Array) -> jax.Array:
        _, indices = jax.lax.top_k(jnp.abs(w).reshape(-1), n_keep)
        return jnp.zeros(w.size, bool).at[indices].set(True).reshape(w.shape)

    def ours(w: jax.Array) -> jax.Array:
        return jaxprune.topk_mask(jnp.abs(w), n_keep)

    return {OURS: ours, "argsort": argsort, "sort": sort, "top_k": top_k}


def crossings(hlo: str) -> list[tuple[str, int]]:
    """Kind and bytes of the result of every collective in the text of a compiled program."""
    found = []
    for line in hlo.splitlines():
        if match := _COLLECTIVE.search(line):
            arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", match[1])
            n_bytes = 0
            for dtype, shape in arrays:
                item = 1 if dtype in ("s8", "u8") else _ITEM_BYTES.get(dtype, 4)
                n_bytes += item * math.prod(int(n) for n in shape.split(",") if n)
            found.append((match[2], n_bytes))
    return found


def compare(layout: str, n: int, keep: float = 0.2) -> list[Row]:
    """Checks, then times each method on one layout; one row each. Needs 8 devices."""
    devices = np.array(jax.devices()[:N_DEVICES]).reshape(4, 2)
    mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, LAYOUTS[layout])
    host = weights("normal", n).reshape(math.isqrt(n), -1)
    n_keep = round(keep * n)
    w, right = jax.device_put(host, sharding), oracle(host, n_keep)
    made: dict[str, Any] = {
        name: jax.jit(method, out_shardings=sharding).lower(w).compile()
        for name, method in methods(n_keep).items()
    }
    answers = {name: judge(np.asarray(call(w)), host, right) for name, call in made.items()}
    if "wrong" in answers.values() or answers[OURS] != "exact":
        raise AssertionError(f"{layout}: a mask is not right: {answers}")
    times = interleaved({name: lambda call=call: call(w) for name, call in made.items()})
    rows = []
    for name, call in made.items():
        found = crossings(call.as_text())
        row = {"case": "sharding", "layout": layout, "n": n, "devices": N_DEVICES, "method": name}
        row |= {"answer": answers[name], "collectives": len(found)}
        row |= {
            "bytes": sum(n_bytes for _, n_bytes in found),
            "kinds": sorted({k for k, _ in found}),
        }
        row |= {"x_ours": times[name].median_ms / times[OURS].median_ms}
        rows.append(row | times[name]._asdict())
    return rows


def measured(layout: str, n: int) -> list[Row]:
    """`compare`, in a process of 8 devices where this one has fewer."""
    if jax.device_count() >= N_DEVICES:
        return compare(layout, n)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={N_DEVICES}"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_sharding", layout, str(n)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"{layout}: the process of 8 devices failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def cases(quick: bool) -> list[Case]:
    """One per layout."""
    n = 2**14 if quick else 2**20
    return [
        Case(f"sharding {layout}", lambda layout=layout: measured(layout, n)) for layout in LAYOUTS
    ]


def checks(rows: Sequence[Row]) -> list[Check]:
    """Ours moves counts only."""
    ours = [r for r in rows if r["method"] == OURS]
    return [
        Check(f"bytes between devices, its loop once, {r['layout']}", 4096, r["bytes"])
        for r in ours
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    """What a person reads."""
    table = Table(title="Sharding")
    for column in ("layout", "weights", "", "answer", "collectives", "bytes", "ms", "x ours"):
        table.add_column(column, justify="right")
    for r in rows:
        facts = f"{r['n']:.0e}", r["method"], r["answer"], str(r["collectives"])
        numbers = f"{r['bytes']:,}", f"{r['median_ms']:.2f}", f"{r['x_ours']:.2f}"
        table.add_row(r["layout"], *facts, *numbers)
    return [table] if rows else []


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1], int(sys.argv[2]))))
