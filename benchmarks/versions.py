"""Two versions of jaxprune side by side: this one, and that of an earlier commit.

Each version has a process of its own, `benchmarks.version_worker`. Both wait for requests, so what
they run can take turns.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Worker:
    """A process that runs one version of jaxprune."""

    def __init__(self, folder: Path, log: Path) -> None:
        """Starts the process.

        Args:
          folder: holds the package of that version.
          log: the file for its messages.
        """
        # Without a cache on disk, compiling has the same cost in each run.
        env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        self._log = log
        with log.open("w") as messages:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.version_worker", str(folder)],
                cwd=ROOT,
                env={**env, "JAX_PLATFORMS": "cpu"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
            )

    def __call__(self, request: str, **arguments: Any) -> Any:
        """Sends a request and waits for the answer."""
        process = self._process
        assert process.stdin is not None  # both are pipes
        assert process.stdout is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps([request, arguments]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if not answer:
            message = self._log.read_text()[-2000:]
            raise RuntimeError(f"the process of a version ended at {arguments}:\n{message}")
        return json.loads(answer)

    def end(self) -> None:
        """Ends the process, whatever it runs."""
        self._process.terminate()
        self._process.communicate()


def full_hash(commit: str, root: Path = ROOT) -> str:
    """The hash of a commit of this repository.

    Raises:
      LookupError: there is no such commit; the message says why, in one line.
    """
    fix = "Run it in a clone made by `git clone`."
    if not (root / ".git").exists():
        raise LookupError(f"against: {root} is not a git checkout. {fix}")
    try:
        return (
            _git(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").decode().strip()
        )
    except OSError as error:
        raise LookupError(f"against: git can't be run ({error}). Install git.") from None
    except subprocess.CalledProcessError:
        is_shallow = _git(root, "rev-parse", "--is-shallow-repository").strip() == b"true"
        fix = "Run `git fetch --unshallow` first." if is_shallow else "Pass one that it has."
        raise LookupError(f"against: this checkout has no commit {commit!r}. {fix}") from None


@contextlib.contextmanager
def both_versions(commit: str) -> Iterator[tuple[Worker, Worker]]:
    """The processes of the earlier version and of this one; both end with the block.

    Args:
      commit: the hash of the earlier one.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        with tarfile.open(fileobj=io.BytesIO(_git(ROOT, "archive", commit, "jaxprune"))) as files:
            files.extractall(folder / "earlier", filter="data")
        workers = []
        for place, log in ((folder / "earlier", "earlier.log"), (ROOT, "this.log")):
            workers.append(Worker(place, folder / log))
            stack.callback(workers[-1].end)
        yield workers[0], workers[1]


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout
