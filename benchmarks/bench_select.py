"""How fast are exact top-k masks, compared with one read of the weights and the alternatives?

The alternatives are argsort, `jnp.sort`, `lax.top_k`, `np.partition`, and kthvalue and topk of
torch. Every method gets the weights and returns a mask of the largest magnitudes. The forms of
`topk_mask` are compared with each other, and with NumPy where the scores are given; then the masks
of each structure and kind of pool. `python -m benchmarks against` compares them with those of an
earlier commit. Before timing, each mask is compared with one that NumPy computes from the bit
patterns; the `answer` of a row is then `exact`, `ties` or `wrong`, as `topk_oracle` defines them.

The run stops if a mask of jaxprune is not exact, or if any mask is wrong on ordinary weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks.common import (
    SLOW_SECONDS,
    Case,
    Check,
    Row,
    compiled,
    cores,
    environment,
    free_bytes,
    interleaved,
    temp_bytes,
)
from benchmarks.public_methods import (
    GIVEN,
    PARTITION,
    READ,
    Method,
    structured_methods,
    transformer_shapes,
)
from benchmarks.topk_methods import (
    COLD,
    JAXPRUNE,
    SELECTING,
    SORTING,
    WARM,
    methods,
    methods_of_scores,
)
from benchmarks.topk_oracle import KINDS, ORDINARY, judge, oracle, weights
from jaxprune._topk.topk import select

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
    """Checks and then times every method on one input; one row per method."""
    w = weights(kind, n)
    n_keep = round(keep * n)
    only_jaxprune = set(leave_out) >= {*SORTING, *SELECTING}
    calls = methods(w, n_keep, only_jaxprune=only_jaxprune)
    calls = {name: call for name, call in calls.items() if name not in leave_out}
    answers = {}
    for name, answer in _judged(calls, w, n_keep):
        _require_correct(name, kind, answer)
        answers[name] = answer
    about = {"case": case, "kind": kind, "dtype": w.dtype.name, "shape": list(w.shape), "n": n}
    rows = _timed(calls, about | {"keep": keep}, answers, slow=slow)
    (ours,) = (row["median_ms"] for row in rows if row["method"] == COLD)
    return [row | {"x_ours": row["median_ms"] / ours} for row in rows]


def forms(n: int, keep: float) -> list[Row]:
    """Checks and then times `topk_mask` given scores, or told to compute them."""
    w, n_keep = weights("normal", n), round(keep * n)
    calls, answers = methods_of_scores(w, n_keep), {}
    for name, answer in _judged(calls, w, n_keep):
        if name not in (READ, PARTITION) and answer != "exact":
            raise AssertionError(f"{name}: the mask of {n} weights is {answer}")
        answers[name] = answer
    about = {"case": "forms", "kind": "normal", "dtype": "float32", "n": n, "keep": keep}
    return _timed(calls, about, answers)


def structures(n: int) -> list[Row]:
    """Times the masks of each structure and kind of pool."""
    about = {"case": "structures", "kind": "normal", "dtype": "float32", "n": n}
    return _timed(structured_methods(n), about, {})


def _judged(
    calls: dict[str, Method], w: np.ndarray, n_keep: int
) -> Iterator[tuple[str, str | None]]:
    """The name of each call and what its mask is; None for the read, which has no mask."""
    expected = oracle(w, n_keep)
    for name, call in calls.items():
        mask = jax.block_until_ready(call())
        answer = None if name == READ else judge(np.asarray(mask), w, expected)
        del mask
        yield name, answer


def _timed(
    calls: dict[str, Method], about: Row, answers: dict[str, Any], slow: float = SLOW_SECONDS
) -> list[Row]:
    """One row per call."""
    times = interleaved(calls, slow=slow)
    read_ms = times[READ].median_ms
    return [
        about
        | {"method": name, "answer": answers.get(name), **timing._asdict()}
        | {"x_read": timing.median_ms / read_ms}
        for name, timing in times.items()
    ]


def _require_correct(name: str, kind: str, answer: str | None) -> None:
    accepted = ("exact",) if name in JAXPRUNE else ("exact", "ties")
    is_checked = answer is not None and (name in JAXPRUNE or kind in ORDINARY)
    if is_checked and answer not in accepted:
        raise AssertionError(
            f"{name} on {kind} weights: the mask is {answer}, expected {' or '.join(accepted)}"
        )


def many_leaves(quick: bool) -> list[Row]:
    """Compile and run time of the masks of many leaves, and of one leaf with as many entries."""
    shapes = transformer_shapes(quick)
    n = sum(map(math.prod, shapes)) // 1024 * 1024
    rng = np.random.default_rng(0)
    groups = {"many": shapes, "one": [(n // 1024, 1024)]}
    calls, rows = {}, []
    for name, sizes in groups.items():
        ws = [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in sizes]
        masks = [jnp.ones(shape, jnp.uint8) for shape in sizes]
        n_keep = jnp.array([math.prod(shape) // 5 for shape in sizes], jnp.int32)
        update = jax.jit(lambda ws, masks, k: select(ws, k, score=jnp.abs, among=masks))
        with cores(2) as n_cores:
            program = compiled(update, ws, masks, n_keep)
        kept = update(ws, masks, n_keep)[0]
        for w, mask, k in zip(ws, kept, n_keep, strict=True):
            if not np.array_equal(mask, oracle(np.asarray(w), int(k))):
                raise AssertionError(f"{name} leaves: the mask of the {w.shape} leaf is not exact")
        calls[name] = functools.partial(update, ws, masks, n_keep)
        rows.append(
            {"case": "leaves", "method": name, "leaves": len(ws), "shapes": len(set(sizes))}
            | {"n": sum(map(math.prod, sizes)), "dtype": "float32", "keep": 0.2, "answer": "exact"}
            | {"trace_s": program.trace_s, "compile_s": program.compile_s}
            | {"compile_cpu_s": program.cpu_s}
            | {"compile_cores": n_cores, "temp_bytes": temp_bytes(program.executable)}
        )
    times = interleaved(calls)
    one_ms = times["one"].median_ms
    return [
        {**row, **times[row["method"]]._asdict(), "x_one": times[row["method"]].median_ms / one_ms}
        for row in rows
    ]


def cases(quick: bool) -> list[Case]:
    """All cases: sizes, kinds of weights, many leaves, then the largest sizes."""
    gpu = jax.default_backend() == "gpu"
    sizes = (10**4, 10**5) if quick else tuple(10**e for e in range(4, 9))
    sizes_of_kinds = (10**4,) if quick else (10**6, 10**7)  # includes normal ones, keeping 20%
    # Sorting 1e7 entries takes seconds, and a single measurement of it is accurate enough.
    all_cases = [
        _case("size", "normal", n, keep, leave_out=_too_long(n, keep), slow=1.0)
        for n in sizes
        for keep in (0.1, 0.2)
        if keep == 0.1 or n not in sizes_of_kinds
    ]
    all_cases += [
        Case(f"forms {n:.0e} keep {keep:.0%}", functools.partial(forms, n, keep))
        for n in sizes
        for keep in (0.1, 0.2)
    ]
    all_cases.append(Case("structures", functools.partial(structures, 10**4 if quick else 10**7)))
    for kind in KINDS:
        for n in sizes_of_kinds:
            all_cases.append(_case("input", kind, n, 0.2, slow=1.0))
    all_cases.append(Case("transformer leaves", lambda: many_leaves(quick)))
    if not quick:
        skipped = () if gpu else (*SORTING, *SELECTING)
        all_cases += [_case("size", "bf16", n, 0.2, leave_out=skipped) for n in (10**8, 10**9)]
        all_cases += [_case("size", "normal", 10**9, 0.2)] if gpu else []
    return all_cases


def _too_long(n: int, keep: float) -> Sequence[str]:
    """The methods to skip: on a CPU, sorting 1e8 entries takes a minute."""
    if n < 10**8 or jax.default_backend() != "cpu":
        return ()
    return SORTING if keep == 0.2 else (*SORTING, *SELECTING)


def _case(case: str, kind: str, n: int, keep: float, **options: Any) -> Case:
    def rows() -> list[Row]:
        needed = n * (2 if kind == "bf16" else 4) * 10  # checking the masks takes most
        if needed > free_bytes():
            note = f"{kind} {n:.0e} skipped: it needs {needed:.0e} bytes of memory"
            return [{"case": "note", "note": note}]
        return compare(case, kind, n, keep, **options)

    return Case(f"select {kind} {n:.0e} keep {keep:.0%}", rows)


# Targets


def checks(rows: Sequence[Row]) -> list[Check]:
    """The targets for which there are rows, with what was measured."""
    at_1e7 = [r for r in rows if r["case"] == "size" and r["n"] == 10**7 and r["kind"] == "normal"]
    targets = list(_targets_at_1e7(at_1e7))
    timed = [r for r in rows if r["case"] in ("size", "input")]
    alternatives = [
        r for r in timed if r["method"] not in (READ, *JAXPRUNE) and r["answer"] != "wrong"
    ]
    if alternatives:
        worst = min(alternatives, key=lambda r: r["x_ours"])
        case = f"{worst['method']}, {worst['kind']} {worst['n']:.0e} keep {worst['keep']:.0%}"
        targets.append(
            Check(f"alternative / {COLD}, smallest ({case})", 1.0, worst["x_ours"], True)
        )
    for kind, dtype in (("normal", "float32"), ("bf16", "bfloat16")):
        ns_per_entry = [
            1e6 * r["median_ms"] / r["n"]
            for r in timed
            if r["method"] == COLD and r["kind"] == kind and r["n"] >= 10**6 and r["keep"] == 0.2
        ]
        if len(ns_per_entry) > 1:
            ratio = max(ns_per_entry) / min(ns_per_entry)
            targets.append(Check(f"ns per entry, largest / smallest, {dtype}", 2.0, ratio))
    for r in rows:
        if r["case"] == "leaves" and r["method"] == "many":
            leaves = f"{r['leaves']} leaves"
            seconds = r["trace_s"] + r["compile_s"]
            targets.append(Check(f"{leaves}: compile s, {r['compile_cores']} cores", 5.0, seconds))
            targets.append(Check(f"{leaves}: run time / one leaf", 1.5, r["x_one"]))
    return targets + list(_targets_of_forms([r for r in rows if r["case"] == "forms"]))


def _targets_of_forms(rows: Sequence[Row]) -> Iterable[Check]:
    """Given scores: reads, and the time of NumPy, which AVX-512 makes ten times as fast."""
    has_avx512 = environment()["vectors"] == "AVX-512"
    limits = {10**6: 1 / 1.2, 10**7: 2.2, 10**8: 1.7} if has_avx512 else {10**7: 15}
    for n in sorted({r["n"] for r in rows}):
        of_size = [r for r in rows if r["n"] == n]
        ms = {(r["method"], r["keep"]): r["median_ms"] for r in of_size}
        keeps = sorted({r["keep"] for r in of_size})
        if n == 10**7:
            reads = max(r["x_read"] for r in of_size if r["method"] == GIVEN)
            yield Check(f"{GIVEN} / read, 1e7", 5.5, reads)
        if n in limits:
            ratio = min(ms[PARTITION, keep] / ms[GIVEN, keep] for keep in keeps)
            yield Check(f"{PARTITION} / {GIVEN}, {n:.0e}", limits[n], ratio, True)


def _targets_at_1e7(rows: Sequence[Row]) -> Iterable[Check]:
    """Time ratios at 1e7 entries, the worse of the two densities."""
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
    """Milliseconds by method and input, and the table of many leaves."""
    shown = []
    for case, title in (("size", "Size"), ("input", "Input")):
        if case_rows := [r for r in rows if r["case"] == case]:
            shown.append(_by_method(f"{title}: median ms (x one read; t: other ties)", case_rows))
    if forms_rows := [r for r in rows if r["case"] == "forms"]:
        shown.append(_by_method("Forms of topk_mask: median ms (x one read)", forms_rows))
    if structured := [r for r in rows if r["case"] == "structures"]:
        table = Table(title="Structures and pools")
        for column in ("", "weights", "median ms", "x one read"):
            table.add_column(column, justify="right")
        for r in structured:
            size, ms, reads = f"{r['n']:.0e}", f"{r['median_ms']:.3g}", f"{r['x_read']:.3g}"
            table.add_row(r["method"], size, ms, reads)
        shown.append(table)
    if leaves := [r for r in rows if r["case"] == "leaves"]:
        table = Table(title="Many leaves")
        columns = ("", "leaves", "trace s", "compile s", "CPU s", "run ms", "x one leaf", "temp MB")
        for column in columns:
            table.add_column(column, justify="right")
        for r in leaves:
            seconds = (f"{r[key]:.2f}" for key in ("trace_s", "compile_s", "compile_cpu_s"))
            temp = f"{r['temp_bytes'] / 1e6:.0f}"
            run = f"{r['median_ms']:.1f}", f"{r['x_one']:.2f}"
            table.add_row(r["method"], str(r["leaves"]), *seconds, *run, temp)
        shown.append(table)
    return shown


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
    groups: dict[tuple[str, int, float], dict[str, Row]] = {}
    for r in rows:
        groups.setdefault((r["kind"], r["n"], r["keep"]), {})[r["method"]] = r
    return groups


def _cell(row: Row) -> str:
    note = {"ties": " t", "wrong": " WRONG"}.get(row["answer"] or "", "")
    return f"{row['median_ms']:.3g} ({row['x_read']:.3g}){note}"
