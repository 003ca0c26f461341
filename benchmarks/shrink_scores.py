"""Which score of channels loses the least accuracy?

A network of three dense layers learns half of the handwritten digits in scikit-learn. Then the same
fraction of the neurons of each hidden layer is removed in one step, by scores from weights
(`magnitude`), from gradients (`saliency`), from activations (`activation_score`) and by random
scores. A row has three means over five seeds, which choose the initial params, the batches and the
random scores: how much the inputs of the second hidden layer's activation change on the training
images, and the accuracy on the other half of the digits, at once and after training on. In the task
`different scales` each pixel is multiplied with a number of its own between 0.03 and 30, like
measurements in different scales.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

import jaxprune
from benchmarks import digits
from benchmarks.common import Row

WIDTHS = (128, 64)
BATCH = 50
LEARNING_RATE = 3e-3
SCORES = ("random", "magnitude", "saliency", "activations")
TASKS = ("digits", "different scales")


class Sizes(NamedTuple):
    """How much is trained and tried."""

    seeds: int = 5
    steps: int = 1000
    more_steps: int = 300
    sparsities: tuple[float, ...] = (0.3, 0.5, 0.7)


class Measured(NamedTuple):
    """Of one pruned network: the change of the second layer, and two test accuracies."""

    change: float
    accuracy: float
    accuracy_trained_on: float


class Mlp(nn.Module):
    """Maps float[n, 64] images to float[n, 10] logits."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of a batch of images."""
        for width in WIDTHS:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def _logits(params: Any, images: jax.Array) -> jax.Array:
    return cast(jax.Array, Mlp().apply({"params": params}, images))


def _loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits = _logits(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def _accuracy(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(_logits(params, images), -1) == labels)


@functools.partial(jax.jit, static_argnames="steps")
def _trained(params: Any, masks: Any, data: digits.Data, key: jax.Array, steps: int) -> Any:
    """The params after some steps of Adam; dropped weights stay zero."""
    tx = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    def step(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        chosen = jax.random.randint(key, (BATCH,), 0, len(data.train_labels))
        grads = jax.grad(_loss)(params, data.train_images[chosen], data.train_labels[chosen])
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, masks), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))
    return params


@jax.jit
def _root_of_squared_grads(params: Any, data: digits.Data) -> Any:
    """The root of the sum over images of the squared gradient of each weight."""

    def add(sums: Any, image_and_label: Any) -> Any:
        image, label = image_and_label
        grads = jax.grad(_loss)(params, image[None], label[None])
        return jax.tree.map(lambda s, g: s + g * g, sums, grads), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    sums, _ = jax.lax.scan(add, zeros, (data.train_images, data.train_labels))
    return jax.tree.map(jnp.sqrt, sums)


def _score(name: str, groups: Any, params: Any, data: digits.Data, seed: int) -> dict[str, Any]:
    """The arguments of `prune_params` that choose a score."""
    if name == "saliency":
        grads = _root_of_squared_grads(params, data)
        return {"score": jaxprune.saliency, "grads": grads}
    if name == "activations":
        inputs = jaxprune.layer_inputs(
            Mlp().apply, {"params": params}, data.train_images, diagonal=True
        )
        return {"score": jaxprune.activation_score(groups, params, inputs)}
    if name == "random":
        return {"score": jaxprune.random_score, "seed": seed}
    return {"score": jaxprune.magnitude}


def _data(task: str) -> digits.Data:
    """The digits as vectors of 64 pixels."""
    data = digits.load(900)
    units = np.ones(64)
    if task == "different scales":
        units = 10 ** np.random.default_rng(0).uniform(-1.5, 1.5, 64)
    images = (data.train_images, data.test_images)
    train, test = (jnp.asarray(x.reshape(-1, 64) * units, jnp.float32) for x in images)
    return data._replace(train_images=train, test_images=test)


@jax.jit
def _hidden(params: Any, images: jax.Array) -> jax.Array:
    """The outputs of the second layer, before its activation."""
    first, second = params["Dense_0"], params["Dense_1"]
    hidden = nn.relu(images @ first["kernel"] + first["bias"])
    return hidden @ second["kernel"] + second["bias"]


def _change(params: Any, sparse: Any, images: jax.Array) -> float:
    """The squared change of what the second layer gets from the first, relative to its square."""
    second = params["Dense_1"]
    before = _hidden(params, images) - second["bias"]
    after = _hidden({**sparse, "Dense_1": second}, images) - second["bias"]
    return float(jnp.sum((after - before) ** 2) / jnp.sum(before**2))


def compare(sizes: Sizes) -> list[Row]:
    """A row for each task, score and sparsity, and one of each task for the dense network."""
    return [row for task in TASKS for row in _compare(task, sizes)]


def _compare(task: str, sizes: Sizes) -> list[Row]:
    data = _data(task)
    measured: dict[tuple[str, float], list[Measured]] = {}
    for seed in range(sizes.seeds):
        key = jax.random.key(seed)
        params = Mlp().init(key, data.train_images[:1])["params"]
        everything = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
        params = _trained(params, everything, data, key, sizes.steps)
        groups = jaxprune.channel_groups(Mlp().apply, {"params": params}, data.train_images[:2])
        tries = {("dense", 0.0): (params, everything)}
        for name in SCORES:
            score = _score(name, groups, params, data, seed)
            for sparsity in sizes.sparsities:
                tries[name, sparsity] = jaxprune.prune_params(
                    params, sparsity, structure=groups, include=tuple(groups), **score
                )
        for case, (sparse, masks) in tries.items():
            tuned = _trained(sparse, masks, data, jax.random.fold_in(key, 1), sizes.more_steps)
            measured.setdefault(case, []).append(
                Measured(
                    _change(params, sparse, data.train_images),
                    *(
                        float(_accuracy(p, data.test_images, data.test_labels))
                        for p in (sparse, tuned)
                    ),
                )
            )
    return [_row(task, case, by_seed) for case, by_seed in measured.items()]


def _row(task: str, case: tuple[str, float], by_seed: list[Measured]) -> Row:
    row: Row = {"case": "scores", "task": task, "method": case[0], "sparsity": case[1]}
    for name, values in zip(Measured._fields, zip(*by_seed, strict=True), strict=True):
        row |= {name: statistics.mean(values), f"{name}_by_seed": list(values)}
    return row


def table(rows: Sequence[Row]) -> Table:
    """What each score loses."""
    table = Table(title="Neurons removed in one step: change of the second layer, test accuracy")
    for column in ("task", "score", "pruned", "change", "at once", "trained on"):
        table.add_column(column, justify="left" if column in ("task", "score") else "right")
    for row in (r for r in rows if r["case"] == "scores"):
        cells = (f"{row[name]:.1%}" for name in Measured._fields)
        table.add_row(row["task"], row["method"], f"{row['sparsity']:.0%}", *cells)
    return table
