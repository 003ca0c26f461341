"""What LiteRT gains from blocks along the inputs of fully connected layers; a recipe of the docs.

An MLP of random weights is pruned, converted by `to_litert` of docs/payoff.md, checked against JAX,
and timed on one thread at batch 1. Needs `tensorflow-cpu` and `ai-edge-litert`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxprune
from benchmarks.common import Case, Check, Row, interleaved, version_of

DOCS = Path(__file__).parents[1] / "docs" / "payoff.md"
DENSE = "dense"
STRUCTURES = {
    "one by one": jaxprune.Unstructured(),
    "4x1 blocks": jaxprune.Block((4, 1)),
    "16x1 blocks": jaxprune.Block((16, 1)),
    "1x16 blocks": jaxprune.Block((1, 16)),
}
_PACKAGES = ("tensorflow-cpu", "ai-edge-litert")


def recipe() -> dict[str, Any]:
    """The functions that docs/payoff.md shows for LiteRT."""
    text = DOCS.read_text(encoding="utf-8")
    start = text.index("```python\nimport tensorflow")
    found: dict[str, Any] = {}
    exec(text[start + len("```python\n") : text.index("\n```", start)], found)
    return found


def mlp(params: Any, x: Any) -> Any:
    """Up, relu, down."""
    return jnp.maximum(x @ params["up"]["kernel"], 0) @ params["down"]["kernel"]


def mlp_params(d: int) -> Any:
    """Random kernels up to four times the width and down again."""
    rng = np.random.default_rng(0)
    shapes = {"up": (d, 4 * d), "down": (4 * d, d)}
    return {
        name: {"kernel": rng.standard_normal(s, np.float32) / np.float32(s[0]) ** 0.5}
        for name, s in shapes.items()
    }


def compare(d: int, sparsity: float) -> list[Row]:
    """The dense network and the pruned ones; sizes of the files and times."""
    if missing := [p for p in _PACKAGES if version_of(p) is None]:
        return [{"case": "note", "note": f"litert: {', '.join(missing)} is not installed"}]
    functions = recipe()
    full, x = mlp_params(d), np.random.default_rng(1).standard_normal((1, d), np.float32)
    made = {DENSE: full}
    for name, structure in STRUCTURES.items():
        found = jaxprune.prune_params(full, sparsity, structure=structure)[0]
        made[name] = jax.tree.map(np.asarray, found)
    files, calls = {}, {}
    for name, params in made.items():
        files[name] = functions["to_litert"](partial(mlp, params), x, sparse=name != DENSE)
        calls[name] = partial(functions["litert_runner"](files[name]), x)
        np.testing.assert_allclose(calls[name](), mlp(params, x), rtol=1e-4, atol=1e-4)
    times = interleaved(calls)
    about = {"case": "litert", "task": f"MLP {d}", "batch": 1, "cores": 1, "dtype": "float32"}
    return [
        about
        | {"sparsity": 0.0 if name == DENSE else sparsity, "method": name}
        | {**times[name]._asdict(), "bytes": len(files[name])}
        | {"x_dense": times[DENSE].median_ms / times[name].median_ms}
        | {"versions": {package: version_of(package) for package in _PACKAGES}}
        for name in made
    ]


def cases(quick: bool) -> list[Case]:
    """One network."""
    d, sparsities = (16, (0.5,)) if quick else (1024, (0.8, 0.9, 0.95))
    return [Case(f"litert {s:.0%}", partial(compare, d, s)) for s in sparsities]


def checks(rows: Sequence[Row]) -> list[Check]:
    """None: it is not ours."""
    del rows
    return []


def tables(rows: Sequence[Row]) -> list[Table]:
    """Times and sizes."""
    if not rows:
        return []
    table = Table(title="LiteRT, fully connected, one thread, batch 1")
    for column in ("network", "sparsity", "", "ms", "x dense", "MB"):
        table.add_column(column, justify="right")
    for r in rows:
        numbers = f"{r['median_ms']:.3f}", f"{r['x_dense']:.2f}", f"{r['bytes'] / 1e6:.2f}"
        table.add_row(r["task"], f"{r['sparsity']:.0%}", r["method"], *numbers)
    return [table]
