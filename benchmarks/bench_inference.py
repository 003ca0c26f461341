"""How much faster is a pruned network to run?

One step of an LSTM language model (two layers, softmax over 10,000 words) and the feed-forward part
of a transformer, at batch 1, 8 and 32, on one core and on all. Against the best of the dense ones
(JAX as `x @ w` and as `w @ x`, onnxruntime, torch, NumPy): blocks of 8, 16 and 32 outputs with
`packed_matmul`, CSR of SciPy and of torch with weights dropped one by one, and the dense network
that is left when whole units go, of as many weights.

Each is timed warm, called again and again, and cold, after reading 128 MB of something else, as a
model finds the caches where it shares a machine. What each computes is compared first with a dense
NumPy product of the weights that it was given. On CPUs every network and sparsity has a process of
its own, which sees one core or all from its start: that is how every library is held to them.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks.common import Call, Case, Check, Row, interleaved
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
from benchmarks.onnx_graphs import onnx_way
from jaxprune.blocks import pack_matrix, packed_matmul

WIDTHS = (8, 16, 32)
DENSE = ("jax x @ w", "jax w @ x", "onnxruntime", "torch", "numpy")
PACKED = tuple(f"packed 1x{width}" for width in WIDTHS)
NARROW = "narrower dense"
METHODS = (*DENSE, *PACKED, "scipy CSR", "torch CSR", NARROW)
SPARSITIES = (0.8, 0.9, 0.95)
_HEADLINE = "packed 1x16"
_FLUSH_BYTES = 2**27
_COLD_ROUNDS = 15  # of one call each

Way = Callable[[], Any]


def networks(quick: bool) -> dict[str, Network]:
    """What is timed, by name; the first is that of the quality study."""
    found = [lstm_network(80, 97, embed=40)]
    if quick:
        found = [lstm_network(16, 64), mlp_network(16)]
    else:
        found += [lstm_network(650, 10_000), lstm_network(1500, 10_000), mlp_network(1024)]
    return {network.name: network for network in found}


# Ways to run a network


def jax_way(network: Network, product: Product, weights: Any, inputs: Any) -> Way:
    """In JAX, jitted; weights are arguments, or XLA would fold them."""
    jitted = jax.jit(partial(network.step, jnp, product))
    operands = jax.tree.map(jnp.asarray, (weights, inputs))
    return lambda: jitted(*operands)


def jax_ways(network: Network, weights: Weights, inputs: Any) -> list[Way]:
    """Both orientations of a dense kernel."""
    turned = {name: np.ascontiguousarray(w.T) for name, w in weights.items()}
    return [
        jax_way(network, lambda w, x: x @ w, weights, inputs),
        jax_way(network, lambda w, x: (w @ x.T).T, turned, inputs),
    ]


def packed_way(network: Network, weights: Weights, inputs: Any, width: int) -> Way:
    """The kept blocks alone."""
    batch = len(inputs[0])
    packed = {name: pack_matrix(w, block=(1, width), batch=batch) for name, w in weights.items()}
    return jax_way(network, packed_matmul, packed, inputs)


def scipy_way(network: Network, weights: Weights, inputs: Any, threads: int) -> Way:
    """CSR of the transposed kernels; SciPy has one thread."""
    from scipy import sparse

    del threads
    csr = {name: sparse.csr_array(w.T) for name, w in weights.items()}

    def product(w: Any, x: Any) -> Any:
        return (w @ x[0])[None] if len(x) == 1 else (w @ x.T).T

    return lambda: network.step(np, product, csr, inputs)


def torch_way(sparse: bool, network: Network, weights: Weights, inputs: Any, threads: int) -> Way:
    """Dense, or CSR."""
    import torch

    torch.set_num_threads(threads)
    turned = {n: torch.from_numpy(np.ascontiguousarray(w.T)) for n, w in weights.items()}
    found = [torch.from_numpy(x) for x in inputs]
    if sparse:
        turned = {name: w.to_sparse_csr() for name, w in turned.items()}

    def product(w: Any, x: Any) -> Any:
        return (w @ x.T).T if sparse else torch.nn.functional.linear(x, w)

    def run() -> Any:
        with torch.inference_mode():
            return network.step(_TorchNames(torch), product, turned, found)

    return run


class _TorchNames:
    """The functions that the networks use, by NumPy's names."""

    def __init__(self, torch: Any):
        self.tanh = torch.tanh
        self.concatenate = torch.cat
        self.split = lambda x, n, axis: torch.chunk(x, n, axis)
        self.maximum = lambda x, low: torch.clamp(x, min=low)


def numpy_way(network: Network, weights: Weights, inputs: Any, threads: int) -> Way:
    """NumPy, on as many threads as the process sees cores."""
    del threads
    return lambda: network.step(np, lambda w, x: x @ w, weights, inputs)


# Only where the arrays are on the host anyway.
_HOST_DENSE = {
    "onnxruntime": lambda network, *operands: onnx_way(network.step, *operands),
    "torch": partial(torch_way, False),
    "numpy": numpy_way,
}
_HOST_SPARSE = {"scipy CSR": scipy_way, "torch CSR": partial(torch_way, True)}


def ways(
    network: Network, sparsity: float, batches: Sequence[int], threads: int, notes: set[str]
) -> dict[int, dict[str, Way]]:
    """What is compared at each batch, by name; each has been checked. Notes say what is missing."""
    inputs = {batch: inputs_of(network, batch) for batch in batches}
    made: dict[int, dict[str, Way]] = {batch: {} for batch in batches}
    on_host = jax.default_backend() == "cpu"

    def add(name: str, weights: Weights, make: Callable[[Any], Way | list[Way]]) -> None:
        for batch in batches:
            try:
                found = make(inputs[batch])
            except ImportError as error:
                notes.add(f"{name}: not measured, {error.name} is not installed")
                return
            right = network.step(np, lambda w, x: x @ w, weights, inputs[batch])
            several = zip(DENSE[:2], found, strict=True) if isinstance(found, list) else ()
            for key, way in several or [(name, found)]:
                _check(key, way, right)
                made[batch][key] = way

    weights = weights_of(network)
    for width in WIDTHS:
        kept = pruned(weights, sparsity, width)
        add(f"packed 1x{width}", kept, partial(_packed, network, kept, width))
    kept = pruned(weights, sparsity, 1)
    add("jax", kept, partial(jax_ways, network, kept))
    for name, way in {**_HOST_DENSE, **_HOST_SPARSE}.items() if on_host else ():
        add(name, kept, partial(_on_host, way, network, kept, threads))
    for batch in batches:
        made[batch] |= _narrow(network, part_left(network, sparsity), batch)
    return made


def _packed(network: Network, weights: Weights, width: int, inputs: Any) -> Way:
    return packed_way(network, weights, inputs, width)


def _on_host(way: Any, network: Network, weights: Weights, threads: int, inputs: Any) -> Way:
    return way(network, weights, inputs, threads)


def _narrow(network: Network, part: float, batch: int) -> dict[str, Way]:
    """The network of fewer units, in both orientations."""
    weights, inputs = weights_of(network, part), inputs_of(network, batch, part)
    right = network.step(np, lambda w, x: x @ w, weights, inputs)
    found = dict(zip((NARROW, _TURNED), jax_ways(network, weights, inputs), strict=True))
    for name, way in found.items():
        _check(name, way, right)
    return found


_TURNED = f"{NARROW}, w @ x"


def _check(name: str, way: Way, right: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(way()), right, rtol=1e-3, atol=1e-3, err_msg=name)


# Times


def compare(
    network: Network, sparsity: float, batches: Sequence[int], threads: int
) -> tuple[list[Row], list[str]]:
    """Rows of one network at one sparsity, one for each batch and way, and notes."""
    rows, notes = [], set()
    made = ways(network, sparsity, batches, threads, notes)
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
            row = about | {"cores": threads, "dtype": "float32", "method": name}
            row |= {**warm._asdict(), "cold_ms": times["cold"][name].median_ms}
            row |= {"x_warm": best["warm"] / warm.median_ms}
            rows.append(row | {"x_cold": best["cold"] / row["cold_ms"]})
    return rows, sorted(notes)


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
        [sys.executable, "-m", "benchmarks.bench_inference", name, str(sparsity)],
        env={**os.environ, **threads},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} at {sparsity:.0%} on {count} cores: {done.stderr[-2000:]}")
    return _with_notes(*json.loads(done.stdout.splitlines()[-1]))


def _with_notes(rows: list[Row], notes: list[str]) -> list[Row]:
    return [*rows, *({"case": "note", "note": note} for note in notes)]


def _here(network: Network, sparsity: float, batches: Sequence[int]) -> list[Row]:
    return _with_notes(*compare(network, sparsity, batches, 1))


def cases(quick: bool) -> list[Case]:
    """Every network and sparsity, on one core, then on all; on other backends than CPUs once."""
    found = []
    if quick or jax.default_backend() != "cpu" or not hasattr(os, "sched_setaffinity"):
        for name, network in networks(quick).items():
            for sparsity in (0.9,) if quick else SPARSITIES:
                run = partial(_here, network, sparsity, (1, 8) if quick else (1, 8, 32))
                found.append(Case(f"inference {name} {sparsity:.0%}", run))
        return found
    n_cores = len(os.sched_getaffinity(0))
    for count in sorted({1, n_cores}):
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


if __name__ == "__main__":
    chosen = networks(quick=False)[sys.argv[1]]
    got = len(os.sched_getaffinity(0))
    print(json.dumps(compare(chosen, float(sys.argv[2]), (1, 8, 32), got)))
