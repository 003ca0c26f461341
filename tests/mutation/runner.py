"""Applies mutants to a copy of the package, one at a time, and runs the tests of each.

A mutant is killed if one of its tests fails. In the end, the tests that killed run once without any
mutant: there they must pass. Each row has the commit that it was found at.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.common import environment, write_json

ROOT = Path(__file__).parents[2]
_COPIED = ("jaxprune", "tests", "benchmarks", "docs", "pyproject.toml")
_SECONDS = 900  # a mutant that takes longer is killed: some search forever
_PYTEST = ("-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "--tb=no")
# What is stored of the programs that XLA compiles: all.
_COMPILED = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# Exit codes of pytest.
_PASSED, _FAILED = 0, 1


class Mutant(NamedTuple):
    """A small change of the source that some test must notice.

    Attributes:
      name: as on the command line.
      file: its path below `jaxprune/`.
      old: text that occurs exactly once in the file.
      new: what replaces it.
      tests: files of tests, or `file::test`, below `tests/`; at least one must fail.
      equivalent: why no test can notice it; empty for all others.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    equivalent: str = ""

    @property
    def package(self) -> str:
        """The package of the file, such as `_topk`."""
        return self.file.split("/")[0]

    def applied(self, source: str) -> str:
        """The source with this mutant.

        Raises:
          ValueError: the old text does not occur exactly once, or nothing changes.
        """
        if source.count(self.old) != 1 or self.old == self.new:
            raise ValueError(
                f"{self.name}: {self.old!r} must occur once in jaxprune/{self.file}, got "
                f"{source.count(self.old)} times. Adapt tests/mutation/table.py to the source."
            )
        return source.replace(self.old, self.new)


def run(mutants: Sequence[Mutant], path: Path, *, resume: bool, n_mutants: int) -> dict[str, Any]:
    """Runs the tests of each mutant, and writes the file after each.

    Args:
      mutants: to run.
      path: of the results.
      resume: whether to skip mutants that the file lists as killed, if their rows are unchanged.
      n_mutants: in the whole table.

    Returns:
      The content of the file.
    """
    entry = json.loads(path.read_text()) if path.exists() else {}
    rows: dict[str, Any] = entry.get("mutants", {})
    entry = {"command": "python -m tests.mutation", "environment": environment()}
    with _copy() as copy:
        for mutant in tqdm(mutants, desc="mutants"):
            old = rows.get(mutant.name, {})
            if not resume or old.get("result") != "killed" or old["change"] != _change(mutant):
                rows[mutant.name] = _row(mutant, copy) | {"commit": environment()["commit"]}
            _write(path, entry, rows, n_mutants)
        _check_control([rows[mutant.name] for mutant in mutants], copy)
        _write(path, entry, rows, n_mutants)
    return entry


def _write(path: Path, entry: dict[str, Any], rows: dict[str, Any], n_mutants: int) -> None:
    results = [row["result"] for row in rows.values()]
    kinds = ("killed", "survived", "equivalent", "error")
    entry |= {name: results.count(name) for name in kinds}
    entry |= {"finished": len(rows) >= n_mutants, "mutants": rows}
    write_json(path, entry)


def _check_control(rows: Sequence[dict[str, Any]], copy: Path) -> None:
    """Makes errors of mutants whose killing test fails without them, too."""
    killed = [row for row in rows if row["result"] == "killed" and "::" in row["by"]]
    tests = sorted({row["by"].partition("[")[0] for row in killed})
    if not tests:
        return
    done = _pytest(copy, [argument for argument in _PYTEST if argument != "-x"], tests)
    failed = {name.partition("[")[0] for name in _failed(done.stdout)}
    if done.returncode != _PASSED and not failed:
        raise RuntimeError(f"the tests without mutants did not run:\n{done.stdout[-2000:]}")
    for row in killed:
        if row["by"].partition("[")[0] in failed:
            row |= {"result": "error", "output": f"{row['by']} fails without the mutant, too"}


def _change(mutant: Mutant) -> list[str]:
    return [mutant.old, mutant.new, *mutant.tests]


def _row(mutant: Mutant, copy: Path) -> dict[str, Any]:
    """The result of one mutant."""
    row: dict[str, Any] = {"file": mutant.file, "change": _change(mutant)}
    if mutant.equivalent:
        return row | {"result": "equivalent", "why": mutant.equivalent}
    start = time.perf_counter()
    result, output = _tested(mutant, copy)
    row |= {"result": result, "seconds": round(time.perf_counter() - start, 1)}
    if result != "killed":
        return row | {"output": output[-1000:]}
    return row | {"by": next(iter(_failed(output)), "the limit of time")}


def _failed(output: str) -> list[str]:
    """The tests that pytest says have failed."""
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)


def _tested(mutant: Mutant, copy: Path) -> tuple[str, str]:
    """Whether the tests kill a mutant, and what pytest printed."""
    file = copy / "jaxprune" / mutant.file
    source = file.read_text()
    file.write_text(mutant.applied(source))
    try:
        tests = [f"tests/{test}" for test in mutant.tests]
        done = _pytest(copy, _PYTEST, tests, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return "killed", ""
    finally:
        file.write_text(source)
    results = {_PASSED: "survived", _FAILED: "killed"}
    return results.get(done.returncode, "error"), done.stdout + done.stderr


def _pytest(
    copy: Path, options: Sequence[str], tests: Sequence[str], timeout: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs tests of the copy, in a process of their own."""
    env = _COMPILED | {"JAX_COMPILATION_CACHE_DIR": str(copy / "compiled")} | os.environ
    env |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *options, *tests]
    return subprocess.run(
        command, cwd=copy, env=env, capture_output=True, text=True, timeout=timeout
    )


@contextlib.contextmanager
def _copy() -> Iterator[Path]:
    """A temporary folder with the package and its tests; programs that XLA compiles stay in it."""
    with tempfile.TemporaryDirectory(prefix="jaxprune-mutants-") as folder:
        copy = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__", "results")
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=ignored)
            else:
                shutil.copy(source, copy)
        yield copy
