"""How much faster does LiteRT run fully connected layers that are pruned in blocks?

A random MLP is pruned, converted with the recipe `to_litert` of docs/payoff.md, compared with JAX,
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
    """Runs the LiteRT code of docs/payoff.md and returns the functions that it defines."""
    text = DOCS.read_text(encoding="utf-8")
    start = text.index("```python\nimport tensorflow")
    functions: dict[str, Any] = {}
    exec(text[start + len("```python\n") : text.index("\n```", start)], functions)
    return functions


def mlp(params: Any, x: Any) -> Any:
    """Two dense layers with ReLU between them."""
    return jnp.maximum(x @ params["up"]["kernel"], 0) @ params["down"]["kernel"]


def mlp_params(d: int) -> Any:
    """Random kernels of the two layers; the hidden layer is four times as wide."""
    rng = np.random.default_rng(0)
    shapes = {"up": (d, 4 * d), "down": (4 * d, d)}
    return {
        name: {"kernel": rng.standard_normal(s, np.float32) / np.float32(s[0]) ** 0.5}
        for name, s in shapes.items()
    }


def compare(d: int, sparsity: float) -> list[Row]:
    """File size and time of the dense network, and of one pruned network per structure."""
    if missing := [p for p in _PACKAGES if version_of(p) is None]:
        return [{"case": "note", "note": f"litert is skipped: not installed: {', '.join(missing)}"}]
    litert = recipe()
    dense_params, x = mlp_params(d), np.random.default_rng(1).standard_normal((1, d), np.float32)
    networks = {DENSE: dense_params}
    for name, structure in STRUCTURES.items():
        pruned = jaxprune.prune_params(dense_params, sparsity, structure=structure)[0]
        networks[name] = jax.tree.map(np.asarray, pruned)
    files, calls = {}, {}
    for name, params in networks.items():
        files[name] = litert["to_litert"](partial(mlp, params), x, sparse=name != DENSE)
        calls[name] = partial(litert["litert_runner"](files[name]), x)
        np.testing.assert_allclose(calls[name](), mlp(params, x), rtol=1e-4, atol=1e-4)
    times = interleaved(calls)
    about = {"case": "litert", "task": f"MLP {d}", "batch": 1, "cores": 1, "dtype": "float32"}
    return [
        about
        | {"sparsity": 0.0 if name == DENSE else sparsity, "method": name}
        | {**times[name]._asdict(), "bytes": len(files[name])}
        | {"x_dense": times[DENSE].median_ms / times[name].median_ms}
        | {"versions": {package: version_of(package) for package in _PACKAGES}}
        for name in networks
    ]


def cases(quick: bool) -> list[Case]:
    """One case per sparsity."""
    d, sparsities = (16, (0.5,)) if quick else (1024, (0.8, 0.9, 0.95))
    return [Case(f"litert {s:.0%}", partial(compare, d, s)) for s in sparsities]


def checks(rows: Sequence[Row]) -> list[Check]:
    """No targets: the speed of LiteRT does not depend on jaxprune."""
    del rows
    return []


def tables(rows: Sequence[Row]) -> list[Table]:
    """Times, and sizes of the files."""
    if not rows:
        return []
    table = Table(title="LiteRT, fully connected, one thread, batch 1")
    for column in ("network", "sparsity", "", "ms", "x dense", "MB"):
        table.add_column(column, justify="right")
    for r in rows:
        numbers = f"{r['median_ms']:.3f}", f"{r['x_dense']:.2f}", f"{r['bytes'] / 1e6:.2f}"
        table.add_row(r["task"], f"{r['sparsity']:.0%}", r["method"], *numbers)
    return [table]
