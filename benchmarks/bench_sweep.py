"""What does a list of schedules cost, against a single one?

`prune([schedule, ...])` puts the budgets of all schedules into one program, and the state says
which of them it follows. Compared are eight schedules and the first of them alone, around adamw:

- compile: CPU seconds to trace and compile a step, from empty caches;
- quiet: CPU milliseconds of a step at which the schedule does not fire.

Both take turns, and a ratio is the median over the ratios of all turns. CPU time includes that of
all threads, and depends less on other load than time on the clock. The persistent compilation cache
of JAX must be off.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.table import Table

import jaxprune
from benchmarks.bench_step import EVERY, SCHEDULE, Runner
from benchmarks.common import Case, Check, Row, compiled
from benchmarks.tasks import Task, mlp, update_only

ONE, MANY = "one schedule", "8 schedules"
_TURN_SECONDS = 0.05  # of CPU time; 50 quiet steps at most
_OTHERS = (0.0, 0.5, 0.75, 0.8, 0.85, 0.95, 0.98)
SCHEDULES = [
    SCHEDULE,
    *(jaxprune.cubic_schedule(s, 0, 100 * EVERY, every=EVERY) for s in _OTHERS),
]


def in_turns(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each call returns in each round; in a round, each is called once."""
    results: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            results[name].append(call())
    return results


def compile_seconds(task: Task, tx: optax.GradientTransformation, from_empty: bool) -> float:
    """CPU seconds to trace and compile one step."""

    def step(params: Any, state: Any, batch: Any) -> Any:
        updates, state = tx.update(task.grads(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, task.params)
    if from_empty:
        jax.clear_caches()
    return compiled(jax.jit(step, donate_argnums=(0, 1)), task.params, state, task.batch).cpu_s


def quiet_seconds(runner: Runner, n_steps: int) -> float:
    """CPU seconds of a quiet step."""
    runner.before_quiet()
    start = time.process_time()
    for _ in range(n_steps):
        arrays = runner.run()
    jax.block_until_ready(arrays)
    return (time.process_time() - start) / n_steps


def compare(task_name: str, task: Task, quick: bool) -> list[Row]:
    """Compiles and runs both; one row for each."""
    adamw = optax.adamw(1e-3)
    forms = {
        ONE: jaxprune.prune(SCHEDULE, inner=adamw),
        MANY: jaxprune.prune(SCHEDULES, inner=adamw),
    }
    compile_calls = {
        name: functools.partial(compile_seconds, task, tx, not quick) for name, tx in forms.items()
    }
    in_turns(compile_calls, 1)  # a warm-up
    compile_s = in_turns(compile_calls, 2 if quick else 5)
    runners = {name: Runner(task, tx) for name, tx in forms.items()}
    for runner in runners.values():
        runner.check()
    n_steps = min(max(int(_TURN_SECONDS / quiet_seconds(runners[ONE], 2)), 2), 50)
    steps = {
        name: functools.partial(quiet_seconds, runner, n_steps) for name, runner in runners.items()
    }
    in_turns(steps, 1)
    quiet_s = in_turns(steps, 3 if quick else 31)
    return [
        {
            "case": "sweep",
            "task": task_name,
            "dtype": "float32",
            "method": name,
            "compile_cpu_s": statistics.median(compile_s[name]),
            "x_compile": _ratio(compile_s, name),
            "quiet_cpu_ms": 1e3 * statistics.median(quiet_s[name]),
            "x_quiet": _ratio(quiet_s, name),
            "rounds": [len(compile_s[name]), len(quiet_s[name])],
        }
        for name in forms
    ]


def _ratio(seconds: Mapping[str, Sequence[float]], name: str) -> float:
    """The median over all rounds of the time of a method by that of one schedule."""
    pairs = zip(seconds[name], seconds[ONE], strict=True)
    return statistics.median(own / one for own, one in pairs)


def cases(quick: bool) -> list[Case]:
    """Updates alone, and a training step."""
    makes: dict[str, Callable[[], Task]] = {
        "mlp": functools.partial(mlp, quick, jnp.dtype("float32"))
    }
    for n in () if quick else (10**5, 10**6):
        makes[f"update {n:.0e}"] = functools.partial(update_only, n, jnp.float32)
    return [Case(f"sweep {name}", _rows(name, make, quick)) for name, make in makes.items()]


def _rows(name: str, make: Callable[[], Task], quick: bool) -> Callable[[], list[Row]]:
    return lambda: compare(name, make(), quick)


def checks(rows: Sequence[Row]) -> list[Check]:
    """Eight schedules against one: at most 1.3 times to compile, and 1.05 times a quiet step."""
    many = [row for row in rows if row["method"] == MANY]
    compiles = [Check(f"compile {row['task']}", 1.3, row["x_compile"]) for row in many]
    return [*compiles, *(Check(f"quiet {row['task']}", 1.05, row["x_quiet"]) for row in many)]


def tables(rows: Sequence[Row]) -> list[Table]:
    """CPU time, and ratios to one schedule."""
    table = Table(title="Sweep: CPU time")
    for column in ("task", "", "compile s", "x one", "quiet ms", "x one"):
        table.add_column(column, justify="right")
    for row in rows:
        compile_cells = f"{row['compile_cpu_s']:.2f}", f"{row['x_compile']:.3f}"
        quiet_cells = f"{row['quiet_cpu_ms']:.3f}", f"{row['x_quiet']:.3f}"
        table.add_row(row["task"], row["method"], *compile_cells, *quiet_cells)
    return [table] if rows else []
