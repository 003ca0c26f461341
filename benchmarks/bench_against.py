"""How fast is this version, compared with an earlier commit?

    python -m benchmarks against [COMMIT]

The earlier version is unpacked from git into a temporary folder. Each version runs in a process of
its own, and the two take turns: each runs a program for about 20 ms, then the other version does.
The ratio of a round is the time of the earlier version divided by that of this one; a row has the
median of the rounds, and the quartiles. There are ratios of seconds, and of CPU seconds, which
other load on the machine changes less.

Both versions must make the same masks; only scores that are sums may be rounded differently, so
masks of blocks must only keep equally many. NumPy and one streaming read of the weights take turns
with both versions.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks.common import Case, Check, Row
from benchmarks.versions import Worker, both_versions, full_hash

# The commit before the selection was made faster.
DEFAULT_COMMIT = "c1e1184"
SCORES, WEIGHTS = "topk_mask(scores)", "topk_mask(w, score=jnp.abs)"
COMPILE = "chain(adamw, prune)"
STRUCTURES = ("unstructured", "NM(2, 4)", "blocks", "per_slice", "global pool", "wanda")
KINDS = ("bf16", "f16", "zeros90", "constant", "ties")
_ROUNDED = {"blocks"}
# How many rounds there are, and how many if a call takes longer than these seconds.
_ROUNDS, _LONG_ROUNDS, _LONG_SECONDS = 15, 5, 0.5


class Program(NamedTuple):
    """What a version runs: the arguments of `version_worker.Programs.prepare`."""

    name: str
    maker: str
    facts: dict[str, Any]


class _Versions(NamedTuple):
    commit: str
    workers: dict[str, Worker]  # "earlier" and "this"


_running: list[_Versions] = []


def start(commit: str, stack: contextlib.ExitStack) -> str:
    """Starts the versions to compare, which end with the stack; returns why not, "" if they run."""
    try:
        commit = full_hash(commit)
    except LookupError as error:
        return str(error)
    earlier, this = stack.enter_context(both_versions(commit))
    _running.append(_Versions(commit, {"earlier": earlier, "this": this}))
    stack.callback(_running.clear)
    return ""


# Cases


def compare(
    case: str,
    programs: Sequence[Program],
    beside: Sequence[Program] = (),
    *,
    n_rounds: int = _ROUNDS,
) -> list[Row]:
    """One row for each program.

    Args:
      case: the kind of case.
      programs: what both versions run.
      beside: what takes turns with them, and is the same in both versions.
      n_rounds: how many rounds there are at most.
    """
    commit, workers = _running[-1]
    turns = [(program.name, version) for program in programs for version in workers]
    turns += [(program.name, "this") for program in beside]
    by_name = {program.name: program for program in (*programs, *beside)}
    ready: dict[tuple[str, str], Row] = {
        (name, version): workers[version]("prepare", **by_name[name]._asdict())
        for name, version in turns
    }
    for program in programs:
        _require_same(program, *(ready[program.name, version] for version in workers))
    is_long = max(row["seconds"] for row in ready.values()) > _LONG_SECONDS
    rounds = _timed(turns, min(n_rounds, _LONG_ROUNDS) if is_long else n_rounds)
    for worker in workers.values():
        worker("forget")
    about: Row = {"case": case, "against": commit}
    for i, kind in enumerate(("ms", "cpu_ms")):
        about[f"beside_{kind}"] = {p.name: _ms(rounds[p.name, "this"], i) for p in beside}
    return [
        about
        | {"method": program.name, **program.facts}
        | {"is_same": len({ready[program.name, version]["hash"] for version in workers}) == 1}
        | _ratios(*(rounds[program.name, version] for version in workers))
        for program in programs
    ]


def _timed(
    turns: Sequence[tuple[str, str]], n_rounds: int
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Seconds and CPU seconds of each program and version, the medians of each round."""
    rounds: dict[tuple[str, str], list[tuple[float, float]]] = {turn: [] for turn in turns}
    for i in range(n_rounds):
        # In every second round backwards, so that no version always follows the other.
        for name, version in turns if i % 2 == 0 else reversed(turns):
            calls = _running[-1].workers[version]("turn", name=name)
            seconds, cpu_seconds = zip(*calls, strict=True)
            medians = statistics.median(seconds), statistics.median(cpu_seconds)
            rounds[name, version].append(medians)
    return rounds


def _require_same(program: Program, earlier: Row, this: Row) -> None:
    """Raises if the versions do not make the same masks."""
    compared = ("n_kept",) if program.name in _ROUNDED else ("n_kept", "hash")
    if any(earlier[key] != this[key] for key in compared):
        raise AssertionError(
            f"{program.name} {program.facts}: the versions keep {earlier['n_kept']} and "
            f"{this['n_kept']} entries, and must make the same masks"
        )


def _ratios(earlier: Sequence[tuple[float, float]], this: Sequence[tuple[float, float]]) -> Row:
    """Milliseconds of both versions, and their ratios."""
    row: Row = {"rounds": len(this)}
    for i, kind in enumerate(("", "cpu_")):
        ratios = [before[i] / now[i] for before, now in zip(earlier, this, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row |= {f"earlier_{kind}ms": _ms(earlier, i), f"this_{kind}ms": _ms(this, i)}
        row |= {f"x_{kind}faster": middle, f"x_{kind}quartiles": [low, high]}
    return row


def _ms(rounds: Sequence[tuple[float, float]], i: int) -> float:
    return 1e3 * statistics.median(seconds[i] for seconds in rounds)


def cases(quick: bool) -> list[Case]:
    """Selection by size, density and kind of weights, then structures, many leaves, compiling."""
    sizes = (10**4,) if quick else tuple(10**e for e in range(4, 9))
    inputs = [("normal", n, keep) for n in sizes for keep in (0.1, 0.2)]
    kinds = [(kind, n, 0.2) for kind in KINDS for n in ((10**4,) if quick else (10**6, 10**7))]
    all_cases: list[Any] = [_selection(*facts) for facts in (*inputs, *kinds)]
    n = 10**4 if quick else 10**7
    all_cases += [
        _case("structures", method, [Program(method, "structure", {"n": n, "method": method})])
        for method in STRUCTURES
    ]
    leaves = [
        Program(name, "leaves", {"quick": quick, "joined": joined})
        for name, joined in (("many leaves", False), ("one leaf", True))
    ]
    all_cases.append(_case("leaves", "many leaves", leaves))
    for layers, width in ((1, 8),) if quick else ((4, 128), (24, 256)):
        compiling = [
            Program(name, "compile", {"layers": layers, "width": width, "pruned": pruned})
            for name, pruned in ((COMPILE, True), ("adamw", False))
        ]
        all_cases.append(_case("compile", f"{layers} layers", compiling[:1], compiling[1:]))
    if quick:
        return [Case(case.name, partial(case.rows, n_rounds=2)) for case in all_cases]
    return all_cases


def _case(case: str, name: str, programs: list[Program], beside: Sequence[Program] = ()) -> Case:
    rows: Callable[[], list[Row]] = partial(compare, case, programs, beside)
    return Case(f"{case} {name}", rows)


def _selection(kind: str, n: int, keep: float) -> Case:
    facts = {"kind": kind, "n": n, "keep": keep}
    programs = [Program(SCORES, "scores", facts)]
    beside = [Program("read", "read", facts)]
    if kind == "normal":
        programs.append(Program(WEIGHTS, "weights", facts))
        beside.append(Program("np.partition", "partition", facts))
    return _case("select", f"{kind} {n:.0e} keep {keep:.0%}", programs, beside)


# Targets


def checks(rows: Sequence[Row]) -> list[Check]:
    """The targets for which there are rows, with what was measured: the worse of two densities."""
    scores = {10**4: 1.5, 10**5: 1.5, 10**6: 1.5, 10**7: 2.0, 10**8: 2.0}
    weights = {10**6: 1.5, 10**7: 3.0, 10**8: 2.5}
    targets = []
    for method, limits in ((SCORES, scores), (WEIGHTS, weights)):
        for n, limit in limits.items():
            where = (method, "normal", n)
            ratios = [
                r["x_faster"] for r in rows if (r["method"], r.get("kind"), r.get("n")) == where
            ]
            if ratios:
                targets.append(Check(f"{method}, {n:.0e}", limit, min(ratios), True))
    others = [r for r in rows if r["case"] == "select" and r["kind"] != "normal"]
    if others:
        worst = min(others, key=lambda r: r["x_faster"])
        name = f"{worst['kind']} {worst['n']:.0e}, the worst of other weights"
        targets.append(Check(name, 0.95, worst["x_faster"], True))
    for r in rows:
        if r["case"] == "structures" and r["method"] != "unstructured":
            targets.append(Check(r["method"], 1.5, r["x_faster"], True))
        if r["case"] == "compile":
            name = f"compile CPU s / adamw, {r['layers']} layers"
            targets.append(Check(name, 3.0, r["this_cpu_ms"] / r["beside_cpu_ms"]["adamw"]))
    leaves = {r["method"]: r["this_ms"] for r in rows if r["case"] == "leaves"}
    if leaves:
        x_one = leaves["many leaves"] / leaves["one leaf"]
        targets.append(Check("many leaves / one leaf", 1.5, x_one))
    return targets


def tables(rows: Sequence[Row]) -> list[Table]:
    """Milliseconds of both versions and their ratios, a row for each program."""
    if not rows:
        return []
    table = Table(title=f"This version against {rows[0]['against'][:7]}")
    for column in ("", "of", "earlier ms", "this ms", "times faster", "by CPU s", "beside: ms"):
        table.add_column(column, justify="right")
    for r in rows:
        low, high = r["x_quartiles"]
        numbers = f"{r['earlier_ms']:.3g}", f"{r['this_ms']:.3g}"
        ratios = f"{r['x_faster']:.2f} ({low:.2f} to {high:.2f})", f"{r['x_cpu_faster']:.2f}"
        beside = ", ".join(f"{name} {ms:.3g}" for name, ms in r["beside_ms"].items())
        table.add_row(r["method"], of_what(r), *numbers, *ratios, beside)
    return [table]


def of_what(row: Row) -> str:
    """The operands of a row, in a few words."""
    if row["case"] == "select":
        return f"{row['kind']} {row['n']:.0e} keep {row['keep']:.0%}"
    if row["case"] == "compile":
        return f"{row['layers']} layers"
    return "" if row["case"] == "leaves" else f"{row['n']:.0e}"
