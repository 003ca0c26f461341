"""Which way of pruning loses least? Every algorithm on the demo's task, at 80, 90 and 95%.

The network, the images, the optimizer and the number of updates are the demo's
(`python -m jaxprune demo`); only the transformation differs. Sparsity is that of the kernels.
Nothing was tuned for any of them: schedules are the demo's, other arguments are at their defaults.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.table import Table

import jaxprune
from benchmarks.common import Case, Check, Row
from jaxprune.demo import config as demo
from jaxprune.demo.data import Data, load
from jaxprune.demo.network import init_params, logits_of

SPARSITIES = (0.8, 0.9, 0.95)
DENSE = "dense"


class Algorithm(NamedTuple):
    """A transformation for a sparsity and a run.

    Attributes:
      make: `(sparsity, config, optimizer) -> transformation`.
      forward: how params are seen by the loss: as they are, masked, or straight through.
      masked_start: whether params are masked before the first step.
    """

    make: Callable[[float, demo.Config, optax.GradientTransformation], Any]
    forward: str = "params"
    masked_start: bool = False


def _gradual(**options: Any) -> Callable[..., Any]:
    def make(sparsity: float, config: demo.Config, adamw: Any) -> Any:
        return jaxprune.prune(config.schedule(sparsity), inner=adamw, **options)

    return make


def _one_shot(sparsity: float, config: demo.Config, adamw: Any) -> Any:
    end = config.schedule(sparsity).end_step
    return jaxprune.prune(jaxprune.one_shot_schedule(sparsity, end), inner=adamw)


def _acdc(sparsity: float, config: demo.Config, adamw: Any) -> Any:
    steps = config.steps
    schedule = jaxprune.acdc_schedule(sparsity, steps // 5, 4 * steps // 5, every=steps // 10)
    return jaxprune.prune(schedule, inner=adamw, regrow="zero")


def _sparse_training(make: Callable[..., Any]) -> Callable[..., Any]:
    def of(sparsity: float, config: demo.Config, adamw: Any) -> Any:
        end, every = 3 * config.steps // 4, max(config.steps // 40, 1)
        return make(sparsity, end, inner=adamw, every=every)

    return of


def _static(sparsity: float, config: demo.Config, adamw: Any) -> Any:
    return jaxprune.static_sparse(sparsity, inner=adamw)


# The first kernel has one input channel, 3x3x1: its outputs are the only axis to block.
_BLOCKS = {".*": jaxprune.Block((1, 4))}

# The channels of the output layer are the classes.
_HEAD = "Dense_0/.*"

ALGORITHMS: dict[str, Algorithm] = {
    "magnitude, uniform": Algorithm(_gradual()),
    "magnitude, ERK": Algorithm(_gradual(distribution=jaxprune.erk)),
    "magnitude, global": Algorithm(_gradual(distribution=jaxprune.global_pool)),
    "magnitude, normalized global": Algorithm(_gradual(distribution=jaxprune.normalized_pool)),
    "magnitude, one shot": Algorithm(_one_shot),
    "saliency, ERK": Algorithm(_gradual(score=jaxprune.saliency, distribution=jaxprune.erk)),
    "movement, ERK": Algorithm(_gradual(score=jaxprune.movement, distribution=jaxprune.erk)),
    "random, ERK": Algorithm(_gradual(score=jaxprune.random_score, distribution=jaxprune.erk)),
    "magnitude, uniform, regrow": Algorithm(_gradual(regrow=True), "masked"),
    "straight-through, uniform": Algorithm(_gradual(regrow="train"), "straight"),
    "AC/DC, uniform": Algorithm(_acdc),
    "RigL, ERK": Algorithm(_sparse_training(jaxprune.rigl), masked_start=True),
    "SET, ERK": Algorithm(_sparse_training(jaxprune.set_), masked_start=True),
    "static random, ERK": Algorithm(_static, masked_start=True),
    "blocks 1x4, uniform": Algorithm(_gradual(structure=_BLOCKS)),
    "channels, uniform": Algorithm(_gradual(structure=jaxprune.Channel(), exclude=_HEAD)),
}


def accuracies(algorithm: Algorithm | None, sparsity: float, config: demo.Config) -> Row:
    """Trains every seed; test accuracy of each, and the nonzeros of the first."""
    adamw = optax.adamw(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    tx = adamw if algorithm is None else algorithm.make(sparsity, config, adamw)
    data = load(config.n_train)
    train = jax.jit(functools.partial(_train, algorithm, tx, config))
    found = []
    for seed in range(config.n_seeds):
        params, state, n_correct = train(jax.random.key(seed), data)
        found.append(int(n_correct) / len(data.test_labels))
    kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
    n_zero = sum(int(np.sum(np.asarray(p) == 0)) for p in kernels)
    if algorithm is not None and algorithm.forward == "params":
        jaxprune.check(params, state)
    return {"accuracies": found, "sparsity_reached": n_zero / sum(p.size for p in kernels)}


def _train(
    algorithm: Algorithm | None, tx: Any, config: demo.Config, key: jax.Array, data: Data
) -> tuple[Any, Any, jax.Array]:
    params = init_params(jax.random.fold_in(key, 0), config.widths)
    state = tx.init(params)
    if algorithm is not None and algorithm.masked_start:
        params = jaxprune.apply_masks(params, state)
    forward = "params" if algorithm is None else algorithm.forward

    def seen(params: Any, state: Any) -> Any:
        if forward == "straight":
            return jaxprune.straight_through(params, jaxprune.get_masks(state))
        return jaxprune.apply_masks(params, state) if forward == "masked" else params

    def loss(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = logits_of(config.widths, seen(params, state), images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
        params, state = carry
        draw = jax.random.fold_in(jax.random.fold_in(key, 1), t)
        batch = jax.random.randint(draw, (config.batch_size,), 0, config.n_train)
        images, labels = data.train_images[batch], data.train_labels[batch]
        grads = jax.grad(loss)(params, state, images, labels)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = lax.scan(step, (params, state), jnp.arange(config.steps))
    params = seen(params, state)
    answers = logits_of(config.widths, params, data.test_images).argmax(-1)
    return params, state, (answers == data.test_labels).sum()


def cases(quick: bool) -> list[Case]:
    """Every algorithm at every sparsity, and the dense network."""
    config = demo.quick() if quick else demo.Config()
    found = [_case(DENSE, None, 0.0, config)]
    for name, algorithm in ALGORITHMS.items():
        for sparsity in SPARSITIES[-1:] if quick else SPARSITIES:
            found.append(_case(name, algorithm, sparsity, config))
    return found


def _case(name: str, algorithm: Algorithm | None, sparsity: float, config: demo.Config) -> Case:
    def rows() -> list[Row]:
        row = accuracies(algorithm, sparsity, config)
        scores = row["accuracies"]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        facts = {"case": "algorithm", "method": name, "sparsity": sparsity, "steps": config.steps}
        return [facts | row | {"mean": statistics.mean(scores), "spread": spread}]

    return Case(f"algorithm {name} {sparsity:.0%}", rows)


def checks(rows: Sequence[Row]) -> list[Check]:
    """That each reached the sparsity it was asked for, up to the size of its units."""
    errors = [
        abs(r["sparsity_reached"] - r["sparsity"])
        for r in rows
        if r["method"] != DENSE and "channels" not in r["method"] and "blocks" not in r["method"]
    ]
    return [Check("sparsity reached, largest error", 0.002, max(errors))] if errors else []


def tables(rows: Sequence[Row]) -> list[Table]:
    """Mean accuracy and its spread over seeds, a row per algorithm."""
    table = Table(title="Test accuracy, mean (standard deviation over seeds)")
    table.add_column("algorithm")
    levels = sorted({r["sparsity"] for r in rows if r["method"] != DENSE})
    for sparsity in levels:
        table.add_column(f"{sparsity:.0%}", justify="right")
    cells = {(r["method"], r["sparsity"]): f"{r['mean']:.2%} ({r['spread']:.2%})" for r in rows}
    for name in dict.fromkeys(r["method"] for r in rows):
        found = [cells.get((name, 0.0 if name == DENSE else s), "") for s in levels]
        table.add_row(name, *found)
    return [table] if rows else []
