"""Draws the pictures in results/ again from their JSON files, without measuring anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.paper import pictures as paper
from benchmarks.pictures import has_matplotlib


def redraw(folder: Path, names: Sequence[str] = ()) -> Iterator[Path]:
    """Draws the pictures of the results in a folder, and yields their files.

    Args:
      folder: of the JSON files.
      names: beginnings of the names of the files to redraw; none for all.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    if not has_matplotlib():
        raise ModuleNotFoundError("matplotlib is not installed. Type: pip install -e '.[bench]'")
    for path in sorted(folder.glob("*.json")):
        if not names or path.stem.startswith(tuple(names)):
            yield from _pictures(path, json.loads(path.read_text()))
    if (not names or "paper" in names) and (file := paper.overview(folder)):
        yield file


def _pictures(path: Path, results: dict[str, Any]) -> list[Path]:
    if "study" in results:
        return paper.draw(results, path)
    return plots.draw(results["benchmark"], results["rows"], path) if "benchmark" in results else []
