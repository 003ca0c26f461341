"""Runs studies and keeps what they found, so that an interrupted one can go on.

    NAME-BACKEND.json                  configuration, data, finished runs and the summary
    .NAME-BACKEND.NETWORK.checkpoint   a run in progress; gone when it is finished

Both are replaced in one move. A run is finished once it stands in the JSON file. One run keeps one
core busy, so that several are trained at a time, each in a thread; what they find is the same.
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

_SECONDS_BETWEEN_CHECKPOINTS = 20.0


def results_file(study: Study, out: Path) -> Path:
    """Where the results of a study are."""
    return out / f"paper-{study.name}-{jax.default_backend()}.json"


def run(
    study: Study,
    out: Path,
    *,
    resume: bool = False,
    networks: Networks = networks_of,
    only: str = "",
    jobs: int = 1,
) -> dict[str, Any]:
    """Trains what is not trained yet, and returns the results, which are written down.

    Args:
      study: what to train.
      out: the folder of the results.
      resume: go on with the results that are there; else they are overwritten.
      networks: the rows: a function of the study and of the inputs of its task.
      only: train the networks whose name this regex finds, and leave the others for another time.
      jobs: networks trained at a time.

    Raises:
      ValueError: `resume`, but the results there are of another configuration.
    """
    begun, task = time.monotonic(), study.task()
    rows = networks(study, task.inputs)
    path = results_file(study, out)
    results = _start(study, task, rows, path, resume)
    if not resume:
        for old in path.parent.glob(_checkpoint_of(path, "*").name):
            old.unlink()
    sitting = {"cores": n_cores(), "jobs": jobs, "runs": 0, "seconds": 0.0}
    place = {row.name: i for i, row in enumerate(rows)}
    done = {(r["network"], r["seed"]) for r in results["runs"]}
    chosen = [network for network in rows if re.search(only, network.name)]
    writing, stopped = threading.Lock(), threading.Event()

    def keep(found: dict[str, Any]) -> None:
        with writing:
            runs = [*results["runs"], found]
            results["runs"] = sorted(runs, key=lambda r: (place[r["network"]], r["seed"]))
            sitting["runs"] += 1
            sitting["seconds"] = round(time.monotonic() - begun, 1)
            results["sittings"] = [*sittings, sitting]
            results["summary"] = summary.summarize(results, study.measure)
            write_json(path, results)

    def train(network: Network) -> None:
        """All seeds of a network, which share what is compiled."""
        left = [seed for seed in range(study.seeds) if (network.name, seed) not in done]
        bar.update(study.steps * (study.seeds - len(left)))
        trainer = make_trainer(study, task, network) if left else None
        for seed in left:
            found = _one(study, task, network, seed, trainer, path, bar, stopped)
            if found is None:
                return
            keep(found)
            _checkpoint_of(path, network.name).unlink(missing_ok=True)

    sittings = results.get("sittings", [])
    with tqdm(total=len(chosen) * study.seeds * study.steps, desc=study.name, unit="step") as bar:
        _in_threads(train, chosen, jobs, stopped)
    results["finished"] = len(results["runs"]) == len(rows) * study.seeds
    results["summary"] = summary.summarize(results, study.measure)  # also where nothing was to do
    write_json(path, results)
    return results


def _in_threads(
    work: Callable[[Any], None], items: Sequence[Any], jobs: int, stopped: threading.Event
) -> None:
    """Calls `work` for every item, so many at a time; an error or Ctrl-C sets `stopped`."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    future.result()
        finally:
            stopped.set()  # where all are done it stops nothing
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
    old = summary.read(path) if resume else None
    if old is None:
        return fresh
    for name in ("config", "data", "networks"):
        if old.get(name) != fresh[name]:
            raise ValueError(
                f"{path} holds results of another {name}. Leave --resume out to start again, or "
                "choose another folder with --out."
            )
    kept = {name: old[name] for name in ("runs", "environment", "sittings") if name in old}
    return fresh | kept


def _one(
    study: Study,
    task: Task,
    network: Network,
    seed: int,
    trainer: Any,
    path: Path,
    bar: Any,
    stopped: threading.Event,
) -> dict[str, Any] | None:
    """One run, from its checkpoint if there is one; None where it was stopped, and left one."""
    key = jax.random.key(seed)
    state = trainer.init(jax.random.fold_in(key, 0))
    checkpoint, name = _checkpoint_of(path, network.name), f"{network.name} {seed}"
    state = _restore(checkpoint, name, state)
    bar.update(int(state.step))
    begun = saved = time.monotonic()
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
    seconds = round(time.monotonic() - begun, 2)
    return result_of(study, task, network, seed, trainer, state) | {"seconds": seconds}


def _checkpoint_of(path: Path, network: str) -> Path:
    return path.with_name(f".{path.stem}.{network.replace(' ', '-')}.checkpoint")


def _save(path: Path, name: str, state: RunState) -> None:
    """Leaves by number: the structure is that of a fresh state."""
    leaves = {str(i): jax.device_get(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(serialization.msgpack_serialize({"run": name, "leaves": leaves}))


def _restore(path: Path, name: str, state: RunState) -> RunState:
    """The state that was saved of this run; `state` itself where there is none."""
    if not path.exists():
        return state
    content = serialization.msgpack_restore(path.read_bytes())
    if content["run"] != name:
        return state
    leaves, treedef = jax.tree.flatten(state)
    saved = [content["leaves"][str(i)] for i in range(len(leaves))]
    arrays = [jnp.asarray(x, y.dtype) for x, y in zip(saved, leaves, strict=True)]
    return treedef.unflatten(arrays)
