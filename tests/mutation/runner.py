"""Applies mutants to a copy of the package, one at a time, and runs the tests of each."""

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
_COPIED = ("jaxprune", "tests", "benchmarks", "pyproject.toml")
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
                rows[mutant.name] = _row(mutant, copy)
            results = [row["result"] for row in rows.values()]
            entry |= {name: results.count(name) for name in ("killed", "survived", "equivalent")}
            entry |= {"finished": len(rows) >= n_mutants, "mutants": rows}
            write_json(path, entry)
    return entry


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
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return row | {"by": failed[1] if failed else "the limit of time"}


def _tested(mutant: Mutant, copy: Path) -> tuple[str, str]:
    """Whether the tests kill a mutant, and what pytest printed."""
    file = copy / "jaxprune" / mutant.file
    source = file.read_text()
    file.write_text(mutant.applied(source))
    env = _COMPILED | {"JAX_COMPILATION_CACHE_DIR": str(copy / "compiled")} | os.environ
    env |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *_PYTEST, *(f"tests/{test}" for test in mutant.tests)]
    try:
        done = subprocess.run(
            command, cwd=copy, env=env, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return "killed", ""
    finally:
        file.write_text(source)
    results = {_PASSED: "survived", _FAILED: "killed"}
    return results.get(done.returncode, "error"), done.stdout + done.stderr


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
