"""How much faster does a pruned network run?

The networks are one step of an LSTM language model (two layers; 97 symbols or 10,000 words) and the
feed-forward block of a transformer, at batch 1, 8 and 32, on one core and on all cores. The
baseline is the fastest dense method: JAX as `x @ w` or as `w @ x`, onnxruntime, torch or NumPy. It
is compared with blocks of 8, 16 and 32 outputs by `packed_matmul`, with unstructured CSR in SciPy
and torch, and with dense networks of as many weights: a narrower one, which is what remains when
whole units are pruned, and an LSTM with a single layer. One network also runs two methods that are
slower: BCOO of JAX, and bfloat16. An empty call, a jitted function that does next to nothing, shows
what no method in JAX can be faster than: of a cold call of a small network, it is the larger part.

Warm times are for repeated calls. Cold times are for calls after reading 128 MB of other data, to
empty the caches as another program on the machine would. Every method is first checked against a
dense NumPy product of its weights. On CPUs every network and sparsity runs in a new process that is
pinned to one core, or has all, from its start, so that every library obeys the limit.
"""

from __future__ import annotations

import gc
import itertools
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

from benchmarks.common import Call, Case, Check, Row, interleaved, n_cores
from benchmarks.inference_methods import (
    Make,
    Run,
    bcoo,
    dense,
    dense_transposed,
    in_bfloat16,
    in_numpy,
    in_onnx,
    in_torch,
    packed,
    scipy_csr,
)
from benchmarks.networks import (
    Network,
    Weights,
    inputs_of,
    lstm_network,
    mlp_network,
    part_left,
    pruned,
    weights_of,
)

WIDTHS = (8, 16, 32)
DENSE = ("jax x @ w", "jax w @ x", "onnxruntime", "torch", "numpy")
PACKED = tuple(f"packed 1x{width}" for width in WIDTHS)
NARROW = "narrower dense"
SHALLOW = "one dense layer"
EMPTY = "empty call"
_SLOWER = ("jax BCOO", "jax bfloat16")
METHODS = (*DENSE, *PACKED, "scipy CSR", "torch CSR", NARROW, SHALLOW, *_SLOWER, EMPTY)
SPARSITIES = (0.8, 0.9, 0.95)
BATCHES = (1, 8, 32)
_LOSSES_OF = "LSTM 2 x 650"
_HEADLINE = "packed 1x16"
_FLUSH_BYTES = 2**27
_COLD_ROUNDS = 11  # with one call per round
_TRANSPOSED = {name: f"{name}, w @ x" for name in (NARROW, SHALLOW)}


def networks(quick: bool) -> dict[str, Network]:
    """The networks to time, by name; the first two are those of the quality study."""
    chosen = [lstm_network(80, 97, embed=40), lstm_network(320, 97, embed=160)]
    if quick:
        chosen = [lstm_network(16, 64), mlp_network(16)]
    else:
        chosen += [lstm_network(650, 10_000), lstm_network(1500, 10_000), mlp_network(1024)]
    return {network.name: network for network in chosen}


_IN_JAX: dict[str, Make] = dict(zip(DENSE[:2], (dense, dense_transposed), strict=True))
_LOSSES: dict[str, Make] = dict(zip(_SLOWER, (bcoo, in_bfloat16), strict=True))
# These run only on CPUs, where the arrays are in host memory anyway.
_ON_HOST: dict[str, Make] = {
    "onnxruntime": in_onnx,
    "torch": partial(in_torch, False),
    "numpy": in_numpy,
    "scipy CSR": scipy_csr,
    "torch CSR": partial(in_torch, True),
}


def checked_calls(
    network: Network, sparsity: float, batches: Sequence[int]
) -> tuple[dict[int, dict[str, Run]], list[str]]:
    """The checked calls of every method at each batch size, and notes on missing packages."""
    calls: dict[int, dict[str, Run]] = {batch: {} for batch in batches}
    notes = []

    def add(
        makes: Mapping[str, Make], weights: Weights, of: Network = network, part: float = 1
    ) -> None:
        inputs = {batch: inputs_of(of, batch, part) for batch in batches}
        expected = {batch: in_numpy(of, weights)(x)() for batch, x in inputs.items()}
        for name, make in makes.items():
            try:
                prepare = make(of, weights)
            except ImportError as error:
                notes.append(f"{name} is skipped: {error.name} is not installed")
                continue
            for batch, x in inputs.items():
                call = calls[batch][name] = prepare(x)
                tolerance = 0.1 if name == "jax bfloat16" else 1e-3
                output = np.asarray(call(), np.float32)
                np.testing.assert_allclose(
                    output, expected[batch], tolerance, tolerance, err_msg=name
                )

    dense_weights = weights_of(network)
    for width in WIDTHS:
        add({f"packed 1x{width}": partial(packed, width)}, pruned(dense_weights, sparsity, width))
    on_host = _ON_HOST if jax.default_backend() == "cpu" else {}
    losses = _LOSSES if network.name == _LOSSES_OF else {}
    add(_IN_JAX | on_host | losses, pruned(dense_weights, sparsity, 1))
    for name, small in {NARROW: network, SHALLOW: network.shallow}.items():
        if small is not None:
            part = part_left(network, sparsity, small)
            layouts: dict[str, Make] = {name: dense, _TRANSPOSED[name]: dense_transposed}
            add(layouts, weights_of(small, part), small, part)
    empty = jax.jit(lambda inputs: jax.tree.map(jnp.negative, inputs))
    for batch, methods in calls.items():
        methods[EMPTY] = partial(empty, jax.tree.map(jnp.asarray, inputs_of(network, batch, 1)))
    return calls, notes


# Times


def compare(
    network: Network, sparsity: float, batches: Sequence[int] = BATCHES
) -> tuple[list[Row], list[str]]:
    """Times one network at one sparsity: a row per batch size and method, and notes."""
    rows = []
    calls_of_batch, notes = checked_calls(network, sparsity, batches)
    gc.collect()
    for batch, calls in calls_of_batch.items():
        times = {"warm": interleaved(calls), "cold": _cold(calls)}
        for state, (name, transposed) in itertools.product(times.values(), _TRANSPOSED.items()):
            if name in state:  # keep the faster of its two layouts
                layouts = state[name], state.pop(transposed)
                state[name] = min(layouts, key=lambda t: t.median_ms)
        best = {
            state: min(t.median_ms for name, t in timings.items() if name in DENSE)
            for state, timings in times.items()
        }
        about = {"case": "inference", "task": network.name, "batch": batch, "sparsity": sparsity}
        for name, warm in times["warm"].items():
            row = about | {"cores": n_cores(), "dtype": "float32", "method": name}
            row |= {**warm._asdict(), "cold_ms": times["cold"][name].median_ms}
            row |= {"x_warm": best["warm"] / warm.median_ms}
            rows.append(row | {"x_cold": best["cold"] / row["cold_ms"]})
    return rows, notes


def _cold(calls: Mapping[str, Run]) -> Mapping[str, Any]:
    data = jnp.ones(_FLUSH_BYTES // 4)
    flush = jax.jit(jnp.sum)
    evict: Callable[[], Any] = lambda: flush(data).block_until_ready()
    if jax.default_backend() == "cpu":
        host_data = np.ones(_FLUSH_BYTES // 8)
        evict = host_data.sum
    flushed = {name: Call(call, evict, most=1) for name, call in calls.items()}
    return interleaved(flushed, rounds=_COLD_ROUNDS)


def in_process(name: str, sparsity: float, count: int) -> list[Row]:
    """Runs `compare` in a new process that is limited to `count` cores from its start."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    threads = {f"{name}_NUM_THREADS": str(count) for name in ("OMP", "OPENBLAS", "MKL")}
    result = subprocess.run(
        [sys.executable, "-c", _WORKER, str(cores), name, str(sparsity)],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{name} at {sparsity:.0%} on {count} cores: {result.stderr[-2000:]}")
    return _with_notes(*json.loads(result.stdout.splitlines()[-1]))


# The cores are limited before the import of any library that counts them.
_WORKER = """
import json, os, sys
os.sched_setaffinity(0, json.loads(sys.argv[1]))
from benchmarks import bench_inference
network = bench_inference.networks(quick=False)[sys.argv[2]]
print(json.dumps(bench_inference.compare(network, float(sys.argv[3]))))
"""


def _with_notes(rows: list[Row], notes: list[str]) -> list[Row]:
    return [*rows, *({"case": "note", "note": note} for note in notes)]


def _in_this_process(network: Network, sparsity: float, batches: Sequence[int]) -> list[Row]:
    return _with_notes(*compare(network, sparsity, batches))


def cases(quick: bool) -> list[Case]:
    """Every network and sparsity, on CPUs first with one core and then with all cores."""
    all_cases = []
    if quick or jax.default_backend() != "cpu" or not hasattr(os, "sched_setaffinity"):
        for name, network in networks(quick).items():
            for sparsity in (0.9,) if quick else SPARSITIES:
                run = partial(_in_this_process, network, sparsity, (1, 8) if quick else BATCHES)
                all_cases.append(Case(f"inference {name} {sparsity:.0%}", run))
        return all_cases
    for count in sorted({1, n_cores()}):
        for name in networks(quick):
            for sparsity in SPARSITIES:
                run = partial(in_process, name, sparsity, count)
                all_cases.append(Case(f"inference {name} {sparsity:.0%} {count} cores", run))
    return all_cases


# Results


def checks(rows: Sequence[Row]) -> list[Check]:
    """The targets for which there are rows; all are at batch 1, one core, 90% sparsity."""
    targets = []
    for r in rows:
        if (r["method"], r["batch"], r["sparsity"], r["cores"]) != (_HEADLINE, 1, 0.9, 1):
            continue
        if r["task"] in ("LSTM 2 x 650", "LSTM 2 x 1500"):
            for state, limit in {"cold": 5.0, "warm": 8.0}.items():
                target = f"best dense / {_HEADLINE}, {r['task']} at 90%, batch 1, one core, {state}"
                targets.append(Check(target, limit, r[f"x_{state}"], at_least=True))
    return targets


def tables(rows: Sequence[Row]) -> list[Table]:
    """How many times faster than the best dense method, and its milliseconds; warm and cold."""
    return [_table(rows, state) for state in ("warm", "cold")] if rows else []


def _table(rows: Sequence[Row], state: str) -> Table:
    table = Table(title=f"Inference, {state}: times faster than the best dense")
    compared = [m for m in METHODS if m not in DENSE]
    for column in ("network", "cores", "batch", "sparsity", "best dense", "ms", *compared):
        table.add_column(column, justify="right")
    cases = {(r["task"], r["cores"], r["batch"], r["sparsity"]): {} for r in rows}
    for r in rows:
        cases[r["task"], r["cores"], r["batch"], r["sparsity"]][r["method"]] = r
    ms = {"warm": "median_ms", "cold": "cold_ms"}[state]
    for (task, count, batch, sparsity), methods in cases.items():
        best = min((methods[m] for m in DENSE if m in methods), key=lambda r: r[ms])
        numbers = (f"{methods[m][f'x_{state}']:.2f}" if m in methods else "" for m in compared)
        case = task, str(count), str(batch), f"{sparsity:.0%}"
        table.add_row(*case, best["method"], f"{best[ms]:.3f}", *numbers)
    return table
