"""How much does pruning without training change a layer's output? Magnitude, Wanda and SparseGPT.

The layer is `x @ kernel` with normal weights. There are four kinds of inputs: independent; with
outliers, where one feature in a hundred is 20 to 60 times as large, as in transformers; correlated,
by an autoregression along the features; and both. The error is

    |X (W - W')|^2 / |X W|^2

on inputs of the same distribution that no method has seen: median, minimum and maximum over seeds.
Magnitude ranks all weights of the layer together, for 2:4 those of each group. Counts and zeros are
checked first. A time is one call, given the moments of the inputs. Moments of independent inputs
carry no information, so Wanda and SparseGPT lose to magnitude there.

And what do they cost? SparseGPT of a 1024 x 4096 kernel is timed beside the authors' algorithm in
PyTorch, if that is installed (`pip install torch`), and collecting the inputs of a transformer
block beside a forward pass and the Gram products alone.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxprune
from benchmarks.calibrate_costs import compare_collecting, compare_with_torch
from benchmarks.common import Case, Check, Row, interleaved
from jaxprune import Moments, moments, sparsegpt_kernel, wanda_kernel

BASE, WANDA, SPARSEGPT = "magnitude", "wanda", "sparsegpt"
KINDS = ("independent", "outliers", "correlated", "correlated outliers")
TARGETS: dict[str, dict[str, Any]] = {
    "50%": {"sparsity": 0.5},
    "60%": {"sparsity": 0.6},
    "70%": {"sparsity": 0.7},
    "80%": {"sparsity": 0.8},
    "2:4": {"nm": (2, 4)},
}
_NEIGHBOURS = 0.9  # correlation between neighbouring features


class Layer(NamedTuple):
    """A kernel, the moments of its calibration inputs, and test inputs."""

    kernel: jax.Array
    moments: Moments
    unseen: jax.Array


def layer(kind: str, n_in: int, n_out: int, n_rows: int, seed: int) -> Layer:
    """A random layer whose calibration and test inputs have the same distribution."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((n_in, n_out), np.float32)
    x = rng.standard_normal((2 * n_rows, n_in), np.float32)
    if "correlated" in kind:
        noise_scale = np.sqrt(1 - _NEIGHBOURS**2)
        for i in range(1, n_in):
            x[:, i] = _NEIGHBOURS * x[:, i - 1] + noise_scale * x[:, i]
    if "outliers" in kind:
        outliers = rng.permutation(n_in)[: max(n_in // 100, 1)]
        x[:, outliers] *= rng.uniform(20, 60, len(outliers)).astype(np.float32)
    return Layer(jnp.asarray(kernel), moments(jnp.asarray(x[:n_rows])), jnp.asarray(x[n_rows:]))


def methods(target: dict[str, Any]) -> dict[str, Callable[[Layer], tuple[Any, Any]]]:
    """The methods to compare, by name: functions from a layer to (pruned kernel, mask)."""

    def magnitude(layer: Layer) -> tuple[Any, Any]:
        if "nm" in target:  # with equal inputs, the score of Wanda is |w|
            return wanda_kernel(layer.kernel, jnp.ones((1, len(layer.kernel))), **target)
        return jaxprune.prune_params(layer.kernel, target["sparsity"])

    return {
        BASE: magnitude,
        WANDA: lambda layer: wanda_kernel(layer.kernel, layer.moments, **target),
        SPARSEGPT: lambda layer: sparsegpt_kernel(layer.kernel, layer.moments, **target),
    }


@jax.jit
def output_error(layer: Layer, pruned: jax.Array) -> jax.Array:
    """Squared error of the outputs on the test inputs, relative to the squared outputs."""
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    difference = product(layer.unseen, layer.kernel - pruned)
    return jnp.sum(difference**2) / jnp.sum(product(layer.unseen, layer.kernel) ** 2)


def require_exact(name: str, target: dict[str, Any], kernel: Any, mask: Any) -> None:
    """Raises unless the mask has exactly the planned counts and dropped weights are +0.0."""
    kernel, mask = np.asarray(kernel), np.asarray(mask)
    if "nm" in target:
        n, m = target["nm"]
        exact = (mask.reshape(-1, m, mask.shape[1]).sum(axis=1) == n).all()
    else:
        n_in, n_out = mask.shape
        n_competing = n_in if name == WANDA else n_in * n_out
        n_drop = int(Fraction(str(target["sparsity"])) * n_competing + Fraction(1, 2))
        counts = (~mask).sum(axis=0 if name == WANDA else None)
        exact = np.all(counts == n_drop)
    if not exact or kernel.view(np.uint32)[~mask].any():
        raise AssertionError(
            f"{name} at {target}: wrong counts in the mask, or a dropped weight is not +0.0"
        )


def compare(kind: str, target: str, sizes: tuple[int, int, int], n_seeds: int) -> list[Row]:
    """Errors over seeds, and times, on one kind of inputs; one row per method."""
    calls = methods(TARGETS[target])
    errors: dict[str, list[float]] = {name: [] for name in calls}
    first_layer = layer(kind, *sizes, seed=0)
    for seed in range(n_seeds):
        tested = first_layer if seed == 0 else layer(kind, *sizes, seed=seed)
        for name, call in calls.items():
            kernel, mask = call(tested)
            require_exact(name, TARGETS[target], kernel, mask)
            errors[name].append(float(output_error(tested, kernel)))
    times = interleaved(
        {name: functools.partial(call, first_layer) for name, call in calls.items()}
    )
    n_in, n_out, n_rows = sizes
    about = {"case": "layer", "inputs": kind, "target": target, "dtype": "float32"}
    about |= {"n_in": n_in, "n_out": n_out, "n_rows": n_rows, "seeds": n_seeds}
    return [
        {**about, "method": name, "error": statistics.median(errors[name])}
        | {"error_min": min(errors[name]), "error_max": max(errors[name])}
        | {"x_magnitude": _ratio(errors[name], errors[BASE])}
        | {"x_wanda": _ratio(errors[name], errors[WANDA]), **times[name]._asdict()}
        for name in calls
    ]


def _ratio(errors: Sequence[float], base_errors: Sequence[float]) -> float:
    """Median over seeds of the ratio between the errors of one seed."""
    return statistics.median(a / b for a, b in zip(errors, base_errors, strict=True))


def cases(quick: bool) -> list[Case]:
    """Every kind of inputs at every target, and what the functions cost; tiny sizes if `quick`."""
    sizes, n_seeds = ((64, 32, 128), 2) if quick else ((1024, 1024, 4096), 3)
    kernel = (64, 32) if quick else (1024, 4096)
    block = (32, 2, 64, 64) if quick else (512, 8, 2048, 2048)
    costs = [
        Case(
            f"calibrate sparsegpt {name}",
            functools.partial(compare_with_torch, TARGETS[name], *kernel),
        )
        for name in ("50%", "2:4")
    ]
    costs.append(Case("calibrate collect", functools.partial(compare_collecting, *block)))
    return costs + [
        Case(
            f"calibrate {kind} {target}",
            functools.partial(compare, kind, target, sizes, n_seeds),
        )
        for kind in KINDS
        for target in TARGETS
    ]


def checks(rows: Sequence[Row]) -> list[Check]:
    """A method beats the simpler one where its moments carry information, at its worst target."""
    targets = cost_checks(rows)
    for kind in KINDS:
        kind_rows = [r for r in rows if r.get("inputs") == kind]
        wanda = [r["x_magnitude"] for r in kind_rows if r["method"] == WANDA]
        sparsegpt = [r["x_wanda"] for r in kind_rows if r["method"] == SPARSEGPT]
        if wanda and "outliers" in kind:  # Wanda knows the norms of the inputs
            targets.append(Check(f"error, wanda / magnitude, {kind}", 1.0, max(wanda)))
        if sparsegpt and "correlated" in kind:  # SparseGPT knows their correlations too
            targets.append(Check(f"error, sparsegpt / wanda, {kind}", 1.0, max(sparsegpt)))
    return targets


def cost_checks(rows: Sequence[Row]) -> list[Check]:
    """SparseGPT is not slower than PyTorch; collecting costs few forward passes and the Grams."""
    targets = []
    for target in {r["target"]: None for r in rows if r["case"] == "sparsegpt"}:
        of_target = [r for r in rows if r["case"] == "sparsegpt" and r["target"] == target]
        ms = {r["method"]: r["median_ms"] for r in of_target}
        if "torch" in ms:
            name = f"time, sparsegpt / torch, {target}"
            targets.append(Check(name, 1.0, ms["jaxprune"] / ms["torch"]))
    ms = {r["method"]: r["median_ms"] for r in rows if r["case"] == "collect"}
    if ms:
        passes = (ms["collect"] - ms["grams"]) / ms["forward"]
        targets.append(Check("forward passes to collect, without the Grams", 2.5, passes))
    return targets


def tables(rows: Sequence[Row]) -> list[Table]:
    """Errors by kind of inputs and target, the times of Wanda and SparseGPT, and other costs."""
    costs = [r for r in rows if r["case"] != "layer"]
    layers = [r for r in rows if r["case"] == "layer"]
    return [*_cost_table(costs), *_layer_table(layers)]


def _cost_table(rows: Sequence[Row]) -> list[Table]:
    if not rows:
        return []
    table = Table(title="SparseGPT of one kernel, and collecting the inputs of a block, ms")
    for column in ("case", "target", "method", "median", "min", "max"):
        table.add_column(column, justify="right")
    for r in rows:
        ms = (f"{r[f'{name}_ms']:.1f}" for name in ("median", "min", "max"))
        table.add_row(r["case"], r.get("target", ""), r["method"], *ms)
    return [table]


def _layer_table(rows: Sequence[Row]) -> list[Table]:
    if not rows:
        return []
    table = Table(title="Relative output error on unseen inputs (x magnitude), ms")
    for column in ("inputs", "target", BASE, WANDA, SPARSEGPT, "wanda ms", "sparsegpt ms"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for r in rows:
        groups.setdefault((r["inputs"], r["target"]), {})[r["method"]] = r
    for key, group in groups.items():
        base, *calibrated = (group[name] for name in (BASE, WANDA, SPARSEGPT))
        cells = (f"{r['error']:.4f} ({r['x_magnitude']:.2f})" for r in calibrated)
        ms = (f"{r['median_ms']:.0f}" for r in calibrated)
        table.add_row(*key, f"{base['error']:.4f}", *cells, *ms)
    return [table]
