"""`python -m tests.measured_lines FILE`: how much of jaxprune the tests execute, by package.

FILE is what `coverage json` writes. The result is benchmarks/results/coverage-cpu.json: lines and
branches of each package, and the lines that were missed, by the reason why or by file.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import environment, write_json

_ROOT = Path(__file__).parents[1]
COMMAND = "HYPOTHESIS_PROFILE=short python -m coverage run -m pytest -n0"
# Why lines of a file are missed by the default tests on one machine: whole functions of it.
REASONS = {
    "_base/agreement.py": "several processes: `pytest -m slow`",
    "_base/counting.py": "TPUs and explicit meshes: `pytest -m slow`",
    "_base/sharding.py": "TPUs and explicit meshes: `pytest -m slow`",
    "_transform/decide.py": "TPUs and explicit meshes: `pytest -m slow`",
    "_transform/update.py": "other versions of JAX: `bash .ci/run versions`",
    "_trace/view_rules.py": "other versions of JAX: `bash .ci/run versions`",
    "_trace/axis_shapes.py": "other versions of JAX: `bash .ci/run versions`",
    "_cli/interrupts.py": "the process ends at once, without writing what it executed",
    "_cli/options.py": "the process ends at once, without writing what it executed",
    "__main__.py": "the process ends at once, without writing what it executed",
}


def by_package(files: Mapping[str, Any]) -> dict[str, Counter[str]]:
    """The counts of each package; modules beside the packages are `jaxprune`."""
    packages: dict[str, Counter[str]] = {}
    for name, measured in sorted(files.items()):
        parts = Path(name).parts
        counts = packages.setdefault(parts[1] if len(parts) > 2 else parts[0], Counter())
        for short, key in (("lines", "num_statements"), ("branches", "num_branches")):
            counts[short] += measured["summary"][key]
            counts[f"{short}_missed"] += measured["summary"][f"missing_{short}"]
    return packages


def missed(files: Mapping[str, Any]) -> tuple[Counter[str], Counter[str]]:
    """The numbers of missed lines that have a reason, by reason, and of the others, by file."""
    reasons: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for name, measured in files.items():
        path = Path(*Path(name).parts[1:]).as_posix()
        where = reasons if path in REASONS else others
        where[REASONS.get(path, path)] += measured["summary"]["missing_lines"]
    return reasons, +others


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the JSON and prints the totals."""
    parser = argparse.ArgumentParser(prog="python -m tests.measured_lines", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--commit", help="of the measured sources, if not the current one")
    args = parser.parse_args(argv)
    files = json.loads(args.file.read_text())["files"]
    packages = by_package(files)
    reasons, others = missed(files)
    total = sum(packages.values(), Counter())
    shares = {
        f"percent_{kind}": round(100 * (1 - total[f"{kind}_missed"] / total[kind]), 1)
        for kind in ("lines", "branches")
    }
    entry = {
        "command": COMMAND,
        "environment": environment() | ({"commit": args.commit} if args.commit else {}),
        **shares,
        "packages": {name: dict(counts) for name, counts in packages.items()},
        "missed_with_a_reason": dict(reasons.most_common()),
        "missed_otherwise": dict(others.most_common()),
    }
    path = _ROOT / "benchmarks/results/coverage-cpu.json"
    write_json(path, entry)
    print(shares, f"wrote {path}", sep="\n")


if __name__ == "__main__":
    main()
