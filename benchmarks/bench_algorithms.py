"""Which pruning algorithm loses the least accuracy? Each at 80, 90 and 95% sparsity.

Network, images, optimizer and number of updates are the same for all (digits.py); only the pruning
transformation differs. Sparsity is the fraction of zeros in the kernels. No algorithm was tuned:
all use the same schedule where they can, and default arguments otherwise.
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
from benchmarks import digits
from benchmarks.common import Case, Check, Row
from benchmarks.digits import Data, init_params, load, logits_of

SPARSITIES = (0.8, 0.9, 0.95)
DENSE = "dense"


class Algorithm(NamedTuple):
    """A pruning algorithm.

    Attributes:
      make: `(sparsity, config, optimizer) -> optax transformation`.
      forward: what the loss is computed from: "params" unchanged, "masked" params, or masked params
        with gradients for all of them ("straight", the straight-through estimator).
      masked_start: whether the masks are applied before the first step.
    """

    make: Callable[[float, digits.Config, optax.GradientTransformation], Any]
    forward: str = "params"
    masked_start: bool = False


def _gradual(**options: Any) -> Callable[..., Any]:
    def make(sparsity: float, config: digits.Config, adamw: Any) -> Any:
        return jaxprune.prune(config.schedule(sparsity), inner=adamw, **options)

    return make


def _one_shot(sparsity: float, config: digits.Config, adamw: Any) -> Any:
    end = config.schedule(sparsity).end_step
    return jaxprune.prune(jaxprune.one_shot_schedule(sparsity, end), inner=adamw)


def _acdc(sparsity: float, config: digits.Config, adamw: Any) -> Any:
    steps = config.steps
    schedule = jaxprune.acdc_schedule(sparsity, steps // 5, 4 * steps // 5, every=steps // 10)
    return jaxprune.prune(schedule, inner=adamw, regrow="zero")


def _sparse_training(make: Callable[..., Any]) -> Callable[..., Any]:
    def make_for(sparsity: float, config: digits.Config, adamw: Any) -> Any:
        end, every = 3 * config.steps // 4, max(config.steps // 40, 1)
        return make(sparsity, end, inner=adamw, every=every)

    return make_for


def _static(sparsity: float, config: digits.Config, adamw: Any) -> Any:
    return jaxprune.static_sparse(sparsity, inner=adamw)


# The first kernel is 3x3 with one input channel, so blocks can only run along its outputs.
_BLOCKS = {".*": jaxprune.Block((1, 4))}

# The output layer is not pruned by channels: its channels are the classes.
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


def accuracies(algorithm: Algorithm | None, sparsity: float, config: digits.Config) -> Row:
    """Trains with every seed: test accuracies, and the sparsity that the last run reached."""
    adamw = optax.adamw(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    tx = adamw if algorithm is None else algorithm.make(sparsity, config, adamw)
    data = load(config.n_train)
    train = jax.jit(functools.partial(_train, algorithm, tx, config))
    accuracy_of_seed = []
    for seed in range(config.n_seeds):
        params, state, n_correct = train(jax.random.key(seed), data)
        accuracy_of_seed.append(int(n_correct) / len(data.test_labels))
    kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
    n_zero = sum(int(np.sum(np.asarray(p) == 0)) for p in kernels)
    if algorithm is not None and algorithm.forward == "params":
        jaxprune.check(params, state)
    return {
        "accuracies": accuracy_of_seed,
        "sparsity_reached": n_zero / sum(p.size for p in kernels),
    }


def _train(
    algorithm: Algorithm | None, tx: Any, config: digits.Config, key: jax.Array, data: Data
) -> tuple[Any, Any, jax.Array]:
    params = init_params(jax.random.fold_in(key, 0), config.widths)
    state = tx.init(params)
    if algorithm is not None and algorithm.masked_start:
        params = jaxprune.apply_masks(params, state)
    forward = "params" if algorithm is None else algorithm.forward

    def params_of_loss(params: Any, state: Any) -> Any:
        if forward == "straight":
            return jaxprune.straight_through(params, jaxprune.get_masks(state))
        return jaxprune.apply_masks(params, state) if forward == "masked" else params

    def loss(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = logits_of(config.widths, params_of_loss(params, state), images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
        params, state = carry
        batch_key = jax.random.fold_in(jax.random.fold_in(key, 1), t)
        batch = jax.random.randint(batch_key, (config.batch_size,), 0, config.n_train)
        images, labels = data.train_images[batch], data.train_labels[batch]
        grads = jax.grad(loss)(params, state, images, labels)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = lax.scan(step, (params, state), jnp.arange(config.steps))
    params = params_of_loss(params, state)
    predictions = logits_of(config.widths, params, data.test_images).argmax(-1)
    return params, state, (predictions == data.test_labels).sum()


def cases(quick: bool) -> list[Case]:
    """The dense network, then every algorithm at every sparsity."""
    config = digits.quick() if quick else digits.Config()
    all_cases = [_case(DENSE, None, 0.0, config)]
    for name, algorithm in ALGORITHMS.items():
        for sparsity in SPARSITIES[-1:] if quick else SPARSITIES:
            all_cases.append(_case(name, algorithm, sparsity, config))
    return all_cases


def _case(name: str, algorithm: Algorithm | None, sparsity: float, config: digits.Config) -> Case:
    def rows() -> list[Row]:
        row = accuracies(algorithm, sparsity, config)
        scores = row["accuracies"]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        about = {"case": "algorithm", "method": name, "sparsity": sparsity, "steps": config.steps}
        return [about | row | {"mean": statistics.mean(scores), "spread": spread}]

    return Case(f"algorithm {name} {sparsity:.0%}", rows)


def checks(rows: Sequence[Row]) -> list[Check]:
    """Each algorithm reached its target; blocks and channels are too coarse for this limit."""
    errors = [
        abs(r["sparsity_reached"] - r["sparsity"])
        for r in rows
        if r["method"] != DENSE and "channels" not in r["method"] and "blocks" not in r["method"]
    ]
    return (
        [Check("largest difference from the target sparsity", 0.002, max(errors))] if errors else []
    )


def tables(rows: Sequence[Row]) -> list[Table]:
    """Mean and standard deviation of the accuracy over seeds, one row per algorithm."""
    table = Table(title="Test accuracy, mean (standard deviation over seeds)")
    table.add_column("algorithm")
    levels = sorted({r["sparsity"] for r in rows if r["method"] != DENSE})
    for sparsity in levels:
        table.add_column(f"{sparsity:.0%}", justify="right")
    cells = {(r["method"], r["sparsity"]): f"{r['mean']:.2%} ({r['spread']:.2%})" for r in rows}
    for name in dict.fromkeys(r["method"] for r in rows):
        row_cells = [cells.get((name, 0.0 if name == DENSE else s), "") for s in levels]
        table.add_row(name, *row_cells)
    return [table] if rows else []
