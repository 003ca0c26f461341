"""All runs, one after the other, from wherever an earlier process stopped.

Networks are the outer loop and seeds the inner one: a network is compiled once, for all its runs.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from jaxprune.demo import environment
from jaxprune.demo.config import Config, Network, networks
from jaxprune.demo.data import Data, load
from jaxprune.demo.report import summarize
from jaxprune.demo.store import Store
from jaxprune.demo.train import RunState, make_trainer, result_of

_SECONDS_BETWEEN_SAVES = 10.0  # what a power cut may cost; signals cost nothing


class Stopped(Exception):
    """Training stopped on request, after a checkpoint. The message says where."""


@dataclasses.dataclass(frozen=True)
class _Job:
    config: Config
    store: Store
    data: Data
    stop: Callable[[], bool]
    bars: "_Bars"


def prepare(
    config: Config, folder: Path, *, resume: bool = False, command: str = "python -m jaxprune demo"
) -> dict[str, Any]:
    """The results to go on from: new ones, already written, or those in `folder`.

    Args:
      config: what to train.
      folder: holds the results and the checkpoints.
      resume: continue the job in `folder`, instead of starting one.
      command: goes into the results, and into the advice of errors.

    Raises:
      ValueError: `folder` holds a job and `resume` is False, or the other way round; or the job in
        it has another configuration, or was started in another environment.
    """
    store = Store(folder)
    found = store.read()
    if found is None:
        if resume:
            raise ValueError(
                f"nothing to resume: there is no {store.results_file}. Leave out --resume to start."
            )
        return _start(store, command, config)
    if not resume:
        state, verb = ("a finished", "show") if found["finished"] else ("an unfinished", "continue")
        raise ValueError(
            f"{folder} holds {state} job. To {verb} it: {found['command']} --resume. To start "
            "another, choose another folder with --out, or delete this one."
        )
    _check_same("configuration", found["config"], _as_json(config), found, folder)
    if not found["finished"]:
        here = environment.decisive(environment.describe())
        there = environment.decisive(found["environment"])
        _check_same("environment", there, here, found, folder)
    return found


def train(
    config: Config,
    folder: Path,
    results: dict[str, Any],
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains what is not yet trained.

    Args:
      config: what to train.
      folder: as for `prepare`.
      results: what `prepare` returned; those of a finished job come back as they are.
      stop: asked before every chunk of steps; True saves a checkpoint and raises `Stopped`.
      progress: show bars on stderr.

    Returns:
      The contents of `results.json`. Apart from `seconds` they are the same bit by bit however
      often the job was stopped and resumed.

    Raises:
      Stopped: `stop` returned True.
    """
    if results["finished"]:
        return results
    store, started = Store(folder), time.monotonic() - results["seconds"]
    rows = networks(config)
    done = {(run["network"], run["seed"]) for run in results["runs"]}
    try:
        with _bars(config, len(rows), len(done), progress) as bars:
            job = _Job(config, store, load(config.n_train), stop, bars)
            for network, seed in itertools.product(rows, range(config.n_seeds)):
                if (network.name, seed) not in done:
                    results["runs"].append(_run(job, network, seed))
                    store.write(results)
                if seed:  # after the write: a run must never be in neither place
                    store.forget(_run_name(network, seed))
        results["summary"] = summarize(results)
        results["finished"] = True
    finally:
        results["seconds"] = round(time.monotonic() - started, 1)
        store.write(results)
    return results


def _run(job: _Job, network: Network, seed: int) -> dict[str, Any]:
    """Trains one run to its end and returns its result; the first seed leaves a checkpoint."""
    name, config = _run_name(network, seed), job.config
    trainer, key = make_trainer(network, config), jax.random.key(seed)
    # On a named device, as what orbax restores: jit compiles again for arrays that are not.
    state = jax.device_put(trainer.init(key), jax.devices()[0])
    saved = job.store.restore(name, state)
    if saved is not None:
        state = saved
    step = int(state.step)
    job.bars.start(f"{network.name}, seed {seed}", step)
    last_save = time.monotonic()
    while step < config.steps:
        if job.stop():
            job.store.save(name, step, state)
            raise Stopped(f"{network.name}, seed {seed}, step {step} of {config.steps}")
        state = trainer.advance(state, key, job.data)
        step = int(state.step)
        job.bars.advance(config.steps_per_chunk, _accuracy(job, state, step))
        if time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES and step < config.steps:
            job.store.save(name, step, state)
            last_save = time.monotonic()
    result = result_of(network, seed, state, len(job.data.test_labels))
    if seed == 0:
        job.store.save(name, step, state)
    return result


def _accuracy(job: _Job, state: RunState, step: int) -> float:
    return int(state.n_correct[step // job.config.steps_per_chunk - 1]) / len(job.data.test_labels)


def _run_name(network: Network, seed: int) -> str:
    return f"{network.name}-seed-{seed}"


def _start(store: Store, command: str, config: Config) -> dict[str, Any]:
    if store.has_checkpoints():
        raise ValueError(
            f"{store.folder} holds checkpoints of a job whose results.json is gone. Choose another "
            "folder with --out, or delete this one."
        )
    results = {
        "command": command,
        "finished": False,
        "seconds": 0.0,
        "config": _as_json(config),
        "environment": environment.describe(),
        "n_test": len(load(config.n_train).test_labels),
        "networks": [row._asdict() for row in networks(config)],
        "summary": [],
        "runs": [],
    }
    store.write(results)
    return json.loads(json.dumps(results))  # tuples as lists, as `read` would return them


def _as_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _check_same(
    what: str, there: dict[str, Any], here: dict[str, Any], found: dict[str, Any], folder: Path
) -> None:
    names = [n for n in (there | here) if there.get(n) != here.get(n)]
    if names:
        differ = ", ".join(f"{n} is {there.get(n)} there and {here.get(n)} here" for n in names)
        raise ValueError(
            f"{folder} was started with another {what}: {differ}. Continue it as it was started "
            f"({found['command']} --resume), or choose another folder with --out."
        )


@dataclasses.dataclass(frozen=True)
class _Bars:
    all_runs: tqdm
    one_run: tqdm

    def start(self, name: str, step: int) -> None:
        self.one_run.reset()
        self.one_run.set_description(name, refresh=False)
        self.one_run.update(step)
        self.all_runs.update(step)

    def advance(self, n_steps: int, accuracy: float) -> None:
        self.one_run.set_postfix_str(f"accuracy {accuracy:.1%}", refresh=False)
        self.one_run.update(n_steps)
        self.all_runs.update(n_steps)


@contextlib.contextmanager
def _bars(config: Config, n_networks: int, n_done: int, show: bool) -> Iterator[_Bars]:
    """A bar over all runs, and on a terminal one over the run in progress."""
    terminal = sys.stderr.isatty()
    total = n_networks * config.n_seeds * config.steps
    common = {"unit": "step", "dynamic_ncols": True}
    with (
        tqdm(
            desc=f"{n_networks} networks x {config.n_seeds} seeds",
            total=total,
            initial=n_done * config.steps,
            mininterval=0.1 if terminal else 5,
            disable=not show,
            position=0,
            **common,
        ) as all_runs,
        tqdm(
            total=config.steps,
            disable=not (show and terminal),
            position=1,
            leave=False,
            **common,
        ) as one_run,
    ):
        yield _Bars(all_runs, one_run)
