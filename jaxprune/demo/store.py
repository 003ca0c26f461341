"""The output folder, which is complete at every moment.

    results.json           configuration, finished runs, and in the end the summary
    checkpoints/NAME/STEP  orbax: params, optimizer state and curves of a network, for all seeds,
                           after its last step; or of the network in progress, after this step

Files are written atomically; so are the folders of orbax. A network is finished once its runs are
in `results.json`.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from jaxprune._files.atomic import atomic_file

# Orbax logs every save, and with many tracebacks every error, which it also raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of results, which need not exist yet."""

    folder: Path

    @property
    def results_file(self) -> Path:
        """The path of the results file; it exists once a job was started here."""
        return self.folder / "results.json"

    def read(self) -> dict[str, Any] | None:
        """The results so far; None if no job was started here."""
        if not self.results_file.exists():
            return None
        try:
            return json.loads(self.results_file.read_text())
        except ValueError as error:
            raise ValueError(
                f"{self.results_file} is not JSON ({error}). Choose another folder with --out."
            ) from None

    def write(self, results: dict[str, Any]) -> None:
        """Replaces the results, in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.results_file) as file:
            file.write(_to_json(results).encode())

    def save(self, name: str, step: int, state: Any) -> None:
        """Saves a checkpoint; the previous one is deleted once the new one is complete.

        Raises:
          OSError: the checkpoint can't be written, for example because the disk is full; names its
            path. The previous one is still there.
        """
        try:
            with self._manager(name) as manager:
                if manager.latest_step() == step:
                    return
                manager.save(step, args=ocp.args.StandardSave(state))
                manager.wait_until_finished()
        except BaseException as error:
            for unfinished in self._checkpoints(name).glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            number = _error_number(error)
            if number is None:
                raise
            path = self.folder / "checkpoints" / name / str(step)
            raise OSError(number, os.strerror(number), str(path)) from None

    def restore(self, name: str, target: Any) -> Any | None:
        """The latest checkpoint, in the structure and dtypes of `target`; None if there is none."""
        if not self._checkpoints(name).exists():
            return None
        with self._manager(name) as manager:
            step = manager.latest_step()
            if step is None:
                return None
            return manager.restore(step, args=ocp.args.StandardRestore(target))

    def has_checkpoints(self) -> bool:
        """Whether any network has saved a checkpoint here."""
        return (self.folder / "checkpoints").exists()

    def _checkpoints(self, name: str) -> Path:
        return self.folder.resolve() / "checkpoints" / name

    @contextlib.contextmanager
    def _manager(self, name: str) -> Iterator[ocp.CheckpointManager]:
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._checkpoints(name).mkdir(parents=True, exist_ok=True)
        with ocp.CheckpointManager(self._checkpoints(name), options=options) as manager:
            yield manager


def _error_number(error: BaseException) -> int | None:
    """The `errno` of an error of the disk; of any other error, None.

    Orbax raises what its threads have raised. That of TensorStore is a `ValueError` with the number
    in its text.
    """
    if isinstance(error, OSError) and error.errno:
        return error.errno
    match = re.search(r"os_error_code='(\d+)'", str(error))
    return int(match[1]) if match else None


def _to_json(results: dict[str, Any]) -> str:
    """Indented JSON with one line per row of a list, so that a run is one line in a diff."""
    parts = []
    for name, value in results.items():
        text = json.dumps(value, indent=2).replace("\n", "\n  ")
        if isinstance(value, list):
            rows = ",\n".join(f"    {json.dumps(row)}" for row in value)
            text = f"[\n{rows}\n  ]" if rows else "[]"
        parts.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
