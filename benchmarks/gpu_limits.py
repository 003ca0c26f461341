"""The limits for programs on GPUs, and where a program is known to miss one.

A limit has the name of a number of a row, `quiet_extra` for example. A known miss is listed with
its number until the program is within the limit. `recipes` tests compile the programs of `tested`
and fail if a number gets worse, if there is a new miss, or if a listed one is over.

`JAX_PLATFORMS=cpu python -m benchmarks.gpu_limits` compiles them and writes the list anew;
`python -m benchmarks.gpu_limits benchmarks/results/gpu_programs-cpu.json` takes it from results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks import gpu_kinds
from benchmarks.common import Check, Row, write_json
from benchmarks.gpu_kinds import AUTO, EXPLICIT
from benchmarks.gpu_reading import about, place, rows_of, step_row
from benchmarks.gpu_targets import H100

TIGHT = ("unstructured", "inner", "bit masks", "hashed ties", "global pool", "movement")
LOOSE = ("NM(2, 4)", "blocks", "balanced blocks", "channels", "normalized pool", "random score")
LOOSE += ("rigl", "per_slice")
_TESTED_BFLOAT16 = ("unstructured", "channels")
MISSES = Path(__file__).parent / "gpu_known_misses.json"
# Besides scores a pass reads masks, one byte a weight, and the counts of rows.
_MASK_AND_COUNTS, _COUNTS = 1.2, 0.2


def limits(row: Row) -> Iterator[tuple[str, float]]:
    """The limits for a row: the name of a number in it, and the most that this may be."""
    kind, is_many = row["kind"], row["devices"] > 1
    # Given `abs(w)`, XLA stores it before the search.
    is_tight = kind in TIGHT or kind in gpu_kinds.OWN_MASKS[:2]
    if row["case"] == "step":
        yield "quiet_extra", 5
        yield "copies", 0
    if is_tight or kind == "large leaves":
        yield "temp_per_weight", 0.2 if is_many else 0.1
        # The scores of `movement` are sums, float32 for weights of any dtype. A pass reads them in
        # place of the weights.
        score_bytes = 4 if kind == "movement" else row["item_bytes"]
        yield "pass_read_per_weight", score_bytes + _MASK_AND_COUNTS
        yield "pass_written_per_weight", _COUNTS
        # Leaves of 4e6 weights and more are not stacked: two kernels each.
        more = 2 * (row["leaves"] - 1) if kind == "large leaves" else 0
        yield "pass_kernels", more + (8 if is_many else 6)
    if is_tight and is_many:
        yield "pass_collectives", 1
        yield "gathered", 0
    if kind in LOOSE:
        yield "temp_per_weight", 0.5
    if kind == "150 leaves":
        yield "temp_per_weight", 4.2
        yield "pass_kernels", 30
        yield "fire_kernels", 150
        yield "compile_s", 5
    if row["case"] == "layer":
        yield "temp_per_weight", _of_layer(row)


def _of_layer(row: Row) -> float:
    """Bytes a weight for the programs of one kernel: nothing of its size, but for SparseGPT.

    SparseGPT holds the Cholesky factor and its inverse, float32[n_in, n_in] each. Then it changes
    the weights in float32. For float32 weights that is in the memory of the result, and the inverse
    takes memory of its own. Narrower ones need a float32 copy, and the inverse fits into the memory
    of the result.
    """
    some = row["item_bytes"] / 2
    if row["kind"] != "sparsegpt":
        return 0.5 if row["kind"] == "wanda" else some
    two_factors = 2 * 4 * gpu_kinds.KERNEL[0] ** 2 / row["weights"]
    return some + max(two_factors, 4 if row["item_bytes"] < 4 else 0)


def name(row: Row) -> str:
    """Which program a row is about."""
    return f"{row['kind']}, {row['devices']} {row['axes']}, {row['dtype']}, {row['target']}"


def checks_of(row: Row) -> list[Check]:
    """The limits of a row, with what was read."""
    if "error" in row:
        return []
    return [Check(f"{what}: {name(row)}", limit, row[what]) for what, limit in limits(row)]


def worst_checks(rows: Sequence[Row]) -> list[Check]:
    """For each number and limit on each place, the program that is furthest from the limit."""
    worst: dict[tuple[str, float, int, str], Check] = {}
    for row in rows:
        for check in checks_of(row):
            key = check.target.split(":")[0], check.limit, row["devices"], row["axes"]
            if key not in worst or check.measured > worst[key].measured:
                worst[key] = check
    return list(worst.values())


def tested() -> Iterator[list[Row]]:
    """Compiles one program of each kind, and those with the tightest limits on eight devices."""
    one = place(H100, 1, AUTO)
    yield rows_of("layer", gpu_kinds.layers(one, "float32"), about("layer", H100, one, "float32"))
    for kind in _TESTED_BFLOAT16:
        yield [step_row(H100, kind, 1, AUTO, "bfloat16")]
    for n_devices, axes in ((1, AUTO), (8, AUTO), (8, EXPLICIT)):
        where = place(H100, n_devices, axes)
        masks = gpu_kinds.masks(where, "float32", sorting=False)
        yield rows_of("mask", masks, about("mask", H100, where, "float32"))
        for kind in gpu_kinds.STEPS if n_devices == 1 else TIGHT:
            yield [step_row(H100, kind, n_devices, axes, "float32")]


def is_tested(row: Row) -> bool:
    """Whether a row of the benchmark is one that `tested` compiles."""
    where = row["target"], row["devices"], row.get("axes"), row.get("dtype")
    if where == ("h100", 1, "Auto", "bfloat16"):
        return row["kind"] in _TESTED_BFLOAT16
    if where == ("h100", 1, "Auto", "float32"):
        return True
    is_eight = where in [("h100", 8, axes, "float32") for axes in ("Auto", "Explicit")]
    return is_eight and (row["case"] == "mask" or row["kind"] in TIGHT)


def tested_checks(rows: Sequence[Row]) -> list[Check]:
    """The limits of the tested programs, without that of the seconds of compiling."""
    all_checks = [check for row in rows for check in checks_of(row)]
    return [check for check in all_checks if not check.target.startswith("compile_s")]


def known_misses() -> dict[str, float]:
    """From the target of a check to the number with which it misses its limit."""
    return json.loads(MISSES.read_text(encoding="utf-8")) if MISSES.exists() else {}


def differences(checks: Sequence[Check], known: dict[str, float]) -> list[str]:
    """What differs from the known misses, a line each; none if nothing does."""
    lines = []
    for check in checks:
        miss = known.get(check.target)
        if check.ok and miss is not None:
            lines.append(f"{check.target}: {check.measured:g} is within {check.limit:g} now")
        elif not check.ok and miss is None:
            lines.append(f"{check.target}: {check.measured:g} is more than {check.limit:g}")
        elif miss is not None and check.measured > 1.01 * miss:
            lines.append(f"{check.target}: {check.measured:g}, was {miss:g} of {check.limit:g}")
    return lines


def _main(results: Sequence[str]) -> None:
    if results:
        all_rows = json.loads(Path(results[0]).read_text(encoding="utf-8"))["rows"]
        rows = [row for row in all_rows if is_tested(row)]
    else:
        rows = [row for some in tqdm(tested()) for row in some]
    checks, old = tested_checks(rows), known_misses()
    write_json(MISSES, {c.target: round(c.measured, 3) for c in checks if not c.ok})
    print("\n".join(differences(checks, old)) or "no differences")


if __name__ == "__main__":
    _main(sys.argv[1:])
