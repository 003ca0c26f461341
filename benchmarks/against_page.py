"""Writes the results of `python -m benchmarks against` into docs/performance.md.

    python -m benchmarks.against_page

The section is put before that of a training step, in place of an older one. It has the tables of
two processors: the first is the one of `against-cpu.json`, on which every case was run last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
PAGE = _ROOT / "docs" / "performance.md"
# The results on an Intel Xeon, and those on an AMD EPYC.
RESULTS = ("against-cpu", "against-amd-cpu")
_SIZES = tuple(10**e for e in range(4, 9))
_FORMS = ("topk_mask(scores)", "topk_mask(w, score=jnp.abs)")
_STRUCTURES = {
    "unstructured": "unstructured",
    "NM(2, 4)": "`NM(2, 4)`",
    "blocks": "`Block((1, 16))`",
    "per_slice": "`per_slice`",
    "global pool": "global pool",
    "wanda": "`wanda`",
    "many leaves": "300 leaves",
}
# Below this ratio nothing is said to have become faster.
_FASTER = 1.05
_NO_CHANGE = "Compiling has not become faster. "
_NEXT = "## A training step"
_FIRST = "### Against an earlier version"
_SECTION = """\
### Against an earlier version

The tables below show how many times faster selection is than in an earlier commit ({commit}): its
time divided by the time of this version. Each case was run with 10 % and with 20 % of the weights
kept, and the tables show the smaller ratio. `python -m benchmarks against` runs both versions
alternately, each in its own process, and compares their masks. The last line is the time of
`np.partition`, from scores to mask, divided by that of this version. On the Intel Xeon
([against-cpu.json](../benchmarks/results/against-cpu.json)):

{intel}

On the AMD EPYC ([against-amd-cpu.json](../benchmarks/results/against-amd-cpu.json)):

{amd}

On the Xeon, the kinds of pruning above gained as follows. *Other weights* is the smallest gain
among five special inputs (90 % zeros, ties, constants, bfloat16, float16). The last two columns are
CPU times to trace and compile an update of `adamw` with `prune`, for 4 and 24 layers:

{kinds}

{change}The update of `adamw` with `prune` takes {compiling} times the CPU time
of `adamw` alone to trace and compile (4 and 24 layers), {seconds} s more: the search at a fire is
part of the program, although most steps skip it. JAX's persistent compilation cache saves this from
the second run on.

"""


def section() -> str:
    """The section with the tables of the results.

    Raises:
      ValueError: the results are of several earlier commits, after `--only` or `--resume`.
    """
    intel, amd = map(rows_of, RESULTS)
    commits = sorted({row["against"][:7] for row in (*intel, *amd)})
    if len(commits) > 1:
        raise ValueError(
            f"{' and '.join(RESULTS)} compare with {', '.join(commits)}. Run all cases with "
            "one commit: python -m benchmarks against COMMIT"
        )
    others = [row for row in intel if row["case"] == "select" and row["kind"] != "normal"]
    by_method = {row["method"]: row["x_faster"] for row in intel if row["case"] != "select"}
    kinds = [*map(by_method.__getitem__, _STRUCTURES), min(row["x_faster"] for row in others)]
    compiled = [row for row in intel if row["case"] == "compile"]
    kinds += [row["x_cpu_faster"] for row in compiled]
    alone = [row["beside_cpu_ms"]["adamw"] for row in compiled]
    pairs = [(row["this_cpu_ms"], ms) for row, ms in zip(compiled, alone, strict=True)]
    names = [*_STRUCTURES.values(), "other weights", "compiling 4", "compiling 24"]
    return _SECTION.format(
        commit=commits[0],
        intel=_by_size(intel),
        amd=_by_size(amd),
        kinds=_table(names, kinds),
        change=_NO_CHANGE * any(row["x_cpu_faster"] < _FASTER for row in compiled),
        compiling=" and ".join(_two_digits(this / ms) for this, ms in pairs),
        seconds=" and ".join(_two_digits((this - ms) / 1000) for this, ms in pairs),
    )


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a results file."""
    path = _ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def _by_size(rows: Sequence[dict[str, Any]]) -> str:
    """The table by number of weights."""
    normal = [row for row in rows if row["case"] == "select" and row["kind"] == "normal"]
    lines = [[f"`{form}`", *_least(normal, form, lambda row: row["x_faster"])] for form in _FORMS]
    against_numpy = lambda row: row["beside_ms"]["np.partition"] / row["this_ms"]
    lines.append(["`np.partition`", *_least(normal, _FORMS[0], against_numpy)])
    return _table(["", *(f"1e{len(str(n)) - 1}" for n in _SIZES)], *lines, has_names=True)


def _least(rows: Sequence[dict[str, Any]], form: str, ratio: Any) -> list[float]:
    """The ratio of a form at each size, the smaller one of two densities."""
    of_form = [row for row in rows if row["method"] == form]
    return [min(ratio(row) for row in of_form if row["n"] == n) for n in _SIZES]


def _table(names: Sequence[str], *lines: Sequence[Any], has_names: bool = False) -> str:
    """A table in Markdown; numbers get two digits."""
    cells = [[x if isinstance(x, str) else _two_digits(x) for x in line] for line in lines]
    marks = ["---" if has_names and i == 0 else "---:" for i in range(len(names))]
    table = [f"| {' | '.join(line)} |" for line in (names, *cells)]
    return "\n".join([table[0].replace("|  |", "| |"), f"|{'|'.join(marks)}|", *table[1:]])


def _two_digits(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def filled(page: str) -> str:
    """The page with this section."""
    before, after = page.split(_NEXT)
    return before.partition(_FIRST)[0] + section() + _NEXT + after


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote the section '{_FIRST}' of {PAGE.relative_to(_ROOT)}")
