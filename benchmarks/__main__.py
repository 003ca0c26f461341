"""`python -m benchmarks [NAME ...]` runs benchmarks, prints their tables and saves the results.

Each benchmark writes `NAME-BACKEND.json` and pictures beside it. The JSON file is rewritten after
every case, so pressing Ctrl-C keeps the results so far; `--resume` runs the cases that are missing.
`--only TEXT` measures the cases whose name contains TEXT again and keeps the rows of all others.
`python -m benchmarks redraw` draws the pictures from the JSON files again, those of
`benchmarks.paper` included, and measures nothing. `python -m benchmarks against [COMMIT]` compares
the speed of this version with that of an earlier commit.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import (
    bench_against,
    bench_algorithms,
    bench_calibrate,
    bench_files,
    bench_gpu_programs,
    bench_inference,
    bench_litert,
    bench_minilm,
    bench_select,
    bench_sharding,
    bench_shrink,
    bench_step,
    bench_sweep,
    bench_tpu,
    plots,
    scale_plan,
)
from benchmarks.common import Check, Row, environment, load_average, write_json
from benchmarks.redraw import redraw
from benchmarks.topk_methods import why_no_torch

_BENCHMARKS: dict[str, types.ModuleType] = {
    "select": bench_select,
    "step": bench_step,
    "sweep": bench_sweep,
    "calibrate": bench_calibrate,
    "algorithms": bench_algorithms,
    "files": bench_files,
    "gpu_programs": bench_gpu_programs,
    "inference": bench_inference,
    "litert": bench_litert,
    "sharding": bench_sharding,
    "scale_plan": scale_plan,
    "shrink": bench_shrink,
    "tpu": bench_tpu,
    "minilm": bench_minilm,
    "against": bench_against,
}
# These need packages that few people have installed, or a clone with an earlier commit, so they run
# only when they are named.
_BY_REQUEST = {"gpu_programs", "litert", "minilm", "tpu", "against"}
_NAMES = ", ".join(_BENCHMARKS)
_RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks named on the command line.

    Returns:
      0; 130 if interrupted; 1 if a benchmark can't run on this machine.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.which[:1] == ["redraw"]:
        for file in redraw(args.out or _RESULTS, args.which[1:]):
            print(f"wrote {file}")
        return 0
    commit = bench_against.DEFAULT_COMMIT
    if args.which[:1] == ["against"] and len(args.which) == 2:
        commit = args.which.pop()
    if unknown := set(args.which) - set(_BENCHMARKS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}: choose from {_NAMES}")
    if args.target and "gpu_programs" not in args.which:
        parser.error("--target is for gpu_programs: python -m benchmarks gpu_programs --target ...")
    if "gpu_programs" in args.which and (reason := bench_gpu_programs.prepare(args.target)):
        print(reason, file=sys.stderr)
        return 1
    out = args.out or (Path(tempfile.mkdtemp()) if args.quick else _RESULTS)
    # When the output is piped, rich assumes 80 columns, which are too few for these tables.
    console = Console(width=None if sys.stdout.isatty() else 160)
    names = args.which or [n for n in _BENCHMARKS if n not in _BY_REQUEST]
    if args.only:
        names = [n for n in names if _has_case(n, args.only, quick=args.quick)]
        if not names:
            parser.error(f"--only {args.only}: no case of these benchmarks contains it")
    with contextlib.ExitStack() as stack:
        if "against" in names and (reason := bench_against.start(commit, stack)):
            print(reason, file=sys.stderr)
            return 1
        for name in names:
            code = run(name, out, console, quick=args.quick, only=args.only, resume=args.resume)
            if code:
                return code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "which",
        nargs="*",
        metavar="NAME",
        help=f"{_NAMES} (default: all except {', '.join(sorted(_BY_REQUEST))}); or redraw, "
        "alone or with beginnings of file names such as select or paper-lstm; or against, alone or "
        f"with a commit (default: {bench_against.DEFAULT_COMMIT})",
    )
    parser.add_argument(
        "--quick", action="store_true", help="run tiny sizes and write to a temporary folder"
    )
    parser.add_argument("--out", type=Path, help=f"folder of the results (default: {_RESULTS})")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="run only the cases whose name contains TEXT; keep the rows of the others",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the cases that the file has, run the others"
    )
    parser.add_argument(
        "--target", help="of gpu_programs: h100, a100, or a file that describes a GPU to XLA"
    )
    return parser


def _has_case(name: str, text: str, *, quick: bool) -> bool:
    return any(text in case.name for case in _BENCHMARKS[name].cases(quick))


def run(
    name: str,
    out: Path,
    console: Console,
    *,
    quick: bool,
    only: str = "",
    resume: bool = False,
) -> int:
    """Runs one benchmark and writes its results.

    Returns:
      0; 130 if interrupted; 1 if the rows in the file do not say which case they are from, so that
      `only` and `resume` can't keep those of the other cases. The file is then unchanged.
    """
    bench = _BENCHMARKS[name]
    path = out / f"{name}-{jax.default_backend()}.json"
    rows, earlier = _earlier_run(path) if resume or only else ([], [])
    if unnamed := sum("case_name" not in row for row in rows):
        print(
            f"{path}: {unnamed} of {len(rows)} rows have no case_name, so --only and --resume "
            "can't keep the rows of other cases. Measure all cases again, "
            f"python -m benchmarks {name}, or write to another folder with --out.",
            file=sys.stderr,
        )
        return 1
    by_case = _by_case(rows)
    done = set(by_case) if resume else set()
    cases = [case for case in bench.cases(quick) if only in case.name and case.name not in done]
    reason = why_no_torch() if name == "select" else ""
    notes = [reason] if reason else []
    facts: Row = {"quick": quick, "environment": environment()}
    if earlier:
        facts["earlier_environments"] = earlier
    finished = False
    with contextlib.suppress(KeyboardInterrupt):
        for case in tqdm(cases, desc=name):
            measured = case.rows()
            notes += [row["note"] for row in measured if row["case"] == "note"]
            about = {"case_name": case.name, "load_average": load_average()[:1]}
            if new := [row | about for row in measured if row["case"] != "note"]:
                by_case[case.name] = new
            rows = list(itertools.chain.from_iterable(by_case.values()))
            _write(path, name, rows, bench.checks(rows), {"finished": False, **facts}, notes)
        finished = True
    checks = bench.checks(rows)
    _write(path, name, rows, checks, {"finished": finished, **facts}, notes)
    for table in [*bench.tables(rows), _targets(checks)]:
        console.print(table)
    plot_files = plots.draw(name, rows, path)
    for line in [*notes, *(f"wrote {file}" for file in (path, *plot_files))]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0 if finished else 130


def _earlier_run(path: Path) -> tuple[list[Row], list[Row]]:
    """The rows of the file at `path`, and the environments in which they were measured."""
    if not path.exists():
        return [], []
    content = json.loads(path.read_text())
    return content["rows"], [*content.get("earlier_environments", []), content["environment"]]


def _by_case(rows: Sequence[Row]) -> dict[str, list[Row]]:
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row["case_name"], []).append(row)
    return by_case


def _write(
    path: Path,
    name: str,
    rows: Sequence[Row],
    checks: Sequence[Check],
    facts: Row,
    notes: Sequence[str],
) -> None:
    targets = [{**check._asdict(), "ok": check.ok} for check in checks]
    content = {"benchmark": name, **facts, "notes": notes, "targets": targets, "rows": rows}
    write_json(path, content)


def _targets(checks: Sequence[Check]) -> Table:
    table = Table(title="Targets")
    for column in ("target", "limit", "measured", "ok"):
        table.add_column(column, justify="left" if column == "target" else "right")
    for check in checks:
        limit = f"{'>=' if check.at_least else '<='} {check.limit:g}"
        ok = "[green]yes" if check.ok else "[red]NO"
        table.add_row(check.target, limit, f"{check.measured:.3g}", ok)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
