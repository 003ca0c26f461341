"""How much faster is a pruned network to run, in plain JAX?

One step of an LSTM language model (two layers, softmax over 10,000 words) and an MLP as in a
transformer's feed-forward part, at batch 1, 8 and 32. The weights are random and pruned by
magnitude in blocks of 16 outputs, equally many in every column of blocks: speed does not depend on
what they have learned. (Quality does. This says nothing of it.)

Compared with the better of two dense JAX products, `x @ w` and `w @ x`, with SciPy's CSR, and with
torch where it is installed; on one core and on all. Each is timed warm, called again and again, and
cold, after reading 256 MB of something else, as a model finds the caches where it shares a machine.
What each computes is compared with the dense network first. NumPy is left out: its threads can't be
kept to one core from here.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxprune
from benchmarks.common import Call, Case, Check, Row, cores, interleaved
from jaxprune.blocks import pack_matrix, packed_matmul

WIDTH = 16
PACKED, DENSE = "packed 1x16", ("jax x @ w", "jax w @ x")
_FLUSH_BYTES = 2**28
_COLD_ROUNDS = 15  # of one call each

Weights = Mapping[str, np.ndarray]
Product = Callable[[Any, Any], Any]


# Networks: weights, inputs, and a step in terms of a product


def lstm_weights(d: int, n_words: int) -> dict[str, np.ndarray]:
    """Kernels of two layers and of the softmax."""
    rng = np.random.default_rng(0)
    shapes = {"cell0": (2 * d, 4 * d), "cell1": (2 * d, 4 * d), "softmax": (d, n_words)}
    return {name: _normal(rng, *shape) for name, shape in shapes.items()}


def lstm_inputs(d: int, batch: int) -> list[np.ndarray]:
    """The embedding of a word, and h and c of both layers."""
    rng = np.random.default_rng(1)
    return [rng.standard_normal((batch, d), np.float32) for _ in range(5)]


def lstm(xp: Any, product: Product, weights: Any, inputs: Any) -> Any:
    """Logits of the next word, in NumPy or JAX."""
    x, *state = inputs
    for i in range(2):
        h, c = state[2 * i : 2 * i + 2]
        gates = product(weights[f"cell{i}"], xp.concatenate([x, h], -1))
        i_gate, f_gate, g, o_gate = xp.split(gates, 4, -1)
        c = _sigmoid(xp, f_gate) * c + _sigmoid(xp, i_gate) * xp.tanh(g)
        x = _sigmoid(xp, o_gate) * xp.tanh(c)
    return product(weights["softmax"], x)


def mlp_weights(d: int) -> dict[str, np.ndarray]:
    """Kernels up to four times the width and down again."""
    rng = np.random.default_rng(0)
    return {"up": _normal(rng, d, 4 * d), "down": _normal(rng, 4 * d, d)}


def mlp_inputs(d: int, batch: int) -> list[np.ndarray]:
    """One activation."""
    return [np.random.default_rng(1).standard_normal((batch, d), np.float32)]


def mlp(xp: Any, product: Product, weights: Any, inputs: Any) -> Any:
    """Up, relu, down, in NumPy or JAX."""
    return product(weights["down"], xp.maximum(product(weights["up"], inputs[0]), 0))


def _sigmoid(xp: Any, x: Any) -> Any:
    return 0.5 * xp.tanh(0.5 * x) + 0.5


def _normal(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
    return rng.standard_normal((n_in, n_out), np.float32) / np.float32(n_in) ** 0.5


def pruned(weights: Weights, sparsity: float) -> dict[str, np.ndarray]:
    """The weights with balanced blocks of `WIDTH` outputs kept."""
    structure = jaxprune.Block((1, WIDTH), balanced=True)
    found, _ = jaxprune.prune_params(dict(weights), sparsity, structure=structure)
    return {name: np.asarray(w) for name, w in found.items()}  # pyright: ignore


# Ways to run them


def jax_way(step: Any, product: Product, weights: Any, inputs: Any) -> Callable[[], Any]:
    """The network in JAX, jitted; weights are arguments, or XLA would fold them."""
    jitted = jax.jit(functools.partial(step, jnp, product))
    operands = jax.tree.map(jnp.asarray, (weights, inputs))
    return lambda: jitted(*operands)


def ways(step: Any, weights: Weights, inputs: Any, threads: int) -> dict[str, Callable[[], Any]]:
    """What is compared, by name."""
    batch = len(inputs[0])
    turned = {name: np.ascontiguousarray(w.T) for name, w in weights.items()}
    packed = {name: pack_matrix(w, block=(1, WIDTH), batch=batch) for name, w in weights.items()}
    found = {
        DENSE[0]: jax_way(step, lambda w, x: x @ w, weights, inputs),
        DENSE[1]: jax_way(step, lambda w, x: (w @ x.T).T, turned, inputs),
        PACKED: jax_way(step, packed_matmul, packed, inputs),
    }
    return found | _scipy_way(step, turned, inputs) | _torch_ways(step, turned, inputs, threads)


def _scipy_way(step: Any, turned: Weights, inputs: Any) -> dict[str, Callable[[], Any]]:
    try:
        from scipy import sparse
    except ImportError:
        return {}
    csr = {name: sparse.csr_array(w) for name, w in turned.items()}

    def product(w: Any, x: Any) -> Any:
        return (w @ x[0])[None] if len(x) == 1 else (w @ x.T).T

    return {"scipy CSR": lambda: step(np, product, csr, inputs)}


def _torch_ways(
    step: Any, turned: Weights, inputs: Any, threads: int
) -> dict[str, Callable[[], Any]]:
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    dense = {name: torch.from_numpy(w) for name, w in turned.items()}
    csr = {name: w.to_sparse_csr() for name, w in dense.items()}
    found = [torch.from_numpy(x) for x in inputs]

    def run(weights: Any, product: Product) -> Any:
        with torch.inference_mode():
            return step(_TorchNames(torch), product, weights, found)

    return {
        "torch dense": lambda: run(dense, lambda w, x: torch.nn.functional.linear(x, w)),
        "torch CSR": lambda: run(csr, lambda w, x: (w @ x.T).T),
    }


class _TorchNames:
    """The functions that the networks use, by NumPy's names."""

    def __init__(self, torch: Any):
        self.tanh = torch.tanh
        self.concatenate = torch.cat
        self.split = lambda x, n, axis: torch.chunk(x, n, axis)
        self.maximum = lambda x, low: torch.clamp(x, min=low)


# Cases


def compare(
    task: str, step: Any, weights: Weights, inputs: Any, sparsity: float, count: int
) -> list[Row]:
    """One network at one sparsity, on so many cores; one row for each way."""
    rows = []
    with cores(count) as got:
        made = ways(step, pruned(weights, sparsity), inputs, got)
        right = np.asarray(made[DENSE[0]]())
        for name, call in made.items():
            np.testing.assert_allclose(
                np.asarray(call()), right, rtol=1e-3, atol=1e-3, err_msg=name
            )
        warm = interleaved(made)
        junk = np.ones(_FLUSH_BYTES // 8)
        flushed = {name: Call(call, junk.sum, most=1) for name, call in made.items()}
        cold = interleaved(flushed, rounds=_COLD_ROUNDS)
    best = {state: min(t[name].median_ms for name in DENSE) for state, t in _both(warm, cold)}
    size = {"case": "inference", "task": task, "batch": len(inputs[0]), "sparsity": sparsity}
    for name in made:
        row = size | {"cores": got, "dtype": "float32", "method": name}
        row |= {**warm[name]._asdict(), "cold_ms": cold[name].median_ms}
        row |= {f"x_{s}": best[s] / t[name].median_ms for s, t in _both(warm, cold)}
        rows.append(row)
    gc.collect()
    return rows


def _both(warm: Any, cold: Any) -> list[tuple[str, Any]]:
    return [("warm", warm), ("cold", cold)]


def cases(quick: bool) -> list[Case]:
    """Every network, batch and sparsity, on one core, then on all."""
    lstms = {16: 64} if quick else {650: 10_000, 1500: 10_000}
    d_mlp = 16 if quick else 1024
    tasks: list[tuple[str, Any, Any, Any]] = [
        (f"LSTM 2 x {d}", lstm, functools.partial(lstm_weights, d, n_words), (lstm_inputs, d))
        for d, n_words in lstms.items()
    ]
    tasks.append((f"MLP {d_mlp}", mlp, functools.partial(mlp_weights, d_mlp), (mlp_inputs, d_mlp)))
    found = []
    for count in (1,) if quick else (1, 64):
        for task, step, make, (inputs, d) in tasks:
            for sparsity in (0.9,) if quick else (0.8, 0.9, 0.95):
                for batch in (1, 8) if quick else (1, 8, 32):
                    run = functools.partial(_case, task, step, make, inputs, d)
                    name = f"inference {task} batch {batch} {sparsity:.0%} "
                    name += "one core" if count == 1 else "all cores"
                    found.append(Case(name, functools.partial(run, batch, sparsity, count)))
    return found


def _case(
    task: str, step: Any, make: Any, inputs: Any, d: int, batch: int, sparsity: float, count: int
) -> list[Row]:
    return compare(task, step, make(), inputs(d, batch), sparsity, count)


def checks(rows: Sequence[Row]) -> list[Check]:
    """The targets that the rows can tell about: batch 1, one core, 90 %."""
    found = []
    for r in rows:
        if (r["method"], r["batch"], r["sparsity"], r["cores"]) != (PACKED, 1, 0.9, 1):
            continue
        if r["task"] in ("LSTM 2 x 650", "LSTM 2 x 1500"):
            for state, limit in {"cold": 5.0, "warm": 8.0}.items():
                what = f"best dense JAX / packed, {r['task']} at 90%, batch 1, one core, {state}"
                found.append(Check(what, limit, r[f"x_{state}"], at_least=True))
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """What a person reads: milliseconds, and how many times faster than the best dense JAX."""
    table = Table(title="Inference")
    columns = ("network", "cores", "batch", "sparsity", "", "warm ms", "x dense", "cold ms")
    for column in (*columns, "x dense, cold"):
        table.add_column(column, justify="right")
    for r in rows:
        numbers = f"{r['median_ms']:.3f}", f"{r['x_warm']:.2f}", f"{r['cold_ms']:.3f}"
        case = r["task"], str(r["cores"]), str(r["batch"]), f"{r['sparsity']:.0%}"
        table.add_row(*case, r["method"], *numbers, f"{r['x_cold']:.2f}")
    return [table] if rows else []
