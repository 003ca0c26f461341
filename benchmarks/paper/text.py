"""Byte-level language models of the source code of CPython's standard library.

Every Python installation has these megabytes of text. The files differ a little between versions,
so the results record the version and a digest. Whole files are held out, chosen by a hash of their
names.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.paper.paired import table
from benchmarks.paper.recurrent import LanguageModel
from benchmarks.paper.store import by_sparsity
from benchmarks.paper.study import Study, Task, networks_of, networks_with_erk

__all__ = [
    "long_study",
    "networks",
    "networks_with_erk",
    "one_layer_study",
    "order",
    "read_library",
    "study",
    "table",
]

# The study with one layer has the same order, and `networks_with_erk`.
networks, order = networks_of, by_sparsity((0.9, 0.8, 0.95, 0.75, 0.85, 0.5, 0.975))

# Newline, printable ASCII, and one last symbol for all other bytes.
SYMBOLS = 97
_OTHER = SYMBOLS - 1
_LEAVE_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_HELD_OUT_EVERY = 10


class Text(NamedTuple):
    """Symbols: int8[n] to train on, and int8[streams, length + 1] of contiguous held-out text."""

    train: jax.Array
    held_out: jax.Array


def symbols_of(text: bytes) -> np.ndarray:
    """Converts bytes to int8 symbols below `SYMBOLS`.

    Example:
      >>> symbols_of(b" A\\n\\xff").tolist()
      [1, 34, 0, 96]
    """
    table = np.full(256, _OTHER, np.int8)
    table[ord("\n")] = 0
    table[32:127] = np.arange(1, 96)
    return table[np.frombuffer(text, np.uint8)]


def library_files(folder: Path | None = None) -> list[Path]:
    """The Python files of the standard library except its tests, sorted by path."""
    root = folder or Path(sysconfig.get_path("stdlib"))
    files = (p for p in root.rglob("*.py") if not _LEAVE_OUT & set(p.relative_to(root).parts))
    return sorted(files, key=lambda p: p.relative_to(root).as_posix())


def is_held_out(name: str) -> bool:
    """Whether a file is held out: about one in ten, by its name alone."""
    return hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT_EVERY == 0


def read_library(
    streams: int, length: int, folder: Path | None = None
) -> tuple[Text, dict[str, Any]]:
    """Reads the text, and describes it for the results file.

    Args:
      streams: number of held-out streams, evenly spaced over the held-out text.
      length: symbols per stream.
      folder: a folder of Python files to read instead of the standard library.

    Raises:
      ValueError: the folder has too little text.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    files = library_files(root)
    split: dict[bool, list[bytes]] = {False: [], True: []}
    for path in files:
        split[is_held_out(path.relative_to(root).as_posix())].append(path.read_bytes())
    train, test = (symbols_of(b"\n".join(split[out])) for out in (False, True))
    if len(test) <= length or len(train) <= length:
        raise ValueError(
            f"{root}: too little Python source: {len(train):,} bytes to train on and "
            f"{len(test):,} held out, but each must be more than {length:,}. Pass another `folder`."
        )
    starts = np.linspace(0, len(test) - length - 1, streams).astype(int)
    held_out = np.stack([test[i : i + length + 1] for i in starts])
    facts = {
        "text": "Python sources of the standard library",
        "python": platform.python_version(),
        "files": len(files),
        "train_bytes": len(train),
        "held_out_bytes": len(test),
        "measured_bytes": held_out[:, 1:].size,
        "digest": _digest([train, test]),
    }
    return Text(jnp.asarray(train), jnp.asarray(held_out)), facts


def _digest(arrays: Iterable[np.ndarray]) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]


def make_task(batch: int, time: int, streams: int, length: int, folder: Path | None = None) -> Task:
    """Trains on random windows of the text; measures bits per byte of the held-out streams."""
    text, facts = read_library(streams, length, folder)

    def draw(data: Text, key: jax.Array) -> jax.Array:
        starts = jax.random.randint(key, (batch, 1), 0, data.train.size - time - 1)
        return data.train[starts + jnp.arange(time + 1)].astype(jnp.int32)

    def loss(
        module: nn.Module, variables: Any, windows: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        outputs: Any = module.apply(variables, windows[:, :-1], train=True, rngs={"dropout": key})
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs[0], windows[:, 1:])
        return losses.mean(), {}

    def measure(module: nn.Module, variables: Any, data: Text) -> dict[str, float]:
        nats = float(jax.jit(_nats, static_argnums=0)(module, variables, data.held_out))
        return {"bits_per_byte": nats / float(np.log(2)), "perplexity": float(np.exp(nats))}

    inputs = (jax.ShapeDtypeStruct((1, 2), jnp.int32),)
    return Task(text, inputs, draw, loss, measure, facts)


def _nats(module: nn.Module, variables: Any, streams: jax.Array) -> jax.Array:
    tokens = streams.astype(jnp.int32)
    outputs: Any = module.apply(variables, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(outputs[0], tokens[:, 1:]).mean()


def _model(width: int, *, n_layers: int = 2) -> nn.Module:
    """LSTM layers, and an embedding of three eighths of their width."""
    return LanguageModel(SYMBOLS, width, n_layers, embed=max(3 * width // 8, 1))


_one_layer = functools.partial(_model, n_layers=1)


def study(size: str) -> Study:
    """The study in a size: "quick" (a smoke test), "cpu" (half an hour) or "gpu" (longer).

    The learning rate was chosen on dense networks only. After 500 steps, widths 24 and 128 reach
    3.83 and 3.08 bits per byte with 5e-3, 3.48 and 2.66 with 1e-2, 3.25 and 2.57 with 2e-2.
    """
    title = "Byte-level LSTM language model of the standard library, bits per byte"
    common: dict[str, Any] = {
        "name": "lstm",
        "title": title,
        "module": _model,
        "shallow": _one_layer,
        "measure": "bits_per_byte",
        "erk": True,
    }
    if size == "quick":
        return Study(
            **common,
            task=lambda: make_task(8, 32, 8, 128),
            width=32,
            lower_is_better=True,
            steps=60,
            chunk=20,
            sparsities=(0.9,),
            seeds=2,
        )
    if size == "cpu":
        return Study(
            **common,
            task=lambda: make_task(32, 64, 128, 1024),
            width=128,
            lower_is_better=True,
            steps=1000,
            chunk=100,
            learning_rate=2e-2,
        )
    return Study(
        **common,
        task=lambda: make_task(128, 128, 256, 2048),
        width=1500,
        lower_is_better=True,
        steps=10_000,
        chunk=200,
        learning_rate=1e-3,
    )


def one_layer_study(size: str) -> Study:
    """A network of one layer, with as many weights as that of two: "quick" or "cpu"."""
    return dataclasses.replace(
        study(size),
        name="lstm-one-layer",
        title="Byte-level LSTM language model with one layer, bits per byte",
        module=_one_layer,
        shallow=None,
        width={"quick": 48, "cpu": 197}[size],
        sparsities=(0.9,) if size == "quick" else (0.75, 0.9, 0.95),
    )


def long_study(size: str) -> Study:
    """A million weights, and longer training: "quick" (a smoke test) or "cpu" (hours).

    Learning rates and batch were chosen on dense networks. After 1.6 million bytes, width 272
    reaches 2.06 bits per byte with 5e-3, 2.02 with 1e-2, and 2.19 with 1e-2 and twice the batch.
    Width 79 reaches 2.43 with 1e-2, 2.29 with 2e-2 and 2.71 with 4e-2.
    """
    short = study(size)
    name, title = "lstm-long", "LSTM with a million weights, longer training, bits per byte"
    if size == "quick":
        return dataclasses.replace(short, name=name, title=title, track=True)
    return dataclasses.replace(
        short,
        name=name,
        title=title,
        task=lambda: make_task(16, 64, 128, 1024),
        width=272,
        steps=6400,
        chunk=640,
        learning_rate=1e-2,
        small_learning_rate=2e-2,
        track=True,
    )
