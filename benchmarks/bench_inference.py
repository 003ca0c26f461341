"""How much faster is a pruned network to run?

One step of an LSTM language model (two layers, softmax over 10,000 words) and the feed-forward part
of a transformer, at batch 1, 8 and 32, on one core and on all. Against the best of the dense ones
(JAX as `x @ w` and as `w @ x`, onnxruntime, torch, NumPy): blocks of 8, 16 and 32 outputs with
`packed_matmul`, CSR of SciPy and of torch with weights dropped one by one, and the dense network
that is left when whole units go, of as many weights. On one network also what does not pay: BCOO
of JAX, and bfloat16.

Each is timed warm, called again and again, and cold, after reading 128 MB of something else, as a
model finds the caches where it shares a machine. What each computes is compared first with a dense
NumPy product of the weights that it was given. On CPUs every network and sparsity has a process of
its own, which sees one core or all from its start: that is how every library is held to them.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxprune
from benchmarks.common import Call, Case, Check, Row, interleaved, n_cores
from benchmarks.networks import (
    Network,
    Product,
    Weights,
    inputs_of,
    lstm_network,
    mlp_network,
    part_left,
    pruned,
    weights_of,
)
from benchmarks.onnx_graphs import onnx_runs
from jaxprune._blocks.packed_matrix import pack_matrix, packed_matmul

WIDTHS = (8, 16, 32)
DENSE = ("jax x @ w", "jax w @ x", "onnxruntime", "torch", "numpy")
PACKED = tuple(f"packed 1x{width}" for width in WIDTHS)
NARROW = "narrower dense"
METHODS = (*DENSE, *PACKED, "scipy CSR", "torch CSR", NARROW, "jax BCOO", "jax bfloat16")
SPARSITIES = (0.8, 0.9, 0.95)
BATCHES = (1, 8, 32)
_LOSSES_OF = "LSTM 2 x 650"
_HEADLINE = "packed 1x16"
_FLUSH_BYTES = 2**27
_COLD_ROUNDS = 11  # of one call each
_TURNED = f"{NARROW}, w @ x"

Way = Callable[[], Any]
Runs = Callable[[Any], Way]  # of inputs
Make = Callable[[Network, Weights], Runs]


def networks(quick: bool) -> dict[str, Network]:
    """What is timed, by name; the first two are those of the quality study."""
    found = [lstm_network(80, 97, embed=40), lstm_network(320, 97, embed=160)]
    if quick:
        found = [lstm_network(16, 64), mlp_network(16)]
    else:
        found += [lstm_network(650, 10_000), lstm_network(1500, 10_000), mlp_network(1024)]
    return {network.name: network for network in found}


# Ways to run a network: what is done once with the weights, then for inputs of each batch


def jax_dense(product: Product, network: Network, weights: Any) -> Runs:
    """In JAX, jitted; weights are arguments, or XLA would fold them."""
    jitted = jax.jit(partial(network.step, jnp, product))
    weights = jax.tree.map(jnp.asarray, weights)

    def on(inputs: Any) -> Way:
        inputs = jax.tree.map(jnp.asarray, inputs)
        return lambda: jitted(weights, inputs)

    return on


def dense(network: Network, weights: Weights) -> Runs:
    """As Flax has the kernels."""
    return jax_dense(lambda w, x: x @ w, network, weights)


def dense_turned(network: Network, weights: Weights) -> Runs:
    """Kernels transposed."""
    return jax_dense(lambda w, x: (w @ x.T).T, network, _turned(weights))


def packed(width: int, network: Network, weights: Weights) -> Runs:
    """The kept blocks alone, in the layout for the batch."""

    @functools.cache
    def runs(batch: int) -> Runs:
        block = (1, width)
        kernels = {name: pack_matrix(w, block=block, batch=batch) for name, w in weights.items()}
        return jax_dense(packed_matmul, network, kernels)

    return lambda inputs: runs(min(len(inputs[0]), 8))(inputs)


def bcoo(network: Network, weights: Weights) -> Runs:
    """JAX's own sparse matrices."""
    return jax_dense(lambda w, x: (w @ x.T).T, network, jaxprune.to_bcoo(_turned(weights)))


def in_bfloat16(network: Network, weights: Weights) -> Runs:
    """Dense, all in bfloat16."""
    runs = dense(network, jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), weights))
    return lambda inputs: runs([jnp.asarray(x, jnp.bfloat16) for x in inputs])


def scipy_csr(network: Network, weights: Weights) -> Runs:
    """CSR of the transposed kernels; SciPy has one thread."""
    from scipy import sparse

    csr = {name: sparse.csr_array(w.T) for name, w in weights.items()}

    def product(w: Any, x: Any) -> Any:
        return (w @ x[0])[None] if len(x) == 1 else (w @ x.T).T

    return lambda inputs: lambda: network.step(np, product, csr, inputs)


def in_torch(sparse: bool, network: Network, weights: Weights) -> Runs:
    """Dense, or CSR."""
    import torch

    torch.set_num_threads(n_cores())
    kernels = {name: torch.from_numpy(w) for name, w in _turned(weights).items()}
    if sparse:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # says that it is in beta
            kernels = {name: w.to_sparse_csr() for name, w in kernels.items()}

    def product(w: Any, x: Any) -> Any:
        return (w @ x.T).T if sparse else torch.nn.functional.linear(x, w)

    def run(inputs: Any) -> Any:
        with torch.inference_mode():
            return network.step(_TorchNames(torch), product, kernels, inputs)

    return lambda inputs: partial(run, [torch.from_numpy(x) for x in inputs])


class _TorchNames:
    """The functions that the networks use, by NumPy's names."""

    def __init__(self, torch: Any):
        self.tanh = torch.tanh
        self.concatenate = torch.cat
        self.split = lambda x, n, axis: torch.chunk(x, n, axis)
        self.maximum = lambda x, low: torch.clamp(x, min=low)


def in_numpy(network: Network, weights: Weights) -> Runs:
    """NumPy, on as many threads as the process sees cores."""
    return lambda inputs: lambda: network.step(np, _times, weights, inputs)


def in_onnx(network: Network, weights: Weights) -> Runs:
    """onnxruntime."""
    return onnx_runs(network.step, weights, network.inputs(1), n_cores())


def _turned(weights: Weights) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(w.T) for name, w in weights.items()}


def _times(w: Any, x: Any) -> Any:
    return x @ w


_OF_JAX: dict[str, Make] = dict(zip(DENSE[:2], (dense, dense_turned), strict=True))
_LOSSES: dict[str, Make] = {"jax BCOO": bcoo, "jax bfloat16": in_bfloat16}
# Only where the arrays are on the host anyway.
_ON_HOST: dict[str, Make] = {
    "onnxruntime": in_onnx,
    "torch": partial(in_torch, False),
    "numpy": in_numpy,
    "scipy CSR": scipy_csr,
    "torch CSR": partial(in_torch, True),
}


def ways(
    network: Network, sparsity: float, batches: Sequence[int]
) -> tuple[dict[int, dict[str, Way]], list[str]]:
    """What is compared at each batch, by name, checked; and notes of what is missing."""
    made: dict[int, dict[str, Way]] = {batch: {} for batch in batches}
    notes = []

    def add(makes: Mapping[str, Make], weights: Weights, part: float = 1) -> None:
        inputs = {batch: inputs_of(network, batch, part) for batch in batches}
        right = {batch: in_numpy(network, weights)(x)() for batch, x in inputs.items()}
        for name, make in makes.items():
            try:
                runs = make(network, weights)
            except ImportError as error:
                notes.append(f"{name} is left out: {error.name} is not installed")
                continue
            for batch, x in inputs.items():
                way = made[batch][name] = runs(x)
                error = 0.1 if name == "jax bfloat16" else 1e-3
                found = np.asarray(way(), np.float32)
                np.testing.assert_allclose(found, right[batch], error, error, err_msg=name)

    full = weights_of(network)
    for width in WIDTHS:
        add({f"packed 1x{width}": partial(packed, width)}, pruned(full, sparsity, width))
    on_host = _ON_HOST if jax.default_backend() == "cpu" else {}
    losses = _LOSSES if network.name == _LOSSES_OF else {}
    add(_OF_JAX | on_host | losses, pruned(full, sparsity, 1))
    part = part_left(network, sparsity)
    add({NARROW: dense, _TURNED: dense_turned}, weights_of(network, part), part)
    return made, notes


# Times


def compare(
    network: Network, sparsity: float, batches: Sequence[int] = BATCHES
) -> tuple[list[Row], list[str]]:
    """Rows of one network at one sparsity, one for each batch and way, and notes."""
    rows = []
    made, notes = ways(network, sparsity, batches)
    gc.collect()
    for batch, calls in made.items():
        times = {"warm": interleaved(calls), "cold": _cold(calls)}
        for state in times.values():  # of the narrower network the better orientation
            turned = state.pop(_TURNED)
            state[NARROW] = min(state[NARROW], turned, key=lambda t: t.median_ms)
        best = {
            state: min(t.median_ms for name, t in found.items() if name in DENSE)
            for state, found in times.items()
        }
        about = {"case": "inference", "task": network.name, "batch": batch, "sparsity": sparsity}
        for name, warm in times["warm"].items():
            row = about | {"cores": n_cores(), "dtype": "float32", "method": name}
            row |= {**warm._asdict(), "cold_ms": times["cold"][name].median_ms}
            row |= {"x_warm": best["warm"] / warm.median_ms}
            rows.append(row | {"x_cold": best["cold"] / row["cold_ms"]})
    return rows, notes


def _cold(calls: Mapping[str, Way]) -> Mapping[str, Any]:
    junk = jnp.ones(_FLUSH_BYTES // 4)
    flush = jax.jit(jnp.sum)
    read: Callable[[], Any] = lambda: flush(junk).block_until_ready()
    if jax.default_backend() == "cpu":
        on_host = np.ones(_FLUSH_BYTES // 8)
        read = on_host.sum
    flushed = {name: Call(call, read, most=1) for name, call in calls.items()}
    return interleaved(flushed, rounds=_COLD_ROUNDS)


def in_process(name: str, sparsity: float, count: int) -> list[Row]:
    """`compare`, in a process that has `count` cores from its start."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    threads = {f"{name}_NUM_THREADS": str(count) for name in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(cores), name, str(sparsity)],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} at {sparsity:.0%} on {count} cores: {done.stderr[-2000:]}")
    return _with_notes(*json.loads(done.stdout.splitlines()[-1]))


# The cores are set before anything that counts them is imported.
_WORKER = """
import json, os, sys
os.sched_setaffinity(0, json.loads(sys.argv[1]))
from benchmarks import bench_inference
network = bench_inference.networks(quick=False)[sys.argv[2]]
print(json.dumps(bench_inference.compare(network, float(sys.argv[3]))))
"""


def _with_notes(rows: list[Row], notes: list[str]) -> list[Row]:
    return [*rows, *({"case": "note", "note": note} for note in notes)]


def _here(network: Network, sparsity: float, batches: Sequence[int]) -> list[Row]:
    return _with_notes(*compare(network, sparsity, batches))


def cases(quick: bool) -> list[Case]:
    """Every network and sparsity, on one core, then on all; on other backends than CPUs once."""
    found = []
    if quick or jax.default_backend() != "cpu" or not hasattr(os, "sched_setaffinity"):
        for name, network in networks(quick).items():
            for sparsity in (0.9,) if quick else SPARSITIES:
                run = partial(_here, network, sparsity, (1, 8) if quick else BATCHES)
                found.append(Case(f"inference {name} {sparsity:.0%}", run))
        return found
    for count in sorted({1, n_cores()}):
        for name in networks(quick):
            for sparsity in SPARSITIES:
                run = partial(in_process, name, sparsity, count)
                found.append(Case(f"inference {name} {sparsity:.0%} {count} cores", run))
    return found


# What is shown


def checks(rows: Sequence[Row]) -> list[Check]:
    """The targets that the rows can tell about: batch 1, one core, 90 %."""
    found = []
    for r in rows:
        if (r["method"], r["batch"], r["sparsity"], r["cores"]) != (_HEADLINE, 1, 0.9, 1):
            continue
        if r["task"] in ("LSTM 2 x 650", "LSTM 2 x 1500"):
            for state, limit in {"cold": 5.0, "warm": 8.0}.items():
                what = f"best dense / {_HEADLINE}, {r['task']} at 90%, batch 1, one core, {state}"
                found.append(Check(what, limit, r[f"x_{state}"], at_least=True))
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """What a person reads: how many times faster than the best dense one, which has its ms."""
    return [_table(rows, state) for state in ("warm", "cold")] if rows else []


def _table(rows: Sequence[Row], state: str) -> Table:
    table = Table(title=f"Inference, {state}: times faster than the best dense")
    others = [m for m in METHODS if m not in DENSE]
    for column in ("network", "cores", "batch", "sparsity", "best dense", "ms", *others):
        table.add_column(column, justify="right")
    cases = {(r["task"], r["cores"], r["batch"], r["sparsity"]): {} for r in rows}
    for r in rows:
        cases[r["task"], r["cores"], r["batch"], r["sparsity"]][r["method"]] = r
    ms = {"warm": "median_ms", "cold": "cold_ms"}[state]
    for (task, count, batch, sparsity), found in cases.items():
        best = min((found[m] for m in DENSE if m in found), key=lambda r: r[ms])
        numbers = (f"{found[m][f'x_{state}']:.2f}" if m in found else "" for m in others)
        case = task, str(count), str(batch), f"{sparsity:.0%}"
        table.add_row(*case, best["method"], f"{best[ms]:.3f}", *numbers)
    return table
