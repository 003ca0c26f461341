"""Whether a GPU computes the same masks as a CPU, bit for bit, and whether the laws hold there.

Scores that are sums, such as the mean of a block, are added up in another order on a GPU, and a
product may be fused with a sum. So the pruning that is compared uses only scores that are computed
exactly, and optimizers that only add. For other kinds the exact counts and zeros are checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from benchmarks.common import Case, Row
from benchmarks.topk_oracle import KINDS, judge, oracle, weights

_STEPS = 3
_SCHEDULE = jaxprune.linear_schedule(0.75, begin_step=0, end_step=_STEPS - 1, every=1)
_HALF = jaxprune.linear_schedule(0.5, begin_step=0, end_step=_STEPS - 1, every=1)
_MAX = partial(jaxprune.Block, (1, 16), pooling="max")
# Kinds with exact scores: the masks of a GPU and a CPU are equal.
EXACT: dict[str, Callable[[], optax.GradientTransformation]] = {
    "unstructured": partial(jaxprune.prune, _SCHEDULE),
    "bit masks": partial(jaxprune.prune, _SCHEDULE, packed=True),
    "global pool": partial(jaxprune.prune, _SCHEDULE, distribution=jaxprune.global_pool),
    "NM(2, 4)": partial(jaxprune.prune, _HALF, structure=jaxprune.NM(2, 4, axis=0)),
    "hashed ties": partial(jaxprune.prune, _SCHEDULE, ties="hashed"),
    "random score": partial(jaxprune.prune, _SCHEDULE, score=jaxprune.random_score),
    "blocks": partial(jaxprune.prune, _SCHEDULE, structure=_MAX()),
    "balanced blocks": partial(jaxprune.prune, _SCHEDULE, structure=_MAX(balanced=True)),
}
# Kinds whose scores are sums: only the laws are checked.
ROUNDED: dict[str, Callable[[], optax.GradientTransformation]] = {
    "channels": partial(jaxprune.prune, _SCHEDULE, structure=jaxprune.Channel(axis=-1)),
    "normalized pool": partial(jaxprune.prune, _SCHEDULE, distribution=jaxprune.normalized_pool),
    "adamw inside": partial(jaxprune.prune, _SCHEDULE, inner=optax.adamw(1e-3)),
}
TESTS = ("tests/topk/test_topk.py", "tests/transform/test_laws.py")
SMALL_TESTS = (f"{TESTS[0]}::test_thresholds_lie_between_the_kept_and_the_dropped",)
_ROOT = Path(__file__).parents[2]


def cpu() -> Any:
    """A CPU device, or None where JAX_PLATFORMS leaves it out."""
    with contextlib.suppress(RuntimeError):
        return jax.devices("cpu")[0]
    return None


@partial(jax.jit, static_argnames="ties")
def _mask(w: jax.Array, n_keep: jax.Array, ties: str = "index") -> jax.Array:
    return jaxprune.topk_mask(jnp.abs(w), n_keep, ties=ties)


def masks(kind: str, n: int) -> list[Row]:
    """Masks of weights of one kind, compared with those by NumPy and those of a CPU."""
    w, answers = weights(kind, n), set()
    for n_keep in (1, n // 5, n - 1):
        answers.add(judge(np.asarray(_mask(w, n_keep)), w, oracle(w, n_keep)))
        if cpu():
            hashed = np.asarray(_mask(w, n_keep, ties="hashed"))
            with jax.default_device(cpu()):
                if not np.array_equal(hashed, _mask(w, n_keep, ties="hashed")):
                    answers.add("hashed ties differ from a CPU")
    return [_row(f"masks of {kind} weights", answers - {"exact"}) | {"n": n}]


def steps(kind: str, n: int) -> list[Row]:
    """A few updates of one kind: exact zeros, kept weights not changed, and equal to a CPU's."""
    tx = (EXACT | ROUNDED)[kind]()
    shapes = {"w": (n // 64, 64), "v": (4, 32, 32), "bias": (64,)}
    params, *all_updates = (
        {name: jax.random.normal(key, shape) for name, shape in shapes.items()}
        for key in jax.random.split(jax.random.key(0), _STEPS + 1)
    )
    update = jax.jit(partial(_updated, tx))
    state = jax.jit(tx.init)(params)
    twin = jax.device_put((params, state), cpu()) if cpu() and kind in EXACT else None
    problems: set[str] = set()
    for updates in all_updates:
        before = params
        params, state = update(params, state, updates)
        problems |= broken_laws(kind, before, updates, params, state)
        if twin is not None:
            twin = update(*twin, jax.device_put(updates, cpu()))
            if not _bit_equal(params, twin[0]):
                problems.add("params differ from a CPU")
    try:
        jaxprune.check(params, state, done=True)
    except ValueError as error:
        problems.add(f"check: {error}")
    return [_row(f"steps, {kind}", problems)]


def _updated(tx: Any, params: Any, state: Any, updates: Any) -> Any:
    updates, state = tx.update(updates, state, params)
    return optax.apply_updates(params, updates), state


def broken_laws(kind: str, before: Any, updates: Any, after: Any, state: Any) -> set[str]:
    """Laws that one update broke: dropped weights are +0.0, kept ones get their update."""
    kept, broken = jaxprune.get_masks(state), set()
    for name, mask in kept.items():
        new = np.asarray(after[name])
        mask = np.asarray(mask)
        if np.any(new.view(np.uint32)[~mask]):
            broken.add("a dropped weight is not +0.0")
        expected = np.asarray(before[name]) + np.asarray(updates[name])
        if kind in EXACT and not np.array_equal(new[mask], expected[mask]):
            broken.add("a kept weight did not get its update")
    if int(jaxprune.get_state(state).violations):
        broken.add("violations")
    return broken


def _bit_equal(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def _row(what: str, problems: set[str]) -> Row:
    return {"case": "correct", "what": what, "answer": ", ".join(sorted(problems)) or "exact"}


def tests(seconds: float, names: Sequence[str]) -> list[Row]:
    """The tests of selection and of the laws, on this backend, in a process of their own.

    Those that do not start within the time are left out.
    """
    backend = "cuda,cpu" if jax.default_backend() == "gpu" else "cpu"
    environment = os.environ | {"HYPOTHESIS_PROFILE": "short", "JAX_PLATFORMS": backend}
    environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.1"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *names]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            failed = process.wait(seconds) != 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            failed = False
        output.seek(0)
        lines = output.read().strip().splitlines()
    dots = [line for line in lines if re.match(r"[.sxFE]+( |$)", line)]
    failed |= any("F" in line or "E" in line for line in dots)
    n_passed = sum(line.split()[0].count(".") for line in dots)
    note = {"note": f"{n_passed} passed; {lines[-1][-80:] if lines else 'no output'}"}
    return [_row(f"tests on {jax.default_backend()}", {"failed"} if failed else set()) | note]


def cases(small: bool) -> tuple[list[Case], list[Case]]:
    """Masks of every kind of weights and steps of the main kinds of pruning; other kinds."""
    n = 10**4 if small else 10**6
    kinds = ("normal", "zeros90") if small else KINDS
    named = ("unstructured", "channels") if small else (*EXACT, *ROUNDED)
    all_steps = [
        Case(f"correct steps {kind}", partial(steps, kind, 2**10 if small else 2**20))
        for kind in named
    ]
    all_masks = [Case(f"correct masks {kind}", partial(masks, kind, n)) for kind in kinds]
    return all_masks + all_steps[:4], all_steps[4:]
