"""What does pruning add to a training step?

Compared with `optax.adamw` alone: `prune` as the last link of a chain, and `prune(inner=adamw)`.
The update alone is timed, and whole training steps of an MLP, a transformer and an LSTM in plain
JAX. Params and optimizer state are donated, as in any training loop. Three numbers each:

- quiet: a step on which the schedule does not fire, masks at about 80% sparsity;
- fire: a step on which it does, opened at the thresholds of the fire before;
- amortised: `(99 quiet + fire) / 100`, a fire every 100 steps.

Before it is timed each variant makes a fire and quiet steps, and the zeros are counted: exactly the
budget in every pruned leaf. What XLA made of it is read from the compiled program: temporary bytes,
and copies of buffers as large as a param or its mask outside every loop.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.table import Table

import jaxprune
from benchmarks.common import Call, Case, Check, Row, compiled, interleaved, temp_bytes

EVERY = 100
SCHEDULE = jaxprune.cubic_schedule(0.9, begin_step=0, end_step=100 * EVERY, every=EVERY)
# Fires from here on are timed: sparsity is 0.79 and moves a little each time.
_FIRST_FIRE = 50
BASE = "adamw"


class Task(NamedTuple):
    """Something to train: initial params, and their gradients on a batch."""

    params: Any
    grads: Callable[[Any, Any], Any]
    batch: Any


def variants() -> dict[str, optax.GradientTransformation]:
    """Optimizers to compare, by name; `packed` where the library has it."""
    adamw = functools.partial(optax.adamw, 1e-3)
    found = {
        BASE: adamw(),
        "chain": optax.chain(adamw(), jaxprune.prune(SCHEDULE)),
        "inner": jaxprune.prune(SCHEDULE, inner=adamw()),
    }
    if "packed" in inspect.signature(jaxprune.prune).parameters:
        packed: Any = functools.partial(jaxprune.prune, packed=True)
        found["packed"] = optax.chain(adamw(), packed(SCHEDULE))
    return found


# Tasks


def update_only(n: int, dtype: Any) -> Task:
    """Ten square leaves of `n` params in all, whose gradients are the batch."""
    side = math.isqrt(n // 10)
    keys = jax.random.split(jax.random.key(0), 20)
    leaves = [jax.random.normal(key, (side, side), dtype) for key in keys]
    names = [f"w{i}" for i in range(10)]
    params, grads = (
        dict(zip(names, leaves[:10], strict=True)),
        dict(zip(names, leaves[10:], strict=True)),
    )
    return Task(params, lambda params, batch: batch, grads)


def _normal(key: jax.Array, *shape: int, dtype: Any) -> jax.Array:
    return jax.random.normal(key, shape, dtype) / math.sqrt(shape[0])


def _keys() -> Callable[[], jax.Array]:
    count = iter(range(2**31))
    return lambda: jax.random.fold_in(jax.random.key(0), next(count))


def mlp(quick: bool, dtype: Any) -> Task:
    """784 pixels, three hidden layers of 1,024, batch 128; 2.9 million params."""
    widths, n_batch = ((16, 32, 10), 8) if quick else ((784, 1024, 1024, 1024, 10), 128)
    key = _keys()
    params = [
        {"kernel": _normal(key(), a, b, dtype=dtype), "bias": jnp.zeros(b, dtype)}
        for a, b in itertools.pairwise(widths)
    ]
    x = jax.random.normal(key(), (n_batch, widths[0]), dtype)
    labels = jax.random.randint(key(), (n_batch,), 0, 10)

    def loss(params: Any, batch: Any) -> jax.Array:
        x, labels = batch
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        logits = x @ params[-1]["kernel"] + params[-1]["bias"]
        return _cross_entropy(logits, labels)

    return Task(params, jax.grad(loss), (x, labels))


def transformer(quick: bool, dtype: Any) -> Task:
    """Four blocks of width 256 on 8 x 128 tokens of a vocabulary of 1,024; 3.4 million params."""
    d, n_blocks, n_vocab, n_batch, n_seq = (16, 1, 32, 2, 8) if quick else (256, 4, 1024, 8, 128)
    key = _keys()
    blocks = [
        {
            "qkv": _normal(key(), d, 3 * d, dtype=dtype),
            "out": _normal(key(), d, d, dtype=dtype),
            "up": _normal(key(), d, 4 * d, dtype=dtype),
            "down": _normal(key(), 4 * d, d, dtype=dtype),
        }
        for _ in range(n_blocks)
    ]
    params = {"embed": _normal(key(), n_vocab, d, dtype=dtype), "blocks": blocks}
    tokens = jax.random.randint(key(), (n_batch, n_seq + 1), 0, n_vocab)

    def attend(x: jax.Array, block: Any) -> jax.Array:
        heads = (x @ block["qkv"]).reshape(*x.shape[:2], 3, 4, d // 4)
        q, k, v = (heads[:, :, i] for i in range(3))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return mixed.reshape(x.shape) @ block["out"]

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embed"][tokens[:, :-1]]
        for block in params["blocks"]:
            x = x + attend(_standardized(x), block)
            x = x + jax.nn.gelu(_standardized(x) @ block["up"]) @ block["down"]
        return _cross_entropy(_standardized(x) @ params["embed"].T, tokens[:, 1:])

    return Task(params, jax.grad(loss), tokens)


def lstm(quick: bool, dtype: Any) -> Task:
    """Two layers of 512 units on 32 x 64 tokens of a vocabulary of 1,024; 4.7 million params."""
    d, n_vocab, n_batch, n_seq = (16, 32, 2, 8) if quick else (512, 1024, 32, 64)
    key = _keys()
    cells = [
        {"kernel": _normal(key(), 2 * d, 4 * d, dtype=dtype), "bias": jnp.zeros(4 * d, dtype)}
        for _ in range(2)
    ]
    params = {"embed": _normal(key(), n_vocab, d, dtype=dtype), "cells": cells}
    tokens = jax.random.randint(key(), (n_seq + 1, n_batch), 0, n_vocab)

    def step(cell: Any, carry: Any, x: jax.Array) -> Any:
        h, c = carry
        gates = jnp.concatenate([x, h], -1) @ cell["kernel"] + cell["bias"]
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embed"][tokens[:-1]]
        for cell in params["cells"]:
            zero = jnp.zeros(x.shape[1:], x.dtype)
            x = jax.lax.scan(functools.partial(step, cell), (zero, zero), x)[1]
        return _cross_entropy(x @ params["embed"].T, tokens[1:])

    return Task(params, jax.grad(loss), tokens)


def _standardized(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-5)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    per_item = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    return per_item.mean()


# One variant at work


class Runner:
    """One optimizer on one task, or on `seeds` copies of it; holds params and state."""

    def __init__(self, task: Task, tx: optax.GradientTransformation, seeds: int = 0):
        self.n_traces = 0
        self.batch = task.batch
        self.fire = _FIRST_FIRE

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
        self.made = compiled(self.step, self.params, self.state, self.batch)

    def run(self) -> Any:
        self.params, self.state = self.step(self.params, self.state, self.batch)
        return self.params, self.state

    def before_fire(self) -> None:
        """Makes the next step the next fire."""
        self._set_step(EVERY * self.fire)
        self.fire = min(self.fire + 1, 99)

    def before_quiet(self) -> None:
        """Makes the next step one that does not fire."""
        self._set_step(EVERY * self.fire + 1)

    def _set_step(self, step: int) -> None:
        def is_prune(x: Any) -> bool:
            return isinstance(x, jaxprune.PruneState)

        def moved(x: Any) -> Any:
            if not is_prune(x):
                return x
            return x._replace(prune_step=jnp.full_like(x.prune_step, step))

        self.state = jax.tree.map(moved, self.state, is_leaf=is_prune)
        jax.block_until_ready(self.state)

    def check(self) -> None:
        """Raises unless a fire and a quiet step leave exactly the budgeted zeros in each leaf."""
        self.before_fire()
        sparsity = SCHEDULE.targets[(self.fire - 1)]
        for _ in range(3):
            jax.block_until_ready(self.run())
        for p in jax.tree.leaves(self.params):
            if p.ndim >= 2:
                n_zero = int(jnp.sum(p == 0))
                if n_zero != math.floor(sparsity * p.size + 0.5):
                    raise AssertionError(f"{n_zero} zeros in a {p.shape} leaf at {sparsity}")

    def facts(self) -> Row:
        """What the compiled program says of itself, and how often it was traced."""
        least = min(p.size for p in jax.tree.leaves(self.params) if p.ndim >= 2)
        return {
            "temp_bytes": temp_bytes(self.made.executable),
            "copies": len(large_copies(self.made.executable.as_text(), least)),
            "traces": self.n_traces,
            "compile_s": self.made.trace_s + self.made.compile_s,
        }


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$", re.M)
_COPY = re.compile(r"= (\w+?)\[([\d,]*)\]\S* copy(?:-start)?\(")


def large_copies(hlo: str, least_entries: int) -> list[str]:
    """Copies of at least so many entries that a step makes outside loops and branches.

    `copy` instructions of the entry and of all that it calls, but for the bodies of `while` and
    `conditional`: a quiet step does not enter those of a fire.
    """
    bodies = _computations(hlo)
    entry = next(name for name, (is_entry, _) in bodies.items() if is_entry)
    seen, found, queue = set(), [], [entry]
    while queue:
        name = queue.pop()
        if name in seen or name not in bodies:
            continue
        seen.add(name)
        for line in bodies[name][1]:
            if match := _COPY.search(line):
                shape = [int(d) for d in match[2].split(",") if d]
                if math.prod(shape) >= least_entries:
                    found.append(f"{match[1]}[{match[2]}]")
            if " while(" not in line and " conditional(" not in line:
                queue += re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line)
    return found


def _computations(hlo: str) -> dict[str, tuple[bool, list[str]]]:
    """Name -> (is the entry, its lines) of every computation in the text of a module."""
    found: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if (match := _COMPUTATION.match(line)) and "->" in line:
            lines = []
            found[match[2]] = bool(match[1]), lines
        else:
            lines.append(line)
    return found


# Cases


def compare(task_name: str, task: Task, dtype: str, *, seeds: int = 0) -> list[Row]:
    """Quiet and firing steps of every variant; one row each."""
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
    """Micro-steps of `optax.MultiSteps` that only accumulate, quiet and while a fire is due.

    MultiSteps runs the whole of its optimizer on every micro-step and drops what it returns on all
    but the last, a selection that is due included. `around` wraps MultiSteps with `prune` instead.
    """
    task = update_only(n, jnp.float32)

    def accumulated(tx: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.MultiSteps(tx, 10**6).gradient_transformation()

    base, chain, inner = (variants()[name] for name in (BASE, "chain", "inner"))
    forms = {BASE: accumulated(base), "chain": accumulated(chain), "inner": accumulated(inner)}
    forms["around"] = jaxprune.prune(SCHEDULE, inner=accumulated(base))
    runners = {name: Runner(task, tx) for name, tx in forms.items()}
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
    """Updates alone, then training, then seeds."""
    found = []
    for n in (10**4,) if quick else (10**6, 10**7):
        for dtype in ("float32", "bfloat16"):
            found.append(_case(f"update {n:.0e}", functools.partial(update_only, n), dtype))
    for make in (mlp, transformer, lstm):
        for dtype in ("float32",) if quick else ("float32", "bfloat16"):
            found.append(_case(make.__name__, functools.partial(make, quick), dtype))
    seeds = functools.partial(update_only, 10**4 if quick else 10**6)
    found.append(_case(f"update {10**6:.0e}", seeds, "float32", seeds=2 if quick else 8))
    micro = functools.partial(micro_steps, 10**4 if quick else 10**7)
    return [*found, Case("step micro-steps of MultiSteps", micro)]


def _case(name: str, make: Callable[[Any], Task], dtype: str, *, seeds: int = 0) -> Case:
    name += f", {seeds} seeds" if seeds else ""
    return Case(
        f"step {name} {dtype}",
        lambda: compare(name, make(jnp.dtype(dtype)), dtype, seeds=seeds),
    )


# Targets


def checks(rows: Sequence[Row]) -> list[Check]:
    """The targets that the rows can tell about, each at its worst row."""
    pruned = [r for r in rows if r["case"] == "step" and r["method"] != BASE]
    updates = [r for r in pruned if r["task"] == "update 1e+07"]
    training = [r for r in pruned if not r["task"].startswith("update")]
    seeds = [r for r in pruned if r["seeds"]]
    found = []
    for method, limit in {"chain": 1.10, "packed": 1.05, "inner": 1.25}.items():
        for r in updates:
            if r["method"] == method:
                what = f"{method} / adamw, quiet update 1e7 {r['dtype']}"
                found.append(Check(what, limit, r["x_adamw"]))
    for r in training:
        what = f"{r['method']} / adamw, {{}} step {r['task']} {r['dtype']}"
        found.append(Check(what.format("quiet"), 1.01, r["x_adamw"]))
        found.append(Check(what.format("amortised"), 1.01, r["x_amortised"]))
    for r in seeds:
        found.append(Check(f"{r['method']} / adamw, quiet {r['task']}", 1.25, r["x_adamw"]))
    for r in rows:
        if r["case"] == "micro" and r["method"] != BASE:
            what = f"{r['method']} / adamw, quiet {r['task']} of MultiSteps"
            found.append(Check(what, 1.25, r["x_adamw"]))
    copies = {(r["task"], r["dtype"]): r["copies"] for r in rows if r.get("method") == BASE}
    if pruned:
        extra = max(r["copies"] - copies[r["task"], r["dtype"]] for r in pruned)
        found.append(Check("copies of params or masks, more than adamw makes", 0, extra))
        found.append(Check("traces of the step", 1, max(r["traces"] for r in pruned)))
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """What a person reads: milliseconds and ratios to adamw alone."""
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
