"""Runs studies and saves their results; an interrupted study can be resumed.

    NAME-BACKEND.json                       configuration, data, finished runs and the summary
    .NAME-BACKEND.NETWORK.SEED.checkpoint   a run in progress; deleted when it is finished

Both files are replaced atomically. The JSON file lists the finished runs. A run keeps one core
busy, so several runs are trained in parallel, each in a thread, with the same results.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization
from tqdm import tqdm

from benchmarks.common import environment, n_cores, write_json
from benchmarks.paper import summary
from benchmarks.paper.study import (
    Network,
    RunState,
    Study,
    Task,
    make_trainer,
    networks_of,
    result_of,
    track,
)
from jaxprune._files.atomic import atomic_file

Networks = Callable[[Study, tuple[jax.ShapeDtypeStruct, ...]], list[Network]]
Order = Callable[[Sequence[Network], int], list[tuple[Network, int]]]

_SECONDS_BETWEEN_CHECKPOINTS = 20.0
_OTHER = {"config": "another config", "data": "other data", "networks": "other networks"}


class OtherStudy(ValueError):
    """A results file does not belong to the study that should be continued."""


def results_file(study: Study, out: Path) -> Path:
    """Path of the results of a study."""
    return out / f"paper-{study.name}-{jax.default_backend()}.json"


def by_network(rows: Sequence[Network], seeds: int) -> list[tuple[Network, int]]:
    """All seeds of the first network, then all of the second, and so on."""
    return [(row, seed) for row in rows for seed in range(seeds)]


def by_sparsity(sparsities: Sequence[float]) -> Order:
    """Runs one sparsity after the other, so that the first of them already decide the question.

    First all seeds of the dense network and of the first sparsity, then of the second, and so on;
    networks with half the layers come last.
    """

    def rank(row: Network) -> tuple[bool, int]:
        place = 0 if row.kind == "dense" else sparsities.index(row.sparsity)
        return row.kind == "shallow dense", place

    def order(rows: Sequence[Network], seeds: int) -> list[tuple[Network, int]]:
        runs = [(row, seed) for seed in range(seeds) for row in rows]
        return sorted(runs, key=lambda run: rank(run[0]))

    return order


def run(
    study: Study,
    out: Path,
    *,
    resume: bool = False,
    networks: Networks = networks_of,
    order: Order = by_network,
    only: str = "",
    jobs: int = 1,
) -> dict[str, Any]:
    """Trains the networks of a study, saves the results after every run, and returns them.

    Args:
      study: the study to run.
      out: the folder of the results.
      resume: keep the runs in the results file and train only the missing ones. Without it, the
        file is overwritten.
      networks: makes the networks from the study and the inputs of its task.
      order: the runs in the order of training, from the networks and the number of seeds.
      only: train only networks whose name matches this regex.
      jobs: number of runs to train in parallel.

    Raises:
      OtherStudy: `resume`, but the results file has another configuration or other networks.
    """
    started, task = time.monotonic(), study.task()
    all_networks = networks(study, task.inputs)
    path = results_file(study, out)
    record = _Record(study, path, _start(study, task, all_networks, path, resume), jobs, started)
    if not resume:
        for checkpoint in path.parent.glob(_checkpoint_of(path, "*", "*").name):
            checkpoint.unlink()
    done = {(r["network"], r["seed"]) for r in record.results["runs"]}
    chosen = [network for network in all_networks if re.search(only, network.name)]
    ordered = order(chosen, study.seeds)
    missing = [(network, seed) for network, seed in ordered if (network.name, seed) not in done]
    # Runs of one network share the compiled functions.
    untrained = {network.name: network for network, _ in missing}
    trainers = {name: make_trainer(study, task, row) for name, row in untrained.items()}
    stopped = threading.Event()

    def train(network_and_seed: tuple[Network, int]) -> None:
        network, seed = network_and_seed
        trainer = trainers[network.name]
        finished_run = _train_run(study, task, network, seed, trainer, path, bar, stopped)
        if finished_run is not None:
            record.add(finished_run)
            _checkpoint_of(path, network.name, seed).unlink(missing_ok=True)

    with tqdm(total=len(ordered) * study.steps, desc=study.name, unit="step") as bar:
        bar.update(study.steps * (len(ordered) - len(missing)))
        _in_threads(train, missing, jobs, stopped)
    return record.finish()


class _Record:
    """The results of a study, and their file; runs can be added from several threads."""

    def __init__(
        self, study: Study, path: Path, results: dict[str, Any], jobs: int, started: float
    ):
        self.study, self.path, self.results, self.started = study, path, results, started
        self.order = {network["name"]: i for i, network in enumerate(results["networks"])}
        self.session = {"cores": n_cores(), "jobs": jobs, "runs": 0, "seconds": 0.0}
        self.sessions_before = results.get("sittings", [])
        self.lock = threading.Lock()

    def add(self, finished_run: dict[str, Any]) -> None:
        """Adds a run and saves the results."""
        with self.lock:
            runs = [*self.results["runs"], finished_run]
            runs.sort(key=lambda r: (self.order[r["network"]], r["seed"]))
            self.results["runs"] = runs
            self.session["runs"] += 1
            self.session["seconds"] = round(time.monotonic() - self.started, 1)
            self.results["sittings"] = [*self.sessions_before, self.session]
            self._save()

    def finish(self) -> dict[str, Any]:
        """Notes whether all runs are finished, saves the results and returns them."""
        n_runs = len(self.results["networks"]) * self.study.seeds
        self.results["finished"] = len(self.results["runs"]) == n_runs
        self._save()
        return self.results

    def _save(self) -> None:
        self.results["summary"] = summary.summarize(self.results, self.study.measure)
        write_json(self.path, self.results)


def _in_threads(
    work: Callable[[Any], None], items: Sequence[Any], jobs: int, stopped: threading.Event
) -> None:
    """Calls `work` for every item in `jobs` threads; an error or Ctrl-C sets `stopped`."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    future.result()
        finally:
            stopped.set()  # no effect if all are done
            pool.shutdown(cancel_futures=True)


def _start(
    study: Study, task: Task, rows: Sequence[Network], path: Path, resume: bool
) -> dict[str, Any]:
    config = study.config()
    fresh = {
        "study": study.name,
        "title": study.title,
        "finished": False,
        "environment": environment(),
        "config": config,
        "data": task.facts,
        "networks": [summary.row_of(network) for network in rows],
        "runs": [],
    }
    previous = summary.read(path) if resume else None
    if previous is None:
        return fresh
    # Networks may have been added since, but those in the file must be the same.
    kept = [row for row in fresh["networks"] if row in previous.get("networks", ())]
    now = fresh | {"networks": kept}
    for name, other in _OTHER.items():
        if previous.get(name) != now[name]:
            raise OtherStudy(
                f"{path} holds results of {other}. Omit --resume to overwrite them, or "
                "choose another folder with --out."
            )
    continued = {
        name: previous[name] for name in ("runs", "environment", "sittings") if name in previous
    }
    return fresh | continued


def _train_run(
    study: Study,
    task: Task,
    network: Network,
    seed: int,
    trainer: Any,
    path: Path,
    bar: Any,
    stopped: threading.Event,
) -> dict[str, Any] | None:
    """Trains one run, from its checkpoint if it has one; None if it was stopped and saved."""
    key = jax.random.key(seed)
    state = trainer.init(jax.random.fold_in(key, 0))
    checkpoint, name = _checkpoint_of(path, network.name, seed), f"{network.name} {seed}"
    state = _restore(checkpoint, name, state)
    bar.update(int(state.step))
    started = saved = time.monotonic()
    while int(state.step) < study.steps:
        state = trainer.advance(state, key)
        state = track(study, task, network, trainer, state)
        jax.block_until_ready(state.step)
        bar.update(study.chunk)
        bar.set_postfix_str(name)
        if stopped.is_set() or time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
            _save(checkpoint, name, state)
            saved = time.monotonic()
        if stopped.is_set():
            return None
    seconds = round(time.monotonic() - started, 2)
    return result_of(study, task, network, seed, trainer, state) | {"seconds": seconds}


def _checkpoint_of(path: Path, network: str, seed: int | str) -> Path:
    return path.with_name(f".{path.stem}.{network.replace(' ', '-')}.{seed}.checkpoint")


def _save(path: Path, name: str, state: RunState) -> None:
    """Saves the leaves by number; `_restore` takes the structure from a fresh state."""
    leaves = {str(i): jax.device_get(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(serialization.msgpack_serialize({"run": name, "leaves": leaves}))


def _restore(path: Path, name: str, state: RunState) -> RunState:
    """The saved state of this run; `state` itself if no checkpoint of it exists."""
    if not path.exists():
        return state
    content = serialization.msgpack_restore(path.read_bytes())
    if content["run"] != name:
        return state
    leaves, treedef = jax.tree.flatten(state)
    saved = [content["leaves"][str(i)] for i in range(len(leaves))]
    arrays = [jnp.asarray(x, y.dtype) for x, y in zip(saved, leaves, strict=True)]
    return treedef.unflatten(arrays)
