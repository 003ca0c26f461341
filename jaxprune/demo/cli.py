"""`python -m jaxprune demo` after its options are parsed: runs the job and prints the results."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxprune.demo import job
from jaxprune.demo.config import Config, quick
from jaxprune.demo.pictures import write_pictures
from jaxprune.demo.report import table

DEFAULT_FOLDER = Path("jaxprune-demo")
_FIELDS = {"--seeds": "n_seeds", "--steps": "steps", "--sparsity": "sparsities"}


def main(
    folder: Path,
    *,
    resume: bool,
    small: bool,
    options: Mapping[str, Any],
    stop: Callable[[], bool],
    as_json: bool = False,
) -> int:
    """Runs the job, prints the table and draws the pictures.

    Args:
      folder: where the results are written.
      resume: continue the job in that folder.
      small: start from the configuration of `--quick`.
      options: the values of `--seeds`, `--steps` and `--sparsity`; None or empty for the default.
      stop: as for `job.train`.
      as_json: print the results as JSON, not as a table.

    Returns:
      The exit code: 0 for success, 1 for a user's error, 130 if stopped.
    """
    command = command_line(folder, small, options)
    try:
        config = configure(small, options)
        results = job.prepare(config, folder, resume=resume, command=command)
    except (ValueError, OSError) as error:
        return _failed(error)
    if results["finished"]:
        print(f"The job in {folder} is finished; there is nothing left to train.", file=sys.stderr)
    try:
        results = job.train(config, folder, results, stop=stop)
        pictures = write_pictures(results, folder)
    except job.Stopped as stopped:
        print(f"Stopped at {stopped}. To continue: {command} --resume", file=sys.stderr)
        return 130
    except OSError as error:
        return _failed(error, f" To continue: {command} --resume")
    if as_json:
        print(json.dumps(results, indent=1))
        return 0
    names = ", ".join(path.name for path in pictures)
    print(f"{results['seconds']:.0f} s. In {folder}: results.json, checkpoints/, {names}")
    Console().print(table(results))
    return 0


def _failed(error: Exception, fix: str = "") -> int:
    """Prints an error as one line, and returns the exit code."""
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}."
    print(f"jaxprune demo: {text}{fix}", file=sys.stderr)
    return 1


def configure(small: bool, options: Mapping[str, Any]) -> Config:
    """The configuration for these options."""
    given = {_FIELDS[name]: value for name, value in options.items() if value}
    if "sparsities" in given:
        given["sparsities"] = tuple(given["sparsities"])
    return dataclasses.replace(quick() if small else Config(), **given)


def command_line(folder: Path, small: bool, options: Mapping[str, Any]) -> str:
    """The command with these options but without `--resume`, quoted for a shell."""
    words = ["python", "-m", "jaxprune", "demo"] + ["--quick"] * small
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            words += [] if item is None else [name, str(item)]
    if folder != DEFAULT_FOLDER:
        words += ["--out", str(folder)]
    return shlex.join(words)
