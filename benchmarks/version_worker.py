"""A process that runs one version of jaxprune, for `python -m benchmarks against`.

    python -m benchmarks.version_worker FOLDER

FOLDER holds the package `jaxprune` of that version. The process reads a request from each line of
its standard input, `[name, arguments]` in JSON, and answers it with one line. It needs nothing of
the library but public names.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import math
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_TURN_SECONDS, _MOST_CALLS = 0.02, 100
# A turn starts with calls that are not timed, for this long, but not if they are longer than that.
_WARM_UP_SECONDS, _LONG_SECONDS = 0.005, 0.3


def serve(folder: str) -> None:
    """Answers requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this process
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    sys.path.insert(0, folder)
    jaxprune = importlib.import_module("jaxprune")
    path = os.path.dirname(os.path.dirname(os.path.realpath(str(jaxprune.__file__))))
    if path != os.path.realpath(folder):
        raise RuntimeError(f"imported jaxprune from {path}, not from {folder}")
    programs = Programs()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answers.write(json.dumps(getattr(programs, name)(**arguments)) + "\n")
        answers.flush()


class Programs:
    """The programs of a case, ready to be timed. The methods are the requests."""

    def __init__(self) -> None:
        self.calls: dict[str, Callable[[], Any]] = {}
        self.seconds: dict[str, float] = {}

    def forget(self) -> None:
        """Frees the programs and data of the last case."""
        self.calls.clear()
        self.seconds.clear()
        for cached in (_weights, _scores, _structured):
            cached.cache_clear()

    def prepare(self, name: str, maker: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Makes a program and runs it twice; returns how many entries its masks keep, and a hash.

        Args:
          name: the name of the program.
          maker: the function of `MAKERS` that makes it.
          facts: the arguments of that function.
        """
        call = MAKERS[maker](**facts)
        result = jax.block_until_ready(call())
        masks = [np.asarray(x) for x in jax.tree.leaves(result) if np.ndim(x)]
        n_kept = sum(int(np.count_nonzero(mask)) for mask in masks)
        value = 0
        for mask in masks:
            value = zlib.crc32(np.packbits(mask.astype(bool)).tobytes(), value)
        del result, masks
        self.calls[name] = call
        self.seconds[name] = _timed(call)[0]
        return {"n_kept": n_kept, "hash": value, "seconds": self.seconds[name]}

    def turn(self, name: str) -> list[tuple[float, float]]:
        """Times a program as often as fits into a turn: seconds, and CPU seconds, of each call."""
        call, seconds = self.calls[name], self.seconds[name]
        if seconds < _LONG_SECONDS:
            for _ in range(_calls_in(_WARM_UP_SECONDS, seconds)):
                _timed(call)
        return [_timed(call) for _ in range(_calls_in(_TURN_SECONDS, seconds))]


def _calls_in(available: float, seconds: float) -> int:
    """How many calls fit into the available seconds, at least one."""
    return min(max(int(available / seconds), 1), _MOST_CALLS)


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    cpu, start = time.process_time(), time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start, time.process_time() - cpu


# Programs


def _read(kind: str, n: int, keep: float) -> Callable[[], Any]:
    """One streaming read of the weights."""
    from benchmarks.public_methods import read

    del keep
    return functools.partial(read, _weights(kind, n))


def _partition(kind: str, n: int, keep: float) -> Callable[[], Any]:
    """A mask by NumPy, of scores that are given."""
    scores, place = np.asarray(_scores(kind, n)), n - round(keep * n)
    return lambda: scores >= np.partition(scores.reshape(-1), place)[place]


def _of_scores(kind: str, n: int, keep: float) -> Callable[[], Any]:
    """`topk_mask` of scores that are given."""
    import jaxprune

    n_keep = jnp.asarray(round(keep * n), jnp.int32)
    return functools.partial(jax.jit(jaxprune.topk_mask), _scores(kind, n), n_keep)


def _of_weights(kind: str, n: int, keep: float) -> Callable[[], Any]:
    """`topk_mask` of weights by magnitude; a version without `score=` gets the magnitudes."""
    import jaxprune

    topk_mask: Any = jaxprune.topk_mask
    if "score" in inspect.signature(topk_mask).parameters:
        mask = functools.partial(topk_mask, score=jnp.abs)
    else:
        mask = lambda w, n_keep: topk_mask(jnp.abs(w), n_keep)
    n_keep = jnp.asarray(round(keep * n), jnp.int32)
    return functools.partial(jax.jit(mask), _weights(kind, n), n_keep)


def _structure(n: int, method: str) -> Callable[[], Any]:
    """The masks of a structure or kind of pool."""
    return _structured(n)[method]


def _leaves(quick: bool, joined: bool) -> Callable[[], Any]:
    """The masks of the leaves of a transformer; with `joined`, of one leaf of the same size."""
    import jaxprune
    from benchmarks.public_methods import transformer_shapes

    shapes = transformer_shapes(quick)
    if joined:
        shapes = [(sum(map(math.prod, shapes)) // 1024, 1024)]
    rng = np.random.default_rng(0)
    params = {str(i): jnp.asarray(rng.standard_normal(s, np.float32)) for i, s in enumerate(shapes)}
    masks = jax.jit(lambda params: jaxprune.prune_params(params, 0.8, include=".*")[1])
    return functools.partial(masks, params)


def _compiling(layers: int, width: int, pruned: bool) -> Callable[[], Any]:
    """Traces and compiles an update by adamw; with `pruned`, of a chain with `prune`."""
    import optax

    import jaxprune

    tx: Any = optax.adamw(1e-3)
    if pruned:
        tx = optax.chain(tx, jaxprune.prune(jaxprune.cubic_schedule(0.9, 0, 10_000, 100)))
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    layer = {"kernel": leaf(width, width), "bias": leaf(width)}
    params = {str(i): layer for i in range(layers)}
    state = jax.eval_shape(tx.init, params)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return updates, state

    def compiling() -> None:
        jax.clear_caches()
        jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()

    return compiling


MAKERS = {
    "read": _read,
    "partition": _partition,
    "scores": _of_scores,
    "weights": _of_weights,
    "structure": _structure,
    "leaves": _leaves,
    "compile": _compiling,
}


# Operands, which the programs of a case share


@functools.cache
def _weights(kind: str, n: int) -> jax.Array:
    from benchmarks.topk_oracle import weights

    return jnp.asarray(weights(kind, n))


@functools.cache
def _scores(kind: str, n: int) -> jax.Array:
    return jnp.abs(_weights(kind, n))


@functools.cache
def _structured(n: int) -> dict[str, Callable[[], Any]]:
    from benchmarks.public_methods import structured_methods

    return structured_methods(n)


if __name__ == "__main__":
    serve(sys.argv[1])
