"""`python -m tests.mutation [NAME ...]` runs the tests of every mutant, and lists the survivors.

NAME is a mutant of tests/mutation/table.py, or a package such as `_topk`. Results go to
benchmarks/results/mutation-cpu.json after each mutant; Ctrl-C keeps them, and `--resume` continues.
The whole table takes about 20 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT / "tests"))  # for `mutation`, as under pytest


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if no mutant survives, 1 if one does or fails to run, 130 if interrupted."""
    from mutation import runner
    from mutation.table import MUTANTS

    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants or packages")
    parser.add_argument("--resume", action="store_true", help="skip what the file says is killed")
    parser.add_argument("--out", type=Path, help="the file of the results")
    args = parser.parse_args(argv)
    known = {m.name for m in MUTANTS} | {m.package for m in MUTANTS}
    if unknown := set(args.names) - known:
        parser.error(
            f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(sorted(known))}"
        )
    chosen = [m for m in MUTANTS if not args.names or {m.name, m.package} & set(args.names)]
    path = args.out or _ROOT / "benchmarks/results/mutation-cpu.json"
    try:
        entry = runner.run(chosen, path, resume=args.resume, n_mutants=len(MUTANTS))
    except KeyboardInterrupt:
        print("Stopped. To continue: python -m tests.mutation --resume")
        return 130
    results = {m.name: entry["mutants"][m.name] for m in chosen}
    bad = {name: row for name, row in results.items() if row["result"] in ("survived", "error")}
    for name, row in bad.items():
        print(f"{row['result']}: {name} ({row['file']})\n{row['output']}")
    print(f"{len(chosen)} mutants, {len(bad)} survived or failed to run")
    print(f"wrote {path}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
