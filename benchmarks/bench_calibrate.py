"""How much of a layer's output survives pruning, by magnitude, by Wanda and by SparseGPT?

One layer, `x @ kernel` with normal weights, pruned without training. Its inputs come in four kinds:
independent; with outlier features, one in a hundred 20 to 60 times as large, as transformers have
them; correlated, by an autoregression along the features; and both. What is reported is

    |X (W - W')|^2 / |X W|^2

on inputs of the same kind that no method has seen: the median over seeds, the least and the most.
Magnitude chooses among all weights of the layer, for 2:4 within each group. Counts and zeros are
checked first. Times are those of one call with the moments of the inputs at hand. Where inputs are
independent the methods have nothing to go by, and lose to magnitude.
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
from benchmarks.common import Case, Check, Row, interleaved
from jaxprune import Moments, sparsegpt_kernel, wanda_kernel
from jaxprune._calibration import moments

BASE, WANDA, SPARSEGPT = "magnitude", "wanda", "sparsegpt"
KINDS = ("independent", "outliers", "correlated", "correlated outliers")
TARGETS: dict[str, dict[str, Any]] = {
    "50%": {"sparsity": 0.5},
    "60%": {"sparsity": 0.6},
    "70%": {"sparsity": 0.7},
    "80%": {"sparsity": 0.8},
    "2:4": {"nm": (2, 4)},
}
_NEIGHBOURS = 0.9  # correlation of a feature and the next one


class Layer(NamedTuple):
    """A kernel, the moments of its inputs, and inputs to be judged by."""

    kernel: jax.Array
    moments: Moments
    unseen: jax.Array


def layer(kind: str, n_in: int, n_out: int, n_rows: int, seed: int) -> Layer:
    """A layer whose calibration and test inputs are drawn from one distribution."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((n_in, n_out), np.float32)
    x = rng.standard_normal((2 * n_rows, n_in), np.float32)
    if "correlated" in kind:
        fresh = np.sqrt(1 - _NEIGHBOURS**2)
        for i in range(1, n_in):
            x[:, i] = _NEIGHBOURS * x[:, i - 1] + fresh * x[:, i]
    if "outliers" in kind:
        large = rng.permutation(n_in)[: max(n_in // 100, 1)]
        x[:, large] *= rng.uniform(20, 60, len(large)).astype(np.float32)
    return Layer(jnp.asarray(kernel), moments(jnp.asarray(x[:n_rows])), jnp.asarray(x[n_rows:]))


def methods(target: dict[str, Any]) -> dict[str, Callable[[Layer], tuple[Any, Any]]]:
    """Calls that prune a layer; each returns the kernel and its mask."""

    def magnitude(at: Layer) -> tuple[Any, Any]:
        if "nm" in target:  # all inputs alike: what is left of Wanda's score is |w|
            return wanda_kernel(at.kernel, jnp.ones((1, len(at.kernel))), **target)
        return jaxprune.prune_params(at.kernel, target["sparsity"])

    return {
        BASE: magnitude,
        WANDA: lambda at: wanda_kernel(at.kernel, at.moments, **target),
        SPARSEGPT: lambda at: sparsegpt_kernel(at.kernel, at.moments, **target),
    }


@jax.jit
def output_error(at: Layer, pruned: jax.Array) -> jax.Array:
    """Squared error of the outputs on unseen inputs, relative to the outputs."""
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    lost = product(at.unseen, at.kernel - pruned)
    return jnp.sum(lost**2) / jnp.sum(product(at.unseen, at.kernel) ** 2)


def must_be_exact(name: str, target: dict[str, Any], kernel: Any, mask: Any) -> None:
    """Stops the run where a count is off, or a dropped weight is not +0.0."""
    kernel, mask = np.asarray(kernel), np.asarray(mask)
    if "nm" in target:
        n, m = target["nm"]
        exact = (mask.reshape(-1, m, mask.shape[1]).sum(axis=1) == n).all()
    else:
        n_in, n_out = mask.shape
        each = n_in if name == WANDA else n_in * n_out
        n_drop = int(Fraction(str(target["sparsity"])) * each + Fraction(1, 2))
        counts = (~mask).sum(axis=0 if name == WANDA else None)
        exact = np.all(counts == n_drop)
    if not exact or kernel.view(np.uint32)[~mask].any():
        raise AssertionError(f"{name} at {target}: not the mask that was asked for")


def compare(kind: str, target: str, sizes: tuple[int, int, int], n_seeds: int) -> list[Row]:
    """Errors over seeds and times of the methods on one kind of inputs; one row each."""
    calls = methods(TARGETS[target])
    errors: dict[str, list[float]] = {name: [] for name in calls}
    at = layer(kind, *sizes, seed=0)
    for seed in range(n_seeds):
        one = at if seed == 0 else layer(kind, *sizes, seed=seed)
        for name, call in calls.items():
            kernel, mask = call(one)
            must_be_exact(name, TARGETS[target], kernel, mask)
            errors[name].append(float(output_error(one, kernel)))
    times = interleaved({name: functools.partial(call, at) for name, call in calls.items()})
    n_in, n_out, n_rows = sizes
    common = {"case": "layer", "inputs": kind, "target": target, "dtype": "float32"}
    common |= {"n_in": n_in, "n_out": n_out, "n_rows": n_rows, "seeds": n_seeds}
    return [
        {**common, "method": name, "error": statistics.median(errors[name])}
        | {"error_min": min(errors[name]), "error_max": max(errors[name])}
        | {"x_magnitude": _ratio(errors[name], errors[BASE])}
        | {"x_wanda": _ratio(errors[name], errors[WANDA]), **times[name]._asdict()}
        for name in calls
    ]


def _ratio(errors: Sequence[float], to: Sequence[float]) -> float:
    """The median over seeds of the ratio within a seed."""
    return statistics.median(a / b for a, b in zip(errors, to, strict=True))


def cases(quick: bool) -> list[Case]:
    """Every kind of inputs at every target; `quick` is a smoke test."""
    sizes, n_seeds = ((64, 32, 128), 2) if quick else ((1024, 1024, 4096), 3)
    return [
        Case(
            f"calibrate {kind} {target}",
            functools.partial(compare, kind, target, sizes, n_seeds),
        )
        for kind in KINDS
        for target in TARGETS
    ]


def checks(rows: Sequence[Row]) -> list[Check]:
    """Each method errs less than the simpler one where it knows more, at its worst target."""
    found = []
    for kind in KINDS:
        mine = [r for r in rows if r["inputs"] == kind]
        wanda = [r["x_magnitude"] for r in mine if r["method"] == WANDA]
        better = [r["x_wanda"] for r in mine if r["method"] == SPARSEGPT]
        if wanda and "outliers" in kind:  # norms say what |w| does not
            found.append(Check(f"error, wanda / magnitude, {kind}", 1.0, max(wanda)))
        if better and "correlated" in kind:  # one input can make up for another
            found.append(Check(f"error, sparsegpt / wanda, {kind}", 1.0, max(better)))
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """What a person reads: errors by input and target, and what they took."""
    if not rows:
        return []
    table = Table(title="Relative output error on unseen inputs (x magnitude), ms")
    for column in ("inputs", "target", BASE, WANDA, SPARSEGPT, "wanda ms", "sparsegpt ms"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for r in rows:
        groups.setdefault((r["inputs"], r["target"]), {})[r["method"]] = r
    for key, group in groups.items():
        base, *ours = (group[name] for name in (BASE, WANDA, SPARSEGPT))
        cells = (f"{r['error']:.4f} ({r['x_magnitude']:.2f})" for r in ours)
        ms = (f"{r['median_ms']:.0f}" for r in ours)
        table.add_row(*key, f"{base['error']:.4f}", *cells, *ms)
    return [table]
