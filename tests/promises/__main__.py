"""`python -m tests.promises [NAME ...]` checks the promises of docs/promises.md on many cases.

Results go to benchmarks/results/promise-NAME-cpu.json after each chunk of cases; Ctrl-C keeps them,
and `--resume` goes on. Two promises can be checked at once, in two processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT / "tests"))  # for `helpers` and `combinations`, as under pytest


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if all promises hold, 1 if one does not, 130 if it was interrupted."""
    from promises import runner
    from promises.table import PROMISES

    parser = argparse.ArgumentParser(prog="python -m tests.promises", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PROMISES))
    parser.add_argument("--resume", action="store_true", help="go on where the file ends")
    parser.add_argument("--chunks", type=int, help="number of chunks of each (default: all)")
    parser.add_argument("--out", type=Path, help="folder of the results")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(PROMISES):
        parser.error(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(PROMISES)}")
    folder = args.out or _ROOT / "benchmarks/results"
    held = True
    for name in args.names or PROMISES:
        try:
            entry = runner.run(PROMISES[name], folder, args.chunks, resume=args.resume)
        except KeyboardInterrupt:
            print(f"Stopped. To continue: python -m tests.promises {name} --resume")
            return 130
        held &= not entry["failures"]
        print(f"{name}: {entry['cases']:,} cases, {len(entry['failures'])} failures")
        for failure in entry["failures"]:
            print(failure["error"], file=sys.stderr)
        print(f"wrote {runner.results_file(PROMISES[name], folder)}")
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
