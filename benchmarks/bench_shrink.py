"""How much faster is a network after `shrink` removes its pruned channels?

Networks in Flax Linen with random weights lose 30, 50 or 70% of their coupled channels by
magnitude, and `shrink` removes them; it also checks that the outputs are the same. Random weights
are enough here, because speed does not depend on their values. The case `torch-pruning` compares
sizes and outputs with those of that library on small networks, and the case `scores` compares the
accuracy that a trained network keeps with different scores of channels.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxprune
from benchmarks import shrink_scores, shrink_torch
from benchmarks.common import Case, Check, Row, cores, interleaved
from benchmarks.shrink_pairs import pairs

SPARSITIES = (0.3, 0.5, 0.7)
BATCHES = (1, 8)


class Cnn(nn.Module):
    """Two residual blocks with batch norm, then a dense layer on the flattened feature maps."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(_norm(nn.Conv(self.width, (3, 3))(x)))
        for _ in range(2):
            y = nn.relu(_norm(nn.Conv(self.width, (3, 3))(x)))
            x = nn.relu(x + _norm(nn.Conv(self.width, (3, 3))(y)))
        x = nn.max_pool(x, (4, 4), (4, 4))
        return nn.Dense(10)(x.reshape(len(x), -1))


class Mobile(nn.Module):
    """Three inverted residual blocks, as in MobileNetV2."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu6(_norm(nn.Conv(self.width, (3, 3), (2, 2))(x)))
        wide = 6 * self.width
        for _ in range(3):
            y = nn.relu6(_norm(nn.Conv(wide, (1, 1))(x)))
            y = nn.relu6(_norm(nn.Conv(wide, (3, 3), feature_group_count=wide)(y)))
            x = x + _norm(nn.Conv(self.width, (1, 1))(y))
        return nn.Dense(10)(x.mean((1, 2)))


class Lstm(nn.Module):
    """A language model with two LSTM layers."""

    width: int
    n_words: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(self.n_words, self.width)(tokens)
        for _ in range(2):
            x = nn.RNN(nn.OptimizedLSTMCell(self.width))(x)
        return nn.Dense(self.n_words)(x)


class Transformer(nn.Module):
    """Two blocks. Heads and feed-forward layers shrink, the residual stream does not."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(self.width // 32)(nn.LayerNorm()(x))
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(10)(nn.LayerNorm()(x))


def _norm(x: jax.Array) -> jax.Array:
    return nn.BatchNorm(use_running_average=True)(x)


class Network(NamedTuple):
    """A model, and a function from the batch size to its inputs."""

    model: nn.Module
    inputs: Callable[[int], jax.Array]


def networks(quick: bool) -> dict[str, Network]:
    """The networks to shrink, by name."""
    d, side, steps = (8, 8, 3) if quick else (64, 32, 20)
    n_words, width = (20, 64) if quick else (10_000, 512)

    def normal(*shape: int) -> Callable[[int], jax.Array]:
        return lambda batch: jax.random.normal(jax.random.key(1), (batch, *shape))

    def words(batch: int) -> jax.Array:
        return jax.random.randint(jax.random.key(1), (batch, steps), 0, n_words)

    return {
        f"cnn {d}": Network(Cnn(d), normal(side, side, 3)),
        f"mobile {d // 2}": Network(Mobile(d // 2), normal(2 * side, 2 * side, 3)),
        f"lstm 2x{width}": Network(Lstm(width, n_words), words),
        f"transformer {width}": Network(Transformer(width), normal(steps, width)),
    }


def compare(
    name: str, network: Network, batches: Sequence[int], sparsities: Sequence[float]
) -> Any:
    """Times one network, dense and shrunk from each sparsity, at each batch size."""
    model, x = network.model, network.inputs(2)
    variables = _random(jax.eval_shape(model.init, jax.random.key(0), x))
    groups = jaxprune.channel_groups(model.apply, variables, x)
    prune = jax.jit(
        functools.partial(jaxprune.prune_params, structure=groups, include=tuple(groups)),
        static_argnums=1,
    )
    models = {"dense": (model.apply, variables, 0.0, _size(variables))}
    for sparsity in sparsities:
        params, _ = jax.block_until_ready(prune(variables["params"], sparsity))
        start = time.perf_counter()
        small, report = jaxprune.shrink(model.apply, {**variables, "params": params}, x)
        seconds = time.perf_counter() - start
        apply_fn = functools.partial(jaxprune.shrunk_apply, model.apply)
        models[f"{sparsity:.0%} cut"] = apply_fn, small, seconds, report.size
    rows = []
    for batch in batches:
        rows += _timed({"case": "shrink", "task": name, "batch": batch}, models, network)
    return rows


def _timed(about: Row, models: dict[str, Any], network: Network) -> list[Row]:
    x = network.inputs(about["batch"])
    calls = {
        method: functools.partial(jax.jit(apply_fn), variables, x)
        for method, (apply_fn, variables, _, _) in models.items()
    }
    rows = []
    for count in (1, 10**6):
        with cores(count) as n_cores:
            times = interleaved(calls)
        for method, timing in times.items():
            _, _, seconds, size = models[method]
            row = about | {"cores": n_cores, "method": method, "dtype": "float32"}
            row |= timing._asdict() | {"numbers": size, "shrink_s": seconds}
            rows.append(row | {"x_dense": times["dense"].median_ms / timing.median_ms})
        if n_cores < count and n_cores == 1:
            break
    return rows


def _random(shapes: Any) -> Any:
    """Normal params and statistics of 1; initializers are slow, orthogonal ones above all."""
    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> jax.Array:
        is_param = path[0].key == "params"
        x = 0.05 * rng.standard_normal(leaf.shape) if is_param else np.ones(leaf.shape)
        return jnp.asarray(x, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def _size(tree: Any) -> int:
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))


def cases(quick: bool) -> list[Case]:
    """One case per network, one for the comparison with Torch-Pruning, and one for scores."""
    batches, sparsities = ((1,), (0.5,)) if quick else (BATCHES, SPARSITIES)
    names = list(pairs())[: 1 if quick else None]
    sizes = shrink_scores.Sizes(1, 20, 5, (0.5,)) if quick else shrink_scores.Sizes()
    return [
        *(
            Case(f"shrink {name}", functools.partial(compare, name, network, batches, sparsities))
            for name, network in networks(quick).items()
        ),
        Case("torch-pruning", functools.partial(shrink_torch.compare, names)),
        Case("scores", functools.partial(shrink_scores.compare, sizes)),
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Size, milliseconds and ratio to dense before and after; Torch-Pruning's sizes; scores."""
    table = Table(title="Forward pass after channels are removed")
    columns = ("network", "batch", "cores", "model", "numbers", "ms", "x dense", "shrink s")
    for column in columns:
        table.add_column(column, justify="left" if column in ("network", "model") else "right")
    for row in (r for r in rows if r["case"] == "shrink"):
        cells = (row["task"], f"{row['batch']}", f"{row['cores']}", row["method"])
        cells += (f"{row['numbers']:,}", f"{row['median_ms']:.3f}", f"{row['x_dense']:.2f}")
        table.add_row(*cells, f"{row['shrink_s']:.1f}")
    return [table, shrink_torch.table(rows), shrink_scores.table(rows)]


def checks(rows: Sequence[Row]) -> list[Check]:
    """Half of the channels are a quarter of the work of a convolution, so 2 is a safe target."""
    shrunk = [r for r in rows if r["task"].startswith("cnn") and r["method"] == "50% cut"]
    speed = [
        Check(f"{r['task']}, 50% cut, batch {r['batch']}, 1 core: x dense", 2, r["x_dense"], True)
        for r in shrunk
        if r["cores"] == 1
    ]
    return speed + shrink_torch.checks(rows)
