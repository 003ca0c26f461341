"""How much time does pruning add to a training step?

The baseline is `optax.adamw` alone. It is compared with `prune` as the last link of a chain, with
`prune(inner=adamw)`, and with masks of one bit (`packed=True`). Timed are the update alone, and
whole training steps of an MLP, a transformer and an LSTM in plain JAX. Params and optimizer state
are donated, as usual in a training loop. There are three numbers per variant:

- quiet: a step at which the schedule does not fire, at about 80% sparsity;
- fire: a step at which it fires; the search starts at the thresholds of the previous fire;
- amortised: `(99 quiet + fire) / 100`, for a fire every 100 steps.

Before timing, each variant takes one fire and two quiet steps, and every pruned leaf must then hold
exactly the planned number of zeros. Temporary bytes are read from the compiled program, and so are
copies outside loops of buffers as large as a param or its mask.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.table import Table

import jaxprune
from benchmarks.common import Call, Case, Check, Row, compiled, interleaved, temp_bytes
from benchmarks.hlo import large_copies
from benchmarks.tasks import Task, lstm, mlp, transformer, update_only

EVERY = 100
SCHEDULE = jaxprune.cubic_schedule(0.9, begin_step=0, end_step=100 * EVERY, every=EVERY)
# Timing starts at this fire: sparsity is 0.79 and rises a little with every fire.
_FIRST_FIRE = 50
BASE = "adamw"


def variants() -> dict[str, optax.GradientTransformation]:
    """The optimizers to compare, by name."""
    adamw = functools.partial(optax.adamw, 1e-3)
    optimizers = {
        BASE: adamw(),
        "chain": optax.chain(adamw(), jaxprune.prune(SCHEDULE)),
        "inner": jaxprune.prune(SCHEDULE, inner=adamw()),
    }
    if "packed" in inspect.signature(jaxprune.prune).parameters:
        packed: Any = functools.partial(jaxprune.prune, packed=True)
        optimizers["packed"] = optax.chain(adamw(), packed(SCHEDULE))
    return optimizers


# Running one variant


class Runner:
    """Runs one optimizer on a task, or on `seeds` copies by `vmap`; holds params and state.

    Args:
      task: the params, a batch, and how to compute gradients.
      tx: the optimizer.
      seeds: how many copies to run by `vmap`; 0 to run without it.
      first_fire: the fire at which timing starts.
    """

    def __init__(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        seeds: int = 0,
        first_fire: int = _FIRST_FIRE,
    ):
        self.n_traces = 0
        self.batch = task.batch
        self.fire = first_fire  # the next one

        def init(scale: Any) -> Any:
            params = jax.tree.map(lambda p: p * jnp.asarray(scale, p.dtype), task.params)
            return params, tx.init(params)

        def step(params: Any, state: Any, batch: Any) -> Any:
            self.n_traces += 1
            updates, state = tx.update(task.grads(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        if seeds:
            init = jax.vmap(init)
            step = jax.vmap(step)
            self.batch = jax.tree.map(lambda x: jnp.stack([x] * seeds), task.batch)
        scale = 1 + jnp.arange(seeds) / max(seeds, 1) if seeds else 1.0
        self.params, self.state = jax.jit(init)(scale)
        self.step = jax.jit(step, donate_argnums=(0, 1))
        self.program = compiled(self.step, self.params, self.state, self.batch)

    def run(self) -> Any:
        """Takes one step."""
        self.params, self.state = self.step(self.params, self.state, self.batch)
        return self.params, self.state

    def before_fire(self) -> None:
        """Sets the counter so that the next step fires."""
        self._set_step(EVERY * self.fire)
        self.fire = min(self.fire + 1, 99)

    def before_quiet(self) -> None:
        """Sets the counter so that the next step does not fire: it follows the last fire.

        One step after a fire that did not happen, the masks would be behind the schedule, and every
        step would fire.
        """
        self._set_step(EVERY * (self.fire - 1) + 1)

    def _set_step(self, step: int) -> None:
        def is_prune(x: Any) -> bool:
            return isinstance(x, jaxprune.PruneState)

        def with_step(x: Any) -> Any:
            if not is_prune(x):
                return x
            return x._replace(prune_step=jnp.full_like(x.prune_step, step))

        self.state = jax.tree.map(with_step, self.state, is_leaf=is_prune)
        jax.block_until_ready(self.state)

    def check(self) -> None:
        """Raises unless a fire and two quiet steps leave exactly the planned zeros in each leaf."""
        self.before_fire()
        sparsity = SCHEDULE.targets[self.fire - 1]
        for _ in range(3):
            jax.block_until_ready(self.run())
        for p in jax.tree.leaves(self.params):
            if p.ndim >= 2:
                n_zero = int(jnp.sum(p == 0))
                n_planned = math.floor(sparsity * p.size + 0.5)
                if n_zero != n_planned:
                    raise AssertionError(
                        f"{n_zero} zeros in the {p.shape} leaf, {n_planned} were planned"
                    )

    def facts(self) -> Row:
        """Memory, copies and compile time of the compiled step, and how often it was traced."""
        smallest = min(p.size for p in jax.tree.leaves(self.params) if p.ndim >= 2)
        return {
            "temp_bytes": temp_bytes(self.program.executable),
            "copies": len(large_copies(self.program.executable.as_text(), smallest)),
            "traces": self.n_traces,
            "compile_s": self.program.trace_s + self.program.compile_s,
        }


# Cases


def compare(task_name: str, task: Task, dtype: str, *, seeds: int = 0) -> list[Row]:
    """Checks and times quiet and firing steps of every variant; one row per variant."""
    runners = {name: Runner(task, tx, seeds) for name, tx in variants().items()}
    for name, runner in runners.items():
        if name != BASE and not seeds:
            runner.check()
    calls = {f"{name} quiet": Call(r.run, r.before_quiet) for name, r in runners.items()}
    calls |= {
        f"{name} fire": Call(r.run, r.before_fire, most=5)
        for name, r in runners.items()
        if name != BASE
    }
    times = interleaved(calls)
    base = times[f"{BASE} quiet"].median_ms
    sizes = [p.size for p in jax.tree.leaves(task.params)]
    rows = []
    for name, runner in runners.items():
        quiet, fire = times[f"{name} quiet"], times.get(f"{name} fire")
        row = {"case": "step", "task": task_name, "dtype": dtype, "seeds": seeds, "method": name}
        row |= {"n": sum(sizes), "leaves": len(sizes), **quiet._asdict(), **runner.facts()}
        row["x_adamw"] = quiet.median_ms / base
        if fire:
            amortised = ((EVERY - 1) * quiet.median_ms + fire.median_ms) / EVERY
            row |= {"fire_ms": fire.median_ms, "fire_min_ms": fire.min_ms}
            row |= {"x_fire": fire.median_ms / base, "x_amortised": amortised / base}
        rows.append(row)
    return rows


def micro_steps(n: int) -> list[Row]:
    """Times micro-steps of `optax.MultiSteps` that only accumulate gradients.

    MultiSteps calls its optimizer on every micro-step, and discards the result on all but the last.
    So while a fire is due, every micro-step computes new masks. The method `around` avoids this: it
    wraps `prune` around MultiSteps.
    """
    task = update_only(n, jnp.float32)

    def accumulated(tx: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.MultiSteps(tx, 10**6).gradient_transformation()

    base, chain, inner = (variants()[name] for name in (BASE, "chain", "inner"))
    forms = {BASE: accumulated(base), "chain": accumulated(chain), "inner": accumulated(inner)}
    forms["around"] = jaxprune.prune(SCHEDULE, inner=accumulated(base))
    # MultiSteps discards the masks of all these steps, so quiet steps are timed where the schedule
    # asks for no zeros yet.
    runners = {name: Runner(task, tx, first_fire=1) for name, tx in forms.items()}
    calls = {f"{name} quiet": Call(r.run, r.before_quiet) for name, r in runners.items()}
    calls |= {f"{name} fire": Call(r.run, r.before_fire) for name, r in runners.items()}
    times = interleaved(calls)
    base_ms = times[f"{BASE} quiet"].median_ms
    return [
        {"case": "micro", "task": f"micro-step {n:.0e}", "dtype": "float32", "seeds": 0}
        | {"method": name, "n": n, "leaves": 10}
        | {**times[f"{name} quiet"]._asdict(), **runner.facts()}
        | {"x_adamw": times[f"{name} quiet"].median_ms / base_ms}
        | {"x_due": times[f"{name} fire"].median_ms / base_ms}
        for name, runner in runners.items()
    ]


def cases(quick: bool) -> list[Case]:
    """Updates alone, then training steps, then many seeds by `vmap`, then micro-steps."""
    all_cases = []
    for n in (10**4,) if quick else (10**6, 10**7):
        for dtype in ("float32", "bfloat16"):
            all_cases.append(_case(f"update {n:.0e}", functools.partial(update_only, n), dtype))
    for make in (mlp, transformer, lstm):
        for dtype in ("float32",) if quick else ("float32", "bfloat16"):
            all_cases.append(_case(make.__name__, functools.partial(make, quick), dtype))
    seeds = functools.partial(update_only, 10**4 if quick else 10**6)
    all_cases.append(_case(f"update {10**6:.0e}", seeds, "float32", seeds=2 if quick else 8))
    micro = functools.partial(micro_steps, 10**4 if quick else 10**7)
    return [*all_cases, Case("step micro-steps of MultiSteps", micro)]


def _case(name: str, make: Callable[[Any], Task], dtype: str, *, seeds: int = 0) -> Case:
    name += f", {seeds} seeds" if seeds else ""
    return Case(
        f"step {name} {dtype}",
        lambda: compare(name, make(jnp.dtype(dtype)), dtype, seeds=seeds),
    )


# Targets


def checks(rows: Sequence[Row]) -> list[Check]:
    """The targets for which there are rows, with what was measured."""
    pruned = [r for r in rows if r["case"] == "step" and r["method"] != BASE]
    updates = [r for r in pruned if r["task"] == "update 1e+07"]
    training = [r for r in pruned if not r["task"].startswith("update")]
    seeds = [r for r in pruned if r["seeds"]]
    targets = []
    for method, limit in {"chain": 1.10, "packed": 1.05, "inner": 1.25}.items():
        for r in updates:
            if r["method"] == method:
                target = f"{method} / adamw, quiet update 1e7 {r['dtype']}"
                targets.append(Check(target, limit, r["x_adamw"]))
    for r in training:
        target = f"{r['method']} / adamw, {{}} step {r['task']} {r['dtype']}"
        targets.append(Check(target.format("quiet"), 1.01, r["x_adamw"]))
        targets.append(Check(target.format("amortised"), 1.01, r["x_amortised"]))
    for r in seeds:
        targets.append(Check(f"{r['method']} / adamw, quiet {r['task']}", 1.25, r["x_adamw"]))
    for r in rows:
        if r["case"] == "micro" and r["method"] != BASE:
            target = f"{r['method']} / adamw, quiet {r['task']} of MultiSteps"
            targets.append(Check(target, 1.25, r["x_adamw"]))
    copies = {(r["task"], r["dtype"]): r["copies"] for r in rows if r.get("method") == BASE}
    if pruned:
        extra = max(r["copies"] - copies[r["task"], r["dtype"]] for r in pruned)
        targets.append(Check("copies of params or masks beyond those of adamw", 0, extra))
        targets.append(Check("traces of the step", 1, max(r["traces"] for r in pruned)))
    return targets


def tables(rows: Sequence[Row]) -> list[Table]:
    """Milliseconds, and ratios to adamw alone."""
    columns = ("task", "dtype", "", "quiet ms", "x adamw", "fire ms", "x amortised")
    table = Table(title="Step")
    for column in (*columns, "temp MB", "copies", "traces", "compile s"):
        table.add_column(column, justify="right")
    for r in rows:
        fire = (f"{r['fire_ms']:.2f}", f"{r['x_amortised']:.3f}") if "fire_ms" in r else ("", "")
        numbers = f"{r['median_ms']:.2f}", f"{r['x_adamw']:.3f}", *fire
        facts = f"{(r['temp_bytes'] or 0) / 1e6:.2f}", str(r["copies"]), str(r["traces"])
        seconds = f"{r['compile_s']:.2f}"
        table.add_row(r["task"], r["dtype"], r["method"], *numbers, *facts, seconds)
    return [table] if rows else []
