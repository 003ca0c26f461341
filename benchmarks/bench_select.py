"""How fast are exact top-k masks, against one read of the weights and what else one would call?

Every method gets the weights and returns a mask of the largest magnitudes. Each answer is compared
with a mask made in NumPy from the bit patterns before it is timed, and the row says what it is:

- `exact`: the mask of the contract, ties to the lower index, subnormals told apart;
- `ties`: right but for which, or how many, of the entries that tie at the threshold it keeps;
- `wrong`: anything else, as where a float comparison takes subnormals for zero.

Ours must be exact, and none may be wrong on ordinary input: that stops the run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.table import Table

import jaxprune
from benchmarks.common import (
    SLOW_SECONDS,
    Case,
    Check,
    Row,
    compiled,
    cores,
    free_bytes,
    interleaved,
    temp_bytes,
)
from jaxprune._topk.topk import select

SELECTING = ("np.partition", "torch.kthvalue")
READ, COLD, WARM = "read", "jaxprune", "jaxprune warm"
OURS = (COLD, WARM)
SORTING = ("argsort", "sort", "top_k", "torch.topk")
_SHAPES = {
    10**4: (100, 100),
    10**5: (250, 400),
    10**6: (1000, 1000),
    10**7: (4000, 2500),
    10**8: (10_000, 10_000),
    10**9: (40_000, 25_000),
}
ORDINARY = ("normal", "uniform", "heavy")
KINDS = (*ORDINARY, "bf16", "zeros90", "constant", "zero", "subnormal")


Method = Callable[[], Any]  # no arguments, so that what it converts first is not timed


# Inputs


def weights(kind: str, n: int, seed: int = 0) -> np.ndarray:
    """`n` entries of one kind, made on the host in chunks, so that 1e9 of them fit."""
    rng = np.random.default_rng(seed)
    dtype = jnp.bfloat16 if kind == "bf16" else np.float32
    out = np.empty(n, dtype)
    chunk = 1 << 24
    for i in range(0, n, chunk):
        out[i : i + chunk] = _some(kind, min(chunk, n - i), rng)
    return out.reshape(_SHAPES.get(n, (n,)))


def _some(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    match kind:
        case "constant":
            return np.full(n, 0.5, np.float32)
        case "zero":
            return np.zeros(n, np.float32)
        case "uniform":
            return rng.random(n, np.float32) * 2 - 1
    normal = rng.standard_normal(n, np.float32)
    match kind:
        case "normal" | "bf16":
            return normal
        case "heavy":
            return np.sign(normal) * np.exp(3 * rng.standard_normal(n, np.float32))
        case "zeros90":
            return np.where(rng.random(n, np.float32) < 0.9, np.float32(0), normal)
        case "subnormal":
            return (normal.astype(np.float64) * 1e-39).clip(-1e-38, 1e-38).astype(np.float32)
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


def keys_of(w: np.ndarray) -> np.ndarray:
    """Magnitudes as flat unsigned integers: their order, without a float comparison."""
    bits = np.dtype(f"u{w.dtype.itemsize}")
    return w.reshape(-1).view(bits) & bits.type(np.iinfo(bits).max >> 1)


def oracle(w: np.ndarray, n_keep: int) -> np.ndarray:
    """The mask of the contract: the largest keys, and the first among those that tie."""
    key = keys_of(w)
    if not n_keep:
        return np.zeros(w.shape, bool)
    least = _largest(key, n_keep)
    mask = key > least
    mask[np.flatnonzero(key == least)[: n_keep - np.count_nonzero(mask)]] = True
    return mask.reshape(w.shape)


def _largest(key: np.ndarray, n: int) -> Any:
    """The `n`-th largest key; of short keys by a histogram, which ties do not slow down."""
    if key.itemsize > 2:
        return np.partition(key, key.size - n)[key.size - n]
    chunks = range(0, key.size, 1 << 24)
    counts = sum(np.bincount(key[i : i + (1 << 24)], minlength=2**16) for i in chunks)
    return key.dtype.type(2**16 - 1 - np.searchsorted(np.cumsum(counts[::-1]), n))


def judge(mask: np.ndarray, w: np.ndarray, right: np.ndarray) -> str:
    """`exact`, `ties` or `wrong`; see the module."""
    if np.array_equal(mask, right):
        return "exact"
    key = keys_of(w)
    differ = key[(mask != right).reshape(-1)]
    return "ties" if right.any() and np.all(differ == key[right.reshape(-1)].min()) else "wrong"


# Methods


@jax.jit
def _read(w: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(w))


@jax.jit
def _ours(w: jax.Array, n_keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    (mask,), thresholds = select([w], n_keep, score=jaxprune.magnitude)
    return mask, thresholds


@jax.jit
def _ours_warm(w: jax.Array, n_keep: jax.Array, start: jax.Array) -> jax.Array:
    return select([w], n_keep, score=jaxprune.magnitude, start=start)[0][0]


@functools.partial(jax.jit, static_argnums=1)
def _argsort(w: jax.Array, n_keep: int) -> jax.Array:
    order = jnp.argsort(-jnp.abs(w).reshape(-1), stable=True)
    return jnp.zeros(w.size, bool).at[order[:n_keep]].set(True).reshape(w.shape)


@functools.partial(jax.jit, static_argnums=1)
def _sort(w: jax.Array, n_keep: int) -> jax.Array:
    magnitude = jnp.abs(w)
    return magnitude >= jnp.sort(magnitude.reshape(-1))[w.size - n_keep]


@functools.partial(jax.jit, static_argnums=1)
def _top_k(w: jax.Array, n_keep: int) -> jax.Array:
    _, indices = lax.top_k(jnp.abs(w).reshape(-1), n_keep)
    return jnp.zeros(w.size, bool).at[indices].set(True).reshape(w.shape)


def _partition(w: jax.Array, n_keep: int) -> jax.Array:
    magnitude = np.abs(np.asarray(w))
    least = np.partition(magnitude.reshape(-1), w.size - n_keep)[w.size - n_keep]
    return jnp.asarray(magnitude >= least)


def moved(w: jax.Array, seed: int = 1) -> jax.Array:
    """The weights of a while ago: about 1% of their spread away."""
    spread = jnp.asarray(0.01, w.dtype) * jnp.mean(jnp.abs(w)).astype(w.dtype)
    return w + spread * jax.random.normal(jax.random.key(seed), w.shape, w.dtype)


def methods(w: np.ndarray, n_keep: int, *, only_ours: bool = False) -> dict[str, Method]:
    """What is compared, by name, ready on the device."""
    x = jnp.asarray(w)
    k = jnp.asarray([n_keep], jnp.int32)
    # The last fire kept 1% more, of weights that have moved since.
    more = jnp.asarray([min(n_keep + n_keep // 100, w.size)], jnp.int32)
    start = jax.block_until_ready(_ours(moved(x), more)[1])
    ours = {
        READ: lambda: _read(x),
        COLD: lambda: _ours(x, k)[0],
        WARM: lambda: _ours_warm(x, k, start),
    }
    if only_ours:
        return ours
    return ours | {
        "argsort": lambda: _argsort(x, n_keep),
        "sort": lambda: _sort(x, n_keep),
        "top_k": lambda: _top_k(x, n_keep),
        "np.partition": lambda: _partition(x, n_keep),
        **torch_methods(w, n_keep),
    }


def torch_methods(w: np.ndarray, n_keep: int) -> dict[str, Method]:
    """The same in torch, on a torch tensor; nothing where torch cannot do it here."""
    if why_no_torch():
        return {}
    import torch

    if w.dtype == jnp.bfloat16:
        x = torch.from_numpy(w.view(np.int16)).view(torch.bfloat16)
    else:
        x = torch.from_numpy(w)
    cuda = jax.default_backend() == "gpu"
    x = x.cuda() if cuda else x

    def kthvalue() -> Any:
        magnitude = x.abs()
        return magnitude >= magnitude.reshape(-1).kthvalue(x.numel() - n_keep + 1).values

    def topk() -> Any:
        indices = x.abs().reshape(-1).topk(n_keep, sorted=False).indices
        mask = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
        return mask.scatter_(0, indices, True).reshape(x.shape)

    def waited(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            out = call()
            if cuda:
                torch.cuda.synchronize()
            return out

        return run

    return {"torch.kthvalue": waited(kthvalue), "torch.topk": waited(topk)}


@functools.cache
def why_no_torch() -> str:
    """Why torch's rows are left out; empty where they are not."""
    try:
        import torch
    except ImportError:
        return "torch is not installed: its rows are left out (pip install 'jaxprune[bench]')"
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "torch was built without CUDA: its rows are left out on this GPU"
    if jax.default_backend() not in ("cpu", "gpu"):
        return f"torch does not run on {jax.default_backend()}: its rows are left out"
    return ""


# Cases


def compare(
    case: str,
    kind: str,
    n: int,
    keep: float,
    *,
    leave_out: Sequence[str] = (),
    slow: float = SLOW_SECONDS,
) -> list[Row]:
    """Checks and times the methods on one input; one row each."""
    w = weights(kind, n)
    n_keep = round(keep * n)
    only_ours = set(leave_out) >= {*SORTING, *SELECTING}
    calls = methods(w, n_keep, only_ours=only_ours)
    calls = {name: call for name, call in calls.items() if name not in leave_out}
    right = oracle(w, n_keep)
    answers = {}
    for name, call in calls.items():
        out = jax.block_until_ready(call())
        answers[name] = None if name == READ else judge(np.asarray(out), w, right)
        _must_be_right(name, kind, answers[name])
        del out
    times = interleaved(calls, slow=slow)
    common = {"case": case, "kind": kind, "dtype": w.dtype.name, "shape": list(w.shape), "n": n}
    return [
        {**common, "keep": keep, "method": m, "answer": answers[m], **times[m]._asdict()}
        | {"x_read": times[m].median_ms / times[READ].median_ms}
        | {"x_ours": times[m].median_ms / times[COLD].median_ms}
        for m in calls
    ]


def _must_be_right(name: str, kind: str, answer: str | None) -> None:
    wrong = answer != "exact" if name in OURS else answer == "wrong" and kind in ORDINARY
    if wrong and answer is not None:
        raise AssertionError(f"{name} on {kind} weights: the mask is not right ({answer})")


def transformer_shapes(quick: bool) -> list[tuple[int, int]]:
    """The 300 matrices of a transformer of 1e8 parameters; in quick, 24 small ones."""
    d, n_layers = (16, 2) if quick else (416, 48)
    layer = [(d, d)] * 4 + [(d, 4 * d), (4 * d, d)]
    return [(20 * d, d), (512, d), *layer * n_layers, *[(d, d)] * 10]


def many_leaves(quick: bool) -> list[Row]:
    """The mask update of many leaves, and of one leaf of as many entries: compile and run."""
    shapes = transformer_shapes(quick)
    n = sum(map(math.prod, shapes)) // 1024 * 1024
    rng = np.random.default_rng(0)
    groups = {"many": shapes, "one": [(n // 1024, 1024)]}
    calls, rows = {}, []
    for name, sizes in groups.items():
        ws = [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in sizes]
        masks = [jnp.ones(shape, jnp.uint8) for shape in sizes]
        n_keep = jnp.array([math.prod(shape) // 5 for shape in sizes], jnp.int32)
        update = jax.jit(lambda ws, ms, k: select(ws, k, score=jnp.abs, among=ms))
        with cores(2) as n_cores:
            made = compiled(update, ws, masks, n_keep)
        kept = update(ws, masks, n_keep)[0]
        for w, mask, k in zip(ws, kept, n_keep, strict=True):
            if not np.array_equal(mask, oracle(np.asarray(w), int(k))):
                raise AssertionError(f"{name} leaves: the mask of a {w.shape} leaf is not right")
        calls[name] = functools.partial(update, ws, masks, n_keep)
        rows.append(
            {"case": "leaves", "method": name, "leaves": len(ws), "shapes": len(set(sizes))}
            | {"n": sum(map(math.prod, sizes)), "dtype": "float32", "keep": 0.2, "answer": "exact"}
            | {"trace_s": made.trace_s, "compile_s": made.compile_s, "compile_cpu_s": made.cpu_s}
            | {"compile_cores": n_cores, "temp_bytes": temp_bytes(made.executable)}
        )
    times = interleaved(calls)
    one = times["one"].median_ms
    return [
        {**row, **times[row["method"]]._asdict(), "x_one": times[row["method"]].median_ms / one}
        for row in rows
    ]


def cases(quick: bool) -> list[Case]:
    """Everything that is measured, smallest first; `quick` is a smoke test."""
    gpu = jax.default_backend() == "gpu"
    sizes = (10**4, 10**5) if quick else tuple(10**e for e in range(4, 9))
    found = [
        _case("size", "normal", n, keep, leave_out=SORTING if _too_long(n, keep) else ())
        for n in sizes
        for keep in (0.1, 0.2)
    ]
    for kind in KINDS:
        for n in (10**4,) if quick else (10**6, 10**7):
            # A sort of 1e7 takes seconds, and its time is not what is looked for here.
            found.append(_case("input", kind, n, 0.2, slow=1.0))
    found.append(Case("transformer leaves", lambda: many_leaves(quick)))
    if not quick:
        others = () if gpu else (*SORTING, *SELECTING)
        found += [_case("size", "bf16", n, 0.2, leave_out=others) for n in (10**8, 10**9)]
        found += [_case("size", "normal", 10**9, 0.2)] if gpu else []
    return found


def _too_long(n: int, keep: float) -> bool:
    """On a CPU the sorts of 1e8 entries take a minute each: once will do."""
    return n >= 10**8 and keep != 0.2 and jax.default_backend() == "cpu"


def _case(case: str, kind: str, n: int, keep: float, **options: Any) -> Case:
    def rows() -> list[Row]:
        needed = n * (2 if kind == "bf16" else 4) * 7
        if needed > free_bytes():
            return [{"case": "note", "note": f"{kind} {n:.0e} left out: it takes {needed:.0e} B"}]
        return compare(case, kind, n, keep, **options)

    return Case(f"select {kind} {n:.0e} keep {keep:.0%}", rows)


# Targets


def checks(rows: Sequence[Row]) -> list[Check]:
    """The targets that the rows can tell about."""
    at_1e7 = [r for r in rows if r["case"] == "size" and r["n"] == 10**7 and r["kind"] == "normal"]
    found = list(_headline(at_1e7))
    timed = [r for r in rows if r["case"] in ("size", "input")]
    others = [r for r in timed if r["method"] not in (READ, *OURS) and r["answer"] != "wrong"]
    if others:
        worst = min(others, key=lambda r: r["x_ours"])
        where = f"{worst['method']}, {worst['kind']} {worst['n']:.0e} keep {worst['keep']:.0%}"
        found.append(Check(f"never slower (worst: {where})", 1.0, worst["x_ours"], True))
    for kind, dtype in (("normal", "float32"), ("bf16", "bfloat16")):
        per = [
            1e6 * r["median_ms"] / r["n"]
            for r in timed
            if r["method"] == COLD and r["kind"] == kind and r["n"] >= 10**6 and r["keep"] == 0.2
        ]
        if len(per) > 1:
            found.append(Check(f"ns per entry, largest / least, {dtype}", 2.0, max(per) / min(per)))
    for r in rows:
        if r["case"] == "leaves" and r["method"] == "many":
            what = f"{r['leaves']} leaves"
            seconds = r["trace_s"] + r["compile_s"]
            found.append(Check(f"{what}: compile s, {r['compile_cores']} cores", 10.0, seconds))
            found.append(Check(f"{what}: run time / one leaf", 1.5, r["x_one"]))
    return found


def _headline(rows: Sequence[Row]) -> Iterable[Check]:
    """Ratios at 1e7, the worse of the two densities."""
    limits = {
        "argsort": 250,
        "sort": 200,
        "np.partition": 8,
        "torch.kthvalue": 12,
        "torch.topk": 50,
    }
    for method, limit in {COLD: 8, WARM: 6}.items():
        if ratios := [r["x_read"] for r in rows if r["method"] == method]:
            yield Check(f"{method} / read, 1e7", limit, max(ratios))
    for method, limit in limits.items():
        if ratios := [r["x_ours"] for r in rows if r["method"] == method]:
            yield Check(f"{method} / {COLD}, 1e7", limit, min(ratios), True)


def tables(rows: Sequence[Row]) -> list[Table]:
    """What a person reads: milliseconds by method and input, and the leaves."""
    found = []
    for case, title in (("size", "Size"), ("input", "Input")):
        if mine := [r for r in rows if r["case"] == case]:
            found.append(_by_method(f"{title}: median ms (x one read)", mine))
    if leaves := [r for r in rows if r["case"] == "leaves"]:
        table = Table(title="Many leaves")
        for column in ("", "leaves", "trace s", "compile s", "CPU s", "run ms", "x one", "temp MB"):
            table.add_column(column, justify="right")
        for r in leaves:
            seconds = (f"{r[key]:.2f}" for key in ("trace_s", "compile_s", "compile_cpu_s"))
            temp = f"{r['temp_bytes'] / 1e6:.0f}"
            run = f"{r['median_ms']:.1f}", f"{r['x_one']:.2f}"
            table.add_row(r["method"], str(r["leaves"]), *seconds, *run, temp)
        found.append(table)
    return found


def _by_method(title: str, rows: Sequence[Row]) -> Table:
    names = list(dict.fromkeys(r["method"] for r in rows))
    table = Table(title=title)
    for column in ("input", *names):
        table.add_column(column, justify="right")
    for (kind, n, keep), group in _grouped(rows).items():
        cells = [_cell(group[name]) if name in group else "" for name in names]
        table.add_row(f"{kind} {n:.0e} {keep:.0%}", *cells)
    return table


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, int, float], dict[str, Row]]:
    found: dict[tuple[str, int, float], dict[str, Row]] = {}
    for r in rows:
        found.setdefault((r["kind"], r["n"], r["keep"]), {})[r["method"]] = r
    return found


def _cell(row: Row) -> str:
    note = {"ties": " t", "wrong": " WRONG"}.get(row["answer"] or "", "")
    return f"{row['median_ms']:.3g} ({row['x_read']:.3g}){note}"
