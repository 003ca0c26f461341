"""docs/promises.md has the results of `python -m tests.promises`, and nothing failed."""

import json
import pathlib

import pytest

from measured_lines import REASONS, by_package, missed
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


def test_the_share_of_executed_lines_is_as_it_was_measured():
    result = json.loads((RESULTS / "coverage-cpu.json").read_text())
    words = " ".join((ROOT / "docs/promises.md").read_text(encoding="utf-8").split())
    lines, branches = result["percent_lines"], result["percent_branches"]
    assert f"{lines} % of the lines and {branches} % of the branches" in words
    assert min(lines, branches) >= 95
    others = result["missed_otherwise"]
    assert f"missed lines, {sum(result['missed_with_a_reason'].values())} are for" in words
    assert f"The other {sum(others.values())} are single lines in {len(others)} files" in words


def measured(n, n_missed):
    return {
        "summary": {
            "num_statements": n,
            "missing_lines": n_missed,
            "num_branches": 2,
            "missing_branches": 1,
        }
    }


def test_lines_are_counted_by_package_and_by_reason():
    files = {
        "jaxprune/plots.py": measured(10, 0),
        "jaxprune/_base/agreement.py": measured(20, 5),
        "jaxprune/_base/paths.py": measured(30, 1),
    }
    packages = by_package(files)
    assert packages["jaxprune"]["lines"] == 10
    assert packages["_base"] == {
        "lines": 50,
        "lines_missed": 6,
        "branches": 4,
        "branches_missed": 2,
    }
    reasons, others = missed(files)
    assert list(reasons.values()) == [5]
    assert others == {"_base/paths.py": 1}


def test_every_file_with_a_reason_exists():
    assert all((ROOT / "jaxprune" / path).exists() for path in REASONS)


def test_the_mutants_are_counted_as_they_were_run():
    result = json.loads((RESULTS / "mutation-cpu.json").read_text())
    words = " ".join((ROOT / "docs/promises.md").read_text(encoding="utf-8").split())
    assert result["survived"] == 0
    n_equivalent = result["equivalent"]
    assert f"{len(result['mutants'])} small mutants of the source" in words
    assert f"notice all but {n_equivalent}, which change nothing" in words
