"""Does `shrink` make networks as small as Torch-Pruning does, and with the same outputs?

jaxprune prunes half of the channels of a small network to zero. Both libraries get these params
and remove channels: `shrink` those that can't change the outputs, Torch-Pruning half of each
layer. It removes channels with the smallest weights, so those that are zero go first. `shrink`
counts multiply-adds, and PyTorch's `FlopCounterMode` does for Torch-Pruning; both give the same
number for each dense network (except for the LSTM, which PyTorch does not count).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxprune
from benchmarks.common import Check, Row, version_of
from benchmarks.shrink_layers import JaxNet, torch_net
from benchmarks.shrink_pairs import HEADS, N_WORDS, Pair, pairs

SPARSITY = 0.5
EQUAL = 1e-5  # differences of outputs up to here are rounding: sums have fewer terms
_PACKAGES = ("torch", "torch-pruning")


def why_not() -> str:
    """The reason why Torch-Pruning can't be compared; empty if it can."""
    if missing := [p for p in _PACKAGES if version_of(p) is None]:
        names = " and ".join(missing)
        return (
            f"{names} can't be imported, so the rows of Torch-Pruning are missing: "
            "pip install 'jaxprune[bench]'"
        )
    return ""


class _Small(NamedTuple):
    """What a library made of a network."""

    numbers: int
    multiply_adds: int
    difference: float
    seconds: float


def compare(names: Sequence[str]) -> list[Row]:
    """The rows of some networks, or a note if Torch-Pruning is not installed."""
    if reason := why_not():
        return [{"case": "note", "note": reason}]
    return [row for name in names for row in compare_one(name, pairs()[name])]


def compare_one(name: str, pair: Pair) -> list[Row]:
    """A row of each library, and two more if `allow` lets jaxprune prune more channels."""
    import torch

    torch.manual_seed(0)
    net = torch_net(pair.forward, pair.layers)
    x = _inputs(pair)
    variables = _variables(net)
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    outputs = _apply_fn(pair)(variables, x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    rows = []
    for allow in dict.fromkeys(((), pair.allow)):
        pruned, small, before = _shrink(pair, variables, x, allow)
        about = {"allow": ", ".join(allow)}
        rows.append(about | {"method": "jaxprune"} | small._asdict())
        rows.append(about | {"method": "Torch-Pruning"} | _torch_row(pair, pruned, x, before))
    about = {"case": "torch-pruning", "task": name, "sparsity": SPARSITY}
    about |= {f"{key}_before": n for key, n in before.items()}
    versions = {"versions": {package: version_of(package) for package in _PACKAGES}}
    return [about | row | versions for row in rows]


def table(rows: Sequence[Row]) -> Table:
    """What each library leaves of each network, and by how much its outputs differ."""
    table = Table(title="Small networks, half of the channels pruned")
    for column in ("network", "library", "numbers", "multiply-adds", "difference", "seconds"):
        table.add_column(column, justify="left" if column in ("network", "library") else "right")
    for row in (r for r in rows if r["case"] == "torch-pruning"):
        name = row["task"] + f", allow={row['allow']}" * bool(row["allow"])
        if "error" in row:
            table.add_row(name, row["method"], row["error"].partition(":")[0])
        else:
            left = (row[key] / row[f"{key}_before"] for key in ("numbers", "multiply_adds"))
            cells = (*(f"{x:.1%}" for x in left), f"{row['difference']:.1e}")
            table.add_row(name, row["method"], *cells, f"{row['seconds']:.2f}")
    return table


def checks(rows: Sequence[Row]) -> list[Check]:
    """Outputs stay equal, and Torch-Pruning is never smaller where its outputs stay equal, too."""
    rows = [r for r in rows if r["case"] == "torch-pruning" and not r["allow"]]
    rows = [r for r in rows if "error" not in r]
    if not rows:
        return []
    ours = {r["task"]: r for r in rows if r["method"] == "jaxprune"}
    equal = [r for r in rows if r["method"] == "Torch-Pruning" and r["difference"] <= EQUAL]
    largest = max(r["difference"] for r in ours.values())
    size = max(ours[r["task"]]["numbers"] / r["numbers"] for r in equal)
    return [
        Check("largest difference of outputs after shrink", EQUAL, largest),
        Check("numbers left, jaxprune / Torch-Pruning where its outputs are equal", 1, size),
    ]


def _inputs(pair: Pair) -> np.ndarray:
    rng = np.random.default_rng(0)
    if len(pair.inputs) == 2:
        return rng.integers(0, N_WORDS, pair.inputs)
    return rng.standard_normal(pair.inputs, np.float32)


def _variables(net: Any) -> dict[str, Any]:
    """The state of a PyTorch module as Flax has it: params and statistics, by layer."""
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, value in net.state_dict().items():
        layer, _, leaf = path.rpartition(".")
        if leaf != "num_batches_tracked":
            kind = "batch_stats" if leaf.startswith("running_") else "params"
            variables[kind].setdefault(layer, {})[leaf] = jnp.asarray(value.numpy())
    return variables


def _apply_fn(pair: Pair) -> Callable[[Any, Any], jax.Array]:
    def apply_fn(variables: Any, x: Any) -> jax.Array:
        params, statistics = variables["params"], variables["batch_stats"]
        layers = {name: params[name] | statistics.get(name, {}) for name in pair.layers}
        return pair.forward(JaxNet(pair.layers, layers), x)

    return apply_fn


def _shrink(
    pair: Pair, variables: Any, x: np.ndarray, allow: tuple[str, ...]
) -> tuple[Any, _Small, dict[str, int]]:
    """The pruned variables, what `shrink` makes of them, and the numbers of the dense network."""
    apply_fn = _apply_fn(pair)
    start = time.perf_counter()
    groups = jaxprune.channel_groups(apply_fn, variables, x, allow=allow)
    params, _ = jaxprune.prune_params(
        variables["params"], SPARSITY, structure=groups, include=tuple(groups)
    )
    pruned = {**variables, "params": params}
    small, report = jaxprune.shrink(apply_fn, pruned, x, allow=allow)
    seconds = time.perf_counter() - start
    difference = _difference(apply_fn(pruned, x), apply_fn(small, x))
    numbers = {"numbers": report.size_before, "multiply_adds": report.cost_before.multiply_adds}
    return (
        pruned,
        _Small(report.size, report.cost.multiply_adds, difference, seconds),
        numbers,
    )


def _torch_row(pair: Pair, pruned: Any, x: np.ndarray, before: dict[str, int]) -> Row:
    """The numbers of Torch-Pruning, or the error that it stops with."""
    import torch

    net = torch_net(pair.forward, pair.layers)
    state = net.state_dict()
    for layers in pruned.values():
        for layer, leaves in layers.items():
            for leaf, value in leaves.items():
                state[f"{layer}.{leaf}"] = torch.from_numpy(np.array(value))
    net.load_state_dict(state)
    inputs = torch.from_numpy(x)
    assert _torch_multiply_adds(net, inputs) == before["multiply_adds"] or "lstm" in pair.layers
    with torch.no_grad():
        outputs = net(inputs).numpy()
    start = time.perf_counter()
    try:
        _torch_prune(pair, net, inputs)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            difference = _difference(outputs, net(inputs).numpy())
    except (
        Exception
    ) as error:  # a result of the comparison: the library does not support the network
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    numbers = sum(v.numel() for k, v in net.state_dict().items() if "num_batches" not in k)
    return _Small(numbers, _torch_multiply_adds(net, inputs), difference, seconds)._asdict()


def _torch_prune(pair: Pair, net: Any, inputs: Any) -> None:
    import torch_pruning as tp

    heads = {getattr(net, name): HEADS for name in pair.heads}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        roots = [tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR, tp.ops.TORCH_LSTM, tp.ops.TORCH_EMBED]
        tp.pruner.BasePruner(
            net,
            inputs,
            _importance,
            pruning_ratio=SPARSITY,
            ignored_layers=[net.head],
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=not heads,
            head_pruning_ratio=SPARSITY,
            root_module_types=roots,
        ).step()


def _importance(group: Any) -> Any:
    """A score for each channel, which is zero if its weights in one of the layers are zero."""
    import torch
    import torch_pruning as tp

    magnitude = tp.importance.GroupMagnitudeImportance(group_reduction="prod", normalizer=None)
    scores = magnitude(group)
    if scores is None:
        return None
    for i, (dependency, indices) in enumerate(group):  # `magnitude` does not read embeddings
        if isinstance(dependency.layer, torch.nn.Embedding):
            norms = dependency.layer.weight.detach().square().sum(0)
            scores[group[i].root_idxs] *= norms[indices]
    return scores


def _torch_multiply_adds(net: Any, inputs: Any) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(inputs)
    return counter.get_total_flops() // 2


def _difference(before: Any, after: Any) -> float:
    """The largest difference of outputs, relative to the largest output."""
    before, after = np.asarray(before), np.asarray(after)
    if before.shape != after.shape:
        return math.inf
    return float(np.abs(before - after).max() / np.abs(before).max())
