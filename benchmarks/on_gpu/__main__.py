"""`python -m benchmarks.on_gpu`: checks and times everything that needs a GPU; see the package.

It exits with 1 if a mask or a step is wrong or a case fails, and with 0 if only goals are missed.
The JSON is rewritten after every case.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Before jax starts the GPU: torch and the tests need memory, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.common import Case, Check, Row, environment, write_json
from benchmarks.on_gpu import correct, timed
from benchmarks.topk_methods import COLD, JAXPRUNE, READ, why_no_torch

_LIMIT_S, _TESTS_S = 330.0, 70.0
_LARGE = 10**8  # smaller masks take as long as starting their kernels


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all cases; returns 1 if something is wrong, otherwise 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="the JSON to write")
    parser.add_argument(
        "--seconds", type=float, default=_LIMIT_S, help="no case starts after this many seconds"
    )
    parser.add_argument(
        "--only", default="", help="run only the cases whose name contains this text"
    )
    args = parser.parse_args(argv)
    if not args.seconds > 0:
        parser.error(f"--seconds must be positive, got {args.seconds:g}")
    small = jax.default_backend() != "gpu"
    start = time.perf_counter()
    cases = [c for c in _cases(small, start + args.seconds + _TESTS_S) if args.only in c.name]
    if not cases:
        names = ", ".join(c.name for c in _cases(small, 0.0))
        parser.error(f"no case contains {args.only!r}; the cases are {names}")
    rows: list[Row] = []
    path = args.out or _default_path(small)
    for case in cases:
        rows += _measured(case, time.perf_counter() - start, args.seconds)
        _write(path, rows, small, time.perf_counter() - start)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(rows, small))
    for check in checks(rows, time.perf_counter() - start):
        sign, ok = (">=", "<=")[not check.at_least], "met" if check.ok else "MISSED"
        console.print(f"goal {ok}: {check.target} {sign} {check.limit:g}: {check.measured:.4g}")
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return int(any("error" in row or row.get("answer") not in (None, "exact") for row in rows))


def _cases(small: bool, deadline: float) -> list[Case]:
    """The most important cases first; the tests run until the deadline."""
    names = correct.SMALL_TESTS if small else correct.TESTS
    last = Case("tests", lambda: correct.tests(max(deadline - time.perf_counter(), 1.0), names))
    main_cases, more_cases = correct.cases(small)
    return [*main_cases, *timed.cases(small), *more_cases, last]


def _measured(case: Case, seconds: float, limit: float) -> list[Row]:
    """The rows of a case; one row with the reason if it fails or if the time has run out."""
    if seconds > limit:
        return [{"case": case.name, "skipped": f"{seconds:.0f} of {limit:.0f} s were over"}]
    start = time.perf_counter()
    try:
        rows = case.rows()
    except Exception as error:  # the other cases are still worth running
        rows = [{"case": case.name, "error": f"{type(error).__name__}: {error}"[:300]}]
    took = time.perf_counter() - start
    print(f"{took:6.1f} s  {case.name}", file=sys.stderr, flush=True)
    return [row | {"case_s": took} for row in rows]


def _default_path(small: bool) -> Path:
    folder = Path(tempfile.mkdtemp()) if small else Path(__file__).parents[1] / "results"
    return folder / f"on_gpu-{jax.default_backend()}.json"


def _write(path: Path, rows: Sequence[Row], small: bool, seconds: float) -> None:
    about = {"benchmark": "on_gpu", "small": small, "environment": environment()}
    goals = [{**check._asdict(), "ok": check.ok} for check in checks(rows, seconds)]
    content = about | {"seconds": seconds, "notes": [why_no_torch()], "goals": goals}
    write_json(path, content | {"rows": list(rows)})


def bandwidth(rows: Sequence[Row]) -> float:
    """Gigabytes per second of the fastest read of weights."""
    reads = [r for r in rows if r["case"] == "mask" and r["method"] == READ]
    return max((1e3 * r["gigabytes"] / r["median_ms"] for r in reads), default=float("nan"))


def n_reads(row: Row, rows: Sequence[Row]) -> float:
    """The time of a mask in reads of its weights at the measured bandwidth."""
    return row["median_ms"] * bandwidth(rows) / (1e3 * row["gigabytes"])


def checks(rows: Sequence[Row], seconds: float) -> list[Check]:
    """The goals on a GPU, for which there are rows; the worst case of each."""
    goals = [Check("seconds in all", 420, seconds)]
    large = [r for r in rows if r["case"] == "mask" and "median_ms" in r and r["n"] >= _LARGE]
    if reads := [n_reads(r, rows) for r in large if r["method"] in JAXPRUNE]:
        goals.append(Check("reads of a mask of 1e8 weights or more", 12, max(reads)))
    if times := [r["x_jaxprune"] for r in large if r["method"] in timed.SORTS]:
        goals.append(Check("time of the fastest sort / jaxprune", 10, min(times), at_least=True))
    quiet = [r["x_adamw"] for r in rows if r["case"] == "step" and r["method"] != "adamw"]
    if quiet:
        goals.append(Check("quiet step / adamw", 1.01, max(quiet)))
    return goals


def table(rows: Sequence[Row], small: bool) -> Table:
    """All rows: what, how long, and compared with what."""
    device = jax.devices()[0].device_kind
    size = "small sizes, no GPU" if small else f"{bandwidth(rows):,.0f} GB/s read"
    out = Table(title=f"{device}, JAX {jax.__version__}, {size}")
    for column in ("case", "dtype", "method", "ms", "fire ms", "compared", "compile s", "answer"):
        out.add_column(column, justify="right")
    for row in rows:
        ms, fire_ms = (f"{row[k]:.3f}" if k in row else "" for k in ("median_ms", "fire_ms"))
        compiled = f"{row['compile_s']:.1f}" if "compile_s" in row else ""
        answer = next(
            (str(row[k]) for k in ("error", "failed", "skipped", "answer") if k in row), ""
        )
        name, method = _name(row), str(row.get("method", ""))
        cells = name, row.get("dtype", ""), method, ms, fire_ms, _compared(row, rows), compiled
        out.add_row(*cells, f"{answer} {row.get('note', '')}".strip())
    return out


def _name(row: Row) -> str:
    if row["case"] == "correct":
        return row["what"]
    batch = f", batch {row['batch']}" if "batch" in row else ""
    return f"{row['case']} {row['n']:.0e}{batch}" if "n" in row else row["case"]


def _compared(row: Row, rows: Sequence[Row]) -> str:
    """The time of a row, divided by that of what it is compared with."""
    if row["case"] == "mask" and "median_ms" in row:
        against = f", {row['x_jaxprune']:.1f} x {COLD}" if row["method"] in timed.SORTS else ""
        return f"{n_reads(row, rows):.1f} reads{against}"
    ratios = {"x_adamw": "adamw", "x_dense": "dense", "x_one": "one leaf"}
    return ", ".join(f"{row[key]:.3f} x {name}" for key, name in ratios.items() if key in row)


if __name__ == "__main__":
    raise SystemExit(main())
