"""All networks, one after the other, continued where an earlier process stopped."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from jaxprune.demo import environment
from jaxprune.demo.config import Config, Network, networks
from jaxprune.demo.data import Data, load
from jaxprune.demo.report import summarize
from jaxprune.demo.store import Store
from jaxprune.demo.train import (
    Program,
    RunState,
    compile_program,
    make_trainer,
    program_key,
    results_of,
)

_SECONDS_BETWEEN_SAVES = 10.0  # the training that a power cut can lose; signals lose none


class Stopped(Exception):
    """Training stopped on request, after it saved a checkpoint. The message says at which step."""


@dataclasses.dataclass(frozen=True)
class _Job:
    config: Config
    store: Store
    data: Data
    programs: Mapping[Hashable, Future[Program]]
    stop: Callable[[], bool]
    bars: "_Bars"


def prepare(
    config: Config, folder: Path, *, resume: bool = False, command: str = "python -m jaxprune demo"
) -> dict[str, Any]:
    """The results to continue from: a new results file, or the one in `folder`.

    Args:
      config: what to train.
      folder: of the results and the checkpoints.
      resume: continue the job in `folder`, instead of starting one.
      command: that starts this job, for the results file and for error messages.

    Raises:
      ValueError: `folder` contains a job although `resume` is False, or none although it is True;
        or its job has another configuration, or was started in another environment.
    """
    store = Store(folder)
    results = store.read()
    if results is None:
        if resume:
            raise ValueError(
                f"nothing to resume: {store.results_file} does not exist. Start a job without "
                "--resume."
            )
        return _start(store, command, config)
    if not resume:
        is_finished = results["finished"]
        state, verb = ("a finished", "show") if is_finished else ("an unfinished", "continue")
        raise ValueError(
            f"{folder} contains {state} job. To {verb} it: {results['command']} --resume. To start "
            "a new one, choose another folder with --out, or delete this folder."
        )
    _check_same("configuration", results["config"], _as_json(config), results, folder)
    if not results["finished"]:
        started_in = environment.decisive(results["environment"])
        running_in = environment.decisive(environment.describe())
        _check_same("environment", started_in, running_in, results, folder)
    return results


def train(
    config: Config,
    folder: Path,
    results: dict[str, Any],
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains all networks that are not finished yet.

    Args:
      config: what to train.
      folder: as for `prepare`.
      results: from `prepare`; those of a finished job are returned unchanged.
      stop: called before every chunk of steps; if it returns True, a checkpoint is saved and
        `Stopped` is raised.
      progress: show progress bars on stderr.

    Returns:
      The contents of `results.json`. Apart from `seconds`, they are the same bit for bit, however
      often the job was stopped and resumed.

    Raises:
      Stopped: `stop` returned True.
    """
    if results["finished"]:
        return results
    store, started = Store(folder), time.monotonic() - results["seconds"]
    rows = networks(config)
    done = {run["network"] for run in results["runs"]}
    try:
        left = [network for network in rows if network.name not in done]
        with _bars(config, len(rows), len(done), progress) as bars:
            data = _load(config)
            with _compiled(left, config, data) as programs:
                job = _Job(config, store, data, programs, stop, bars)
                for network in left:
                    results["runs"] += _run(job, network)
                    store.write(results)
        results["summary"] = summarize(results)
        results["finished"] = True
    finally:
        results["seconds"] = round(time.monotonic() - started, 1)
        store.write(results)
    return results


@contextlib.contextmanager
def _compiled(
    rows: Sequence[Network], config: Config, data: Data
) -> Iterator[Mapping[Hashable, Future[Program]]]:
    """The programs of the networks, which are compiled while the first networks train.

    XLA compiles a program mostly with one thread, so it compiles two programs at a time.
    """
    programs: dict[Hashable, Future[Program]] = {}
    pool = ThreadPoolExecutor(2)
    try:
        for network in rows:
            if (key := program_key(network)) not in programs:
                programs[key] = pool.submit(compile_program, network, config, data)
        yield programs
    finally:
        pool.shutdown(cancel_futures=True)


def _run(job: _Job, network: Network) -> list[dict[str, Any]]:
    """Trains a network with all seeds to the end, saves it, and returns its results."""
    name, config = network.name, job.config
    trainer = make_trainer(network, config, job.programs[program_key(network)].result())
    # The program is compiled for arrays that are committed to a device, as those of orbax are.
    state = jax.device_put(trainer.init(), jax.devices()[0])
    restored = job.store.restore(name, state)
    if restored is not None:
        state = restored
    step = int(state.step)
    job.bars.start(name, step)
    last_save = time.monotonic()
    while step < config.steps:
        if job.stop():
            job.store.save(name, step, state)
            raise Stopped(f"{name}, step {step} of {config.steps}")
        state = trainer.advance(state, job.data)
        step = int(state.step)
        job.bars.advance(config.steps_per_chunk, _accuracy(job, state, step))
        if time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES and step < config.steps:
            job.store.save(name, step, state)
            last_save = time.monotonic()
    results = results_of(network, state, config.n_test)
    job.store.save(name, step, state)
    return results


def _accuracy(job: _Job, state: RunState, step: int) -> float:
    """The mean over the seeds after this step."""
    n_correct = state.n_correct[:, step // job.config.steps_per_chunk - 1]
    return float(n_correct.mean()) / job.config.n_test


def _load(config: Config) -> Data:
    return load(config.n_digits, config.n_train, config.n_test)


def _start(store: Store, command: str, config: Config) -> dict[str, Any]:
    if store.has_checkpoints():
        raise ValueError(
            f"{store.folder} contains checkpoints of a job, but its results.json is missing. "
            "Choose another folder with --out, or delete this folder."
        )
    results = {
        "command": command,
        "finished": False,
        "seconds": 0.0,
        "config": _as_json(config),
        "environment": environment.describe(),
        "networks": [row._asdict() for row in networks(config)],
        "summary": [],
        "runs": [],
    }
    store.write(results)
    return json.loads(json.dumps(results))  # turns tuples into lists, as in `Store.read`


def _as_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _check_same(
    noun: str, started: dict[str, Any], now: dict[str, Any], results: dict[str, Any], folder: Path
) -> None:
    """Raises if a job was started with other settings than it would now continue with."""
    names = [name for name in (started | now) if started.get(name) != now.get(name)]
    if names:
        differences = ", ".join(f"{n} was {started.get(n)} and is now {now.get(n)}" for n in names)
        raise ValueError(
            f"the job in {folder} was started with another {noun}: {differences}. Continue it as "
            f"it was started ({results['command']} --resume), or choose another folder with --out."
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
    total = n_networks * config.steps
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
