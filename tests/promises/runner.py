"""Runs chunks of cases, and keeps what they found in a file that a later run continues."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.common import environment, write_json


class Promise(NamedTuple):
    """A promise, and how it is checked.

    Attributes:
      name: as on the command line.
      text: what is promised, in one sentence.
      n_chunks: how many chunks a whole run has.
      check: checks one chunk; it returns the number of cases and raises AssertionError.
      few: the chunks that the default tests run.
    """

    name: str
    text: str
    n_chunks: int
    check: Callable[[int], int]
    few: Sequence[int] = (0,)


def results_file(promise: Promise, folder: Path) -> Path:
    """Where the results of a promise are, in a folder."""
    return folder / f"promise-{promise.name}-cpu.json"


def run(promise: Promise, folder: Path, n_chunks: int | None, *, resume: bool) -> dict[str, Any]:
    """Checks the chunks that the file of a promise lacks, and writes it after each.

    Returns:
      The content of the file.
    """
    path = results_file(promise, folder)
    entry = json.loads(path.read_text()) if resume and path.exists() else {}
    entry = {"chunks": 0, "cases": 0, "seconds": 0.0, "failures": []} | entry
    entry |= {"promise": promise.text, "environment": environment(), "finished": False}
    end = promise.n_chunks if n_chunks is None else n_chunks
    for chunk in tqdm(range(entry["chunks"], end), desc=promise.name):
        start = time.perf_counter()
        try:
            entry["cases"] += promise.check(chunk)
        except AssertionError:
            text = traceback.format_exc(limit=-2)
            entry["failures"].append({"chunk": chunk, "error": text[-2000:]})
        entry["chunks"] = chunk + 1
        entry["seconds"] = round(entry["seconds"] + time.perf_counter() - start, 2)
        entry["finished"] = entry["chunks"] >= promise.n_chunks
        write_json(path, entry)
    return entry
