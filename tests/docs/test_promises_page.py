"""docs/promises.md has the results of `python -m tests.promises`, and nothing failed."""

import json
import pathlib

import pytest

from promises.runner import results_file
from promises.table import PROMISES

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason="an installed copy has no results")


def row(promise):
    """The line of the table for a promise."""
    result = json.loads(results_file(promise, RESULTS).read_text())
    minutes = max(round(result["seconds"] / 60), 1)
    command = f"`python -m tests.promises {promise.name}`"
    counts = f"{result['cases']:,} | {len(result['failures'])}"
    return f"| {promise.text} | {counts} | {command} | {minutes} |"


@pytest.mark.parametrize("name", PROMISES)
def test_every_promise_is_listed_with_its_last_result(name):
    lines = (ROOT / "docs/promises.md").read_text(encoding="utf-8").splitlines()
    line = row(PROMISES[name])
    assert line in lines
    assert " | 0 | `" in line


def test_the_mutants_are_counted_as_they_were_run():
    result = json.loads((RESULTS / "mutation-cpu.json").read_text())
    words = " ".join((ROOT / "docs/promises.md").read_text(encoding="utf-8").split())
    assert result["survived"] == 0
    n_equivalent = result["equivalent"]
    assert f"{len(result['mutants'])} small mutants of the source" in words
    assert f"notice all but {n_equivalent}, which change nothing" in words
