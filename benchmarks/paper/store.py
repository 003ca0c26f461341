"""Runs studies and keeps what they found, so that an interrupted one can go on.

    NAME-BACKEND.json            configuration, data, finished runs and the summary
    .NAME-BACKEND.checkpoint     the run in progress; gone when it is finished

Both are replaced in one move. A run is finished once it stands in the JSON file.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization
from tqdm import tqdm

from benchmarks.common import environment, write_json
from benchmarks.paper import summary
from benchmarks.paper.study import (
    Network,
    RunState,
    Study,
    Task,
    Trainer,
    make_trainer,
    networks_of,
    result_of,
    track,
)

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
) -> dict[str, Any]:
    """Trains what is not trained yet, and returns the results, which are written down.

    Args:
      study: what to train.
      out: the folder of the results.
      resume: go on with the results that are there; else they are overwritten.
      networks: the rows: a function of the study and of the inputs of its task.
      only: train the networks whose name this regex finds, and leave the others for another time.

    Raises:
      ValueError: `resume`, but the results there are of another configuration.
    """
    task = study.task()
    rows = networks(study, task.inputs)
    path = results_file(study, out)
    results = _start(study, task, rows, path, resume)
    if not resume:
        _checkpoint_of(path).unlink(missing_ok=True)
    chosen = [network for network in rows if re.search(only, network.name)]
    todo = [(network, seed) for network in chosen for seed in range(study.seeds)]
    done = {(r["network"], r["seed"]) for r in results["runs"]}
    trainer, before = None, None
    with tqdm(total=len(todo) * study.steps, desc=study.name, unit="step") as bar:
        for network, seed in todo:
            if (network.name, seed) in done:
                bar.update(study.steps)
                continue
            if trainer is None or before != network:
                trainer, before = make_trainer(study, task, network), network
            bar.set_postfix_str(f"{network.name} seed {seed}")
            results["runs"].append(_one(study, task, network, seed, trainer, path, bar))
            results["summary"] = summary.summarize(results, study.measure)
            write_json(path, results)
            _checkpoint_of(path).unlink(missing_ok=True)
    results["finished"] = len(results["runs"]) == len(rows) * study.seeds
    results["summary"] = summary.summarize(results, study.measure)  # also where nothing was to do
    write_json(path, results)
    return results


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
    return fresh | {"runs": old["runs"], "environment": old["environment"]}


def _one(
    study: Study,
    task: Task,
    network: Network,
    seed: int,
    trainer: Trainer,
    path: Path,
    bar: Any,
) -> dict[str, Any]:
    """One run, from its checkpoint if there is one."""
    key = jax.random.key(seed)
    state = trainer.init(jax.random.fold_in(key, 0))
    name = f"{network.name} {seed}"
    state = _restore(path, name, state)
    bar.update(int(state.step))
    begun = saved = time.monotonic()
    while int(state.step) < study.steps:
        state = trainer.advance(state, key)
        state = track(study, task, network, trainer, state)
        jax.block_until_ready(state.step)
        bar.update(study.chunk)
        if time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
            _save(path, name, state)
            saved = time.monotonic()
    seconds = round(time.monotonic() - begun, 2)
    return result_of(study, task, network, seed, trainer, state) | {"seconds": seconds}


def _checkpoint_of(path: Path) -> Path:
    return path.with_name(f".{path.stem}.checkpoint")


def _save(path: Path, name: str, state: RunState) -> None:
    """Leaves by number: the structure is that of a fresh state."""
    leaves = {str(i): jax.device_get(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    part = path.with_name(f".{path.stem}.{os.getpid()}")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(serialization.msgpack_serialize({"run": name, "leaves": leaves}))
    part.replace(_checkpoint_of(path))


def _restore(path: Path, name: str, state: RunState) -> RunState:
    """The state that was saved of this run; `state` itself where there is none."""
    if not _checkpoint_of(path).exists():
        return state
    content = serialization.msgpack_restore(_checkpoint_of(path).read_bytes())
    if content["run"] != name:
        return state
    leaves, treedef = jax.tree.flatten(state)
    saved = [content["leaves"][str(i)] for i in range(len(leaves))]
    arrays = [jnp.asarray(x, y.dtype) for x, y in zip(saved, leaves, strict=True)]
    return treedef.unflatten(arrays)
