"""How small is the file of a pruned model, how fast are saving and loading, how much memory?

Sizes are those of normal weights, pruned by magnitude, in every format that `jaxprune inspect`
shows. Times compare `jaxprune.save` with the alternatives, `numpy.savez_compressed` and dense
safetensors. Every file is read back and compared bit for bit before timing. Files are in the page
cache, so reads do not wait for the disk. Writing with `save` does, because it replaces the file
atomically; the alternatives do not.

Memory is the peak resident memory of `python -m jaxprune` on a large file. The command `plan` reads
no tensor data, so its peak is that of Python and JAX alone.
"""

from __future__ import annotations

import functools
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxprune
from benchmarks.common import Case, Check, Row, interleaved
from jaxprune._files import footprint, interchange, safetensors
from jaxprune._files.save_load import load, save

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
# Targets: how many times smaller than dense a file of 1e7 float32 weights must be.
_SMALLER = {0.8: 4.8, 0.9: 9.0, 0.95: 17.0}
SAVE, NPZ = "jaxprune.save", "np.savez_compressed"


class Format(NamedTuple):
    """A pair of functions that write a file and read it."""

    save: Callable[[Path, dict[str, np.ndarray]], Any]
    load: Callable[[Path], dict[str, np.ndarray]]


def formats(dtype: str) -> dict[str, Format]:
    """The formats to compare, by name. NumPy has no bfloat16, so its file holds the bits."""

    def savez(path: Path, params: dict[str, np.ndarray]) -> None:
        with path.open("wb") as file:
            bits: Any = {name: x.view(_bits(dtype)) for name, x in params.items()}
            np.savez_compressed(file, **bits)

    def loadz(path: Path) -> dict[str, np.ndarray]:
        with np.load(path) as stored:
            return {name: stored[name].view(jnp.dtype(dtype)) for name in stored}

    return {
        SAVE: Format(save, load),
        f"{SAVE} level=None": Format(functools.partial(save, level=None), load),
        NPZ: Format(savez, loadz),
        "dense safetensors": Format(interchange.save_safetensors, load),
    }


def _bits(dtype: str) -> str:
    return f"uint{8 * jnp.dtype(dtype).itemsize}"


def weights(n: int, sparsity: float, dtype: str) -> dict[str, np.ndarray]:
    """Five pruned matrices with `n` weights in total."""
    side = math.isqrt(n // 5)
    rng = np.random.default_rng(0)
    shape = (side, n // 5 // side)
    params = {f"w{i}": jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for i in range(5)}
    pruned, _ = jaxprune.prune_params(params, sparsity)
    return {name: np.asarray(w) for name, w in pruned.items()}  # pyright: ignore


def sizes(n: int, sparsity: float, dtype: str) -> list[Row]:
    """Bytes in every format; one row per format."""
    bytes_of: dict[str, int] = {}
    params = weights(n, sparsity, dtype)
    for w in params.values():
        for name, n_bytes in footprint.sizes(w).items():
            bytes_of[name] = bytes_of.get(name, 0) + n_bytes
    about = {"case": "size", "n": sum(w.size for w in params.values()), "sparsity": sparsity}
    about |= {"dtype": dtype}
    return [
        about | {"method": name, "bytes": n_bytes, "smaller": bytes_of["dense"] / n_bytes}
        for name, n_bytes in bytes_of.items()
    ]


def times(n: int, sparsity: float, dtype: str) -> list[Row]:
    """Checks and then times writing and reading; one row per format."""
    params = weights(n, sparsity, dtype)
    n_bytes = sum(w.nbytes for w in params.values())
    compared = formats(dtype)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, str(i)) for i, name in enumerate(compared)}
        for name, format_ in compared.items():
            format_.save(paths[name], params)
            _check(name, params, format_.load(paths[name]))
        calls: dict[str, Callable[[], Any]] = {}
        for name, format_ in compared.items():
            calls[f"{name} save"] = functools.partial(format_.save, paths[name], params)
            calls[f"{name} load"] = functools.partial(format_.load, paths[name])
        timings = interleaved(calls)
        on_disk = {name: path.stat().st_size for name, path in paths.items()}
    rows = []
    for name in compared:
        save, load = timings[f"{name} save"], timings[f"{name} load"]
        row = {"case": "file", "n": n, "sparsity": sparsity, "dtype": dtype, "method": name}
        row |= {"bytes": on_disk[name], "smaller": n_bytes / on_disk[name]}
        row |= {"save_ms": save.median_ms, "save_min_ms": save.min_ms, **load._asdict()}
        row["x_npz_save"] = timings[f"{NPZ} save"].median_ms / save.median_ms
        row["x_npz_load"] = timings[f"{NPZ} load"].median_ms / load.median_ms
        rows.append(row)
    return rows


def _check(name: str, params: dict[str, np.ndarray], restored: dict[str, np.ndarray]) -> None:
    for path, w in params.items():
        is_same = restored[path].dtype == w.dtype and restored[path].tobytes() == w.tobytes()
        if not is_same:
            raise AssertionError(f"{path}: {name} did not restore the same bits")


def minus_zeros(n: int) -> list[Row]:
    """Bytes when dropped negative weights are -0.0, as after a product with a float mask."""
    dense = weights(n, 0.0, "float32")
    pruned = weights(n, 0.9, "float32")
    rows = []
    for name in ("gzip", "jaxprune"):
        plus_bytes = sum(footprint.sizes(w, (name,))[name] for w in pruned.values())
        masked = [w * (pruned[path] != 0).astype(np.float32) for path, w in dense.items()]
        minus_bytes = sum(footprint.sizes(w, (name,))[name] for w in masked)
        row = {"case": "minus zero", "n": n, "sparsity": 0.9, "dtype": "float32"}
        rows.append(
            row | {"method": name, "bytes": minus_bytes, "x_plus_zero": minus_bytes / plus_bytes}
        )
    return rows


# Runs a command and prints its peak memory in KiB. On Linux it reads /proc, because `getrusage`
# includes the memory of the parent process at the start.
_CHILD = """
import pathlib, resource, runpy, sys
sys.argv[0] = "jaxprune"
try:
    runpy.run_module("jaxprune", run_name="__main__")
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        peak = status.read_text().split("VmHWM:")[1].split()[0]
    print("peak", peak, file=sys.stderr)
"""


def memory(n_leaves: int, side: int) -> list[Row]:
    """Peak memory of commands on a file of square float32 matrices; one row per command."""
    shape, rng = (side, side), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "in.safetensors")
        tensors = [safetensors.Tensor(f"w{i}", "F32", shape) for i in range(n_leaves)]
        safetensors.write(
            file, tensors, (rng.standard_normal(shape, np.float32) for _ in tensors), {}
        )
        commands = {
            "plan": ("plan", file, "-s", "0.9"),
            "inspect --quick": ("inspect", file, "--quick"),
            "prune to .safetensors": (
                "prune",
                file,
                "-s",
                "0.9",
                "-o",
                Path(folder, "b.safetensors"),
            ),
            "prune to .zst": ("prune", file, "-s", "0.9", "-o", Path(folder, "a.zst")),
        }
        rows = []
        for name, words in commands.items():
            row = {"case": "memory", "method": name, "dtype": "float32", "n": n_leaves * side**2}
            row |= {"file_bytes": file.stat().st_size, "leaf_bytes": 4 * side**2}
            rows.append(row | {"peak_bytes": _peak_bytes(words)})
    return rows


def _peak_bytes(words: Sequence[object]) -> int:
    command = [sys.executable, "-c", _CHILD, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * int(result.stderr.split("peak ")[-1])


def cases(quick: bool) -> list[Case]:
    """Sizes and times, then the cost of -0.0, then memory."""
    n = 10**4 if quick else 10**7
    all_cases = []
    for dtype in ("float32", "bfloat16"):
        for sparsity in SPARSITIES:
            arguments = (n, sparsity, dtype)
            name = f"{n:.0e} {dtype} {sparsity:.0%}"
            all_cases.append(Case(f"files size {name}", functools.partial(sizes, *arguments)))
            all_cases.append(Case(f"files time {name}", functools.partial(times, *arguments)))
    all_cases.append(Case("files minus zero", functools.partial(minus_zeros, n)))
    run_memory = functools.partial(memory, *((2, 64) if quick else (20, 4096)))
    return [*all_cases, Case("files memory", run_memory)]


def checks(rows: Sequence[Row]) -> list[Check]:
    """The targets for which there are rows, with what was measured."""
    targets = []
    for r in rows:
        if r["case"] != "file" or r["method"] != SAVE or r["dtype"] != "float32":
            continue
        if r["n"] == 10**7 and r["sparsity"] in _SMALLER:
            target = f"dense / {SAVE}, bytes of 1e7 at {r['sparsity']:.0%}"
            targets.append(Check(target, _SMALLER[r["sparsity"]], r["smaller"], at_least=True))
            target = f"{NPZ} / {SAVE}, load of 1e7 at {r['sparsity']:.0%}"
            targets.append(Check(target, 2.0, r["x_npz_load"], at_least=True))
    for r in rows:
        if r["case"] == "memory" and r["file_bytes"] > 10**9:
            target = f"peak memory of {r['method']} / size of the file"
            targets.append(Check(target, 1.0, r["peak_bytes"] / r["file_bytes"], at_least=False))
    return targets


def tables(rows: Sequence[Row]) -> list[Table]:
    """How many times smaller and faster, the cost of -0.0, and peak memory."""
    all_tables = [_sizes_table(rows), _times_table(rows), _minus_table(rows), _memory_table(rows)]
    return [table for table in all_tables if table.row_count]


def _sizes_table(rows: Sequence[Row]) -> Table:
    table = Table(title="Times smaller than dense")
    for column in ("dtype", "sparsity", *footprint.QUICK, *footprint.SLOW):
        table.add_column(column, justify="right")
    by_case: dict[tuple[str, float], dict[str, float]] = {}
    for r in rows:
        if r["case"] == "size":
            by_case.setdefault((r["dtype"], r["sparsity"]), {})[r["method"]] = r["smaller"]
    for (dtype, sparsity), smaller in by_case.items():
        table.add_row(dtype, f"{sparsity:.0%}", *(f"{x:.2f}" for x in smaller.values()))
    return table


def _times_table(rows: Sequence[Row]) -> Table:
    table = Table(title="Files")
    columns = ("dtype", "sparsity", "", "MB", "smaller", "save ms", "load ms")
    for column in (*columns, f"save, x {NPZ}", f"load, x {NPZ}"):
        table.add_column(column, justify="right")
    for r in rows:
        if r["case"] == "file":
            size = f"{r['bytes'] / 1e6:.2f}", f"{r['smaller']:.2f}"
            numbers = f"{r['save_ms']:.1f}", f"{r['median_ms']:.1f}"
            times_faster = f"{r['x_npz_save']:.1f}", f"{r['x_npz_load']:.1f}"
            case = r["dtype"], f"{r['sparsity']:.0%}", r["method"]
            table.add_row(*case, *size, *numbers, *times_faster)
    return table


def _memory_table(rows: Sequence[Row]) -> Table:
    table = Table(title="Peak memory of python -m jaxprune")
    for column in ("command", "file MB", "leaf MB", "peak MB"):
        table.add_column(column, justify="right")
    for r in rows:
        if r["case"] == "memory":
            sizes = (r["file_bytes"], r["leaf_bytes"], r["peak_bytes"])
            table.add_row(r["method"], *(f"{size / 1e6:,.0f}" for size in sizes))
    return table


def _minus_table(rows: Sequence[Row]) -> Table:
    table = Table(title="With -0.0 in place of +0.0, at 90 %")
    for column in ("format", "bytes", "larger"):
        table.add_column(column, justify="right")
    for r in rows:
        if r["case"] == "minus zero":
            table.add_row(r["method"], f"{r['bytes']:,}", f"{r['x_plus_zero']:.2f}x")
    return table
