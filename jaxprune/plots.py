"""Pictures of schedules, masks, weights and reports; they need the extra `plots` (matplotlib).

Every function draws on the axes that it gets as `ax`, and returns them, so that they can be
labelled, combined and saved: `plots.sensitivity_map(table).figure.savefig("map.png")`. Without `ax`
it makes a new figure of pyplot: a notebook shows it, and a script does with `pyplot.show()`.

Background and text keep the style that matplotlib has when the axes are made. The colours of the
data are those of Okabe and Ito that can be seen on light and on dark backgrounds; people who are
colour-blind can tell them apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxprune._base.arguments import kind_of, shown
from jaxprune._base.paths import shown_path
from jaxprune._base.public_help import with_readable_help
from jaxprune._base.trees import ArrayTree
from jaxprune._files.extras import import_extra
from jaxprune._recipe.schedules import SparsitySchedule
from jaxprune._report.plotted import (
    History,
    as_history,
    as_mask,
    check_bins,
    check_same_leaves,
    drawn_leaves,
    leaf_sparsities,
    logged,
    logged_leaves,
    named_reports,
    weights_by_path,
)
from jaxprune._report.sensitivity_table import Sensitivity
from jaxprune._report.table import Report

__all__ = [
    "leaf_bars",
    "mask_image",
    "schedule_curve",
    "sensitivity_map",
    "sparsity_curve",
    "weight_histogram",
]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "0.55"


def schedule_curve(schedule: SparsitySchedule, ax: Any = None, *, label: str | None = None) -> Any:
    """Draws the target sparsity of a schedule against the step, with a dot at each fire.

    To compare schedules, draw them on the same axes with a `label` each.

    Args:
      schedule: the schedule.
      ax: matplotlib axes to draw on; None makes new ones.
      label: the name of the schedule in the legend; None draws no legend.

    Returns:
      The axes.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: not a schedule.

    Example:
      >>> import jaxprune
      >>> ax = schedule_curve(jaxprune.cubic_schedule(0.9, 100, 900), label="cubic")
      >>> ax = schedule_curve(jaxprune.linear_schedule(0.9, 100, 900), ax, label="linear")
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['cubic', 'linear']
    """
    if not isinstance(schedule, SparsitySchedule):
        raise TypeError(
            f"schedule_curve: schedule must be a SparsitySchedule, got {shown(schedule)}. Pass "
            "one, such as jaxprune.cubic_schedule(0.9, begin_step=0, end_step=1_000)."
        )
    ax = _axes("schedule_curve", ax, (6, 3.5))
    fires, targets = schedule.fire_steps, list(map(float, schedule.targets))
    steps = [0, *fires, fires[-1] + max(fires[-1] // 10, 1)]
    sparsity = [0.0, *targets, targets[-1]]
    k = len(ax.lines)
    style = {"color": _COLOURS[k % len(_COLOURS)], "linestyle": ("-", "--", "-.", ":")[k % 4]}
    dots: dict[str, Any] = {"marker": ".", "markevery": list(range(1, len(fires) + 1))}
    ax.plot(steps, sparsity, drawstyle="steps-post", label=label, **dots, **style)
    _sparsity_axis(ax.yaxis)
    ax.set(xlabel="step", ylabel="target sparsity", ylim=(0, 1))
    if label is not None:
        ax.legend()
    return ax


def sparsity_curve(history: History, ax: Any = None, *, per_leaf: bool = False) -> Any:
    """Draws the sparsity during a run, from logged metrics; the final target is a dotted line.

    Args:
      history: what `metrics(opt_state)` returned at several steps, in any order: a list, or the
        dictionary of arrays that `jax.lax.scan` stacks. With `vmap`, pass those of one member.
      ax: matplotlib axes to draw on; None makes new ones.
      per_leaf: also draw a thin line for each leaf, from `metrics(opt_state, per_leaf=True)`.

    Returns:
      The axes.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: not a sequence of dictionaries, or a value that is not a scalar.
      ValueError: no metrics, a name is missing, or all entries of the arrays are of one step.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"kernel": jnp.ones((10, 10)), "bias": jnp.ones(10)}
      >>> tx = jaxprune.prune(jaxprune.cubic_schedule(0.9, 1, 5, every=2))
      >>> state, history = tx.init(params), []
      >>> for _ in range(7):
      ...     _, state = tx.update(params, state, params)
      ...     history.append(jaxprune.metrics(state))
      >>> ax = sparsity_curve(history)
      >>> [line.get_label() for line in ax.lines]
      ['target', 'pruned leaves', 'all leaves']
    """
    history = as_history(history)
    steps = logged(history, "prune/step")
    order = np.argsort(steps, kind="stable")
    pruned, everything = (logged(history, f"prune/{x}") for x in ("sparsity", "sparsity_all"))
    target = logged(history, "prune/target")[order[-1]]
    leaves = logged_leaves(history) if per_leaf else {}
    ax = _axes("sparsity_curve", ax, (6, 3.5))
    style: dict[str, Any] = {"drawstyle": "steps-post"}
    for path, values in leaves.items():  # a label that starts with _ is not in the legend
        line = dict(color=_GREY, linewidth=0.8, label=f"_{path}")
        ax.plot(steps[order], values[order], **line, **style)
    ax.axhline(target, color=_GREY, linestyle=":", label="target")
    thick = {"color": _COLOURS[0], "linewidth": 2.5, "label": "pruned leaves"}
    ax.plot(steps[order], pruned[order], **thick, **style)
    style |= {"linestyle": "--", "linewidth": 1.2}  # the curve below stays visible
    ax.plot(steps[order], everything[order], color=_COLOURS[1], label="all leaves", **style)
    _sparsity_axis(ax.yaxis)
    ax.set(xlabel="step", ylabel="sparsity", ylim=(0, 1))
    ax.legend()
    return ax


def leaf_bars(report: Report | Mapping[str, Report], ax: Any = None) -> Any:
    """Draws the sparsity of each leaf as bars, from one report or from several to compare.

    Leaves without zeros are left out, unless no leaf has any. A leaf that shares a pool has a
    hatched bar, the sparsity of its pool; or a question mark, where that is not known either.

    Args:
      report: what `plan` or `summarize` returned, or a dictionary from a name to a report.
      ax: matplotlib axes to draw on; None makes a figure that is as high as the bars need.

    Returns:
      The axes.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: not a report.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"a": jnp.ones((8, 8)), "b": jnp.ones((64, 8)), "bias": jnp.ones(8)}
      >>> kinds = {"uniform": jaxprune.uniform, "ERK": jaxprune.erk}
      >>> plans = {name: jaxprune.plan(params, 0.8, distribution=d) for name, d in kinds.items()}
      >>> ax = leaf_bars(plans)
      >>> [label.get_text() for label in ax.get_yticklabels()]
      ['a', 'b']
    """
    reports = {name: leaf_sparsities(each) for name, each in named_reports(report).items()}
    paths = drawn_leaves(reports.values())
    n = max(len(reports), 1)
    ax = _axes("leaf_bars", ax, (6.5, 1 + len(paths) * (0.15 + 0.15 * n)))
    for k, (name, leaves) in enumerate(reports.items()):
        bars = [(i, *leaves[path]) for i, path in enumerate(paths) if path in leaves]
        _bars(ax, bars, 0.8 * ((k + 0.5) / n - 0.5), 0.8 / n, _COLOURS[k % len(_COLOURS)], name)
    ax.set_yticks(range(len(paths)), list(map(shown_path, paths)))
    ax.set_ylim(len(paths) - 0.5, -0.5)  # the first leaf is at the top
    _sparsity_axis(ax.xaxis)
    ax.set(xlabel="sparsity", xlim=(0, 1))
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def weight_histogram(
    before: ArrayTree, after: ArrayTree, ax: Any = None, *, bins: int = 100
) -> Any:
    """Draws the nonzero weights before and after pruning as histograms with the same bins.

    Zeros are not drawn, because one bar of them would hide all others; the legend has their number.

    Args:
      before: a tree of arrays, or one array. Leaves that are not real floats are left out.
      after: the same tree later.
      ax: matplotlib axes to draw on; None makes new ones.
      bins: number of bins.

    Returns:
      The axes.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: `bins` is not an int.
      ValueError: no weights, another tree, a weight that is not finite, or less than one bin.

    Example:
      >>> import jax, jaxprune
      >>> dense = {"kernel": jax.random.normal(jax.random.key(0), (40, 50))}
      >>> sparse, _ = jaxprune.prune_params(dense, 0.9)
      >>> ax = weight_histogram(dense, sparse)
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['before: 2,000 nonzero, 0 zeros', 'after: 200 nonzero, 1,800 zeros']
    """
    check_bins(bins)
    trees = {"before": before, "after": after}
    weights = {name: weights_by_path(name, tree) for name, tree in trees.items()}
    check_same_leaves(weights["before"], weights["after"])
    flat = {name: np.concatenate(list(leaves.values())) for name, leaves in weights.items()}
    nonzero = {name: values[values != 0] for name, values in flat.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(nonzero.values())), bins)
    ax = _axes("weight_histogram", ax, (6, 3.5))
    styles = ({"fill": True, "alpha": 0.6}, {"linewidth": 1.8})
    for (name, values), colour, style in zip(nonzero.items(), _COLOURS, styles, strict=False):
        n_zero = flat[name].size - values.size
        label = f"{name}: {values.size:,} nonzero, {n_zero:,} zeros"
        ax.stairs(np.histogram(values, edges)[0], edges, color=colour, label=label, **style)
    ax.margins(y=0.35)  # room for the legend
    ax.set(xlabel="weight (zeros not drawn)", ylabel="number of weights")
    ax.legend()
    return ax


def mask_image(mask: Any, ax: Any = None) -> Any:
    """Draws a mask as an image with one pixel for each weight; kept weights are blue.

    Args:
      mask: an array of bools, or of 0 and 1; True is kept. An array of more than two axes is shown
        as a matrix: the last axis from left to right, all others from top to bottom, row-major.
      ax: matplotlib axes to draw on; None makes new ones.

    Returns:
      The axes.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: not an array of bools or integers.
      ValueError: an entry is neither 0 nor 1, or the array has no entries.

    Example:
      >>> import jax, jaxprune
      >>> kernel = jax.random.normal(jax.random.key(0), (8, 16))
      >>> _, mask = jaxprune.prune_params(kernel, 0.5, structure=jaxprune.NM(2, 4, axis=0))
      >>> ax = mask_image(mask)
      >>> ax.get_title()
      '64 of 128 weights kept, 50.00% zeros'
    """
    kept = as_mask(mask)
    n_kept = int(kept.sum())
    ax = _axes("mask_image", ax, (4.5, 4))
    colours = import_extra("matplotlib.colors", "plots").ListedColormap(["#E8E8E8", _COLOURS[0]])
    matrix = kept.reshape(-1, kept.shape[-1]) if kept.ndim else kept.reshape(1, 1)
    crisp = "nearest" if max(matrix.shape) <= 512 else "auto"  # larger ones have to be averaged
    ax.imshow(matrix, cmap=colours, vmin=0, vmax=1, interpolation=crisp)
    ax.set_title(f"{n_kept:,} of {kept.size:,} weights kept, {1 - n_kept / kept.size:.2%} zeros")
    rows = " x ".join(map(str, kept.shape[:-1])) or "1"
    ax.set(xlabel=f"last axis ({matrix.shape[1]})", ylabel=f"other axes ({rows})")
    return ax


def sensitivity_map(sensitivity: Sensitivity, ax: Any = None) -> Any:
    """Draws a table of `sensitivity` as a heat map: a row for each leaf, a column per sparsity.

    The colour is the change of the loss against the dense params. White is no change; losses that
    are not finite are left grey.

    Args:
      sensitivity: the table.
      ax: matplotlib axes to draw on; None makes a figure that is as high as the table needs.

    Returns:
      The axes.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: not a table of `sensitivity`.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"a": jnp.ones((2, 2)), "b": jnp.ones((4, 4))}
      >>> loss = lambda params: -jnp.sum(params["a"]) - jnp.sum(params["b"])
      >>> ax = sensitivity_map(jaxprune.sensitivity(loss, params, (0.25, 0.5)))
      >>> [label.get_text() for label in ax.get_yticklabels()]
      ['a', 'b']
    """
    if not isinstance(sensitivity, Sensitivity):
        raise TypeError(
            "sensitivity_map: sensitivity must be what jaxprune.sensitivity returned, got "
            f"{shown(sensitivity)}."
        )
    change = sensitivity.losses - sensitivity.dense_loss
    n_rows, n_columns = change.shape
    ax = _axes("sensitivity_map", ax, (2.5 + 0.6 * n_columns, 1.2 + 0.28 * n_rows))
    finite = np.abs(change[np.isfinite(change)])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    ax.set_facecolor("0.8")
    shown_change = np.ma.masked_invalid(change)
    image = ax.imshow(shown_change, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.set_xticks(range(n_columns), [f"{sparsity:.4g}" for sparsity in sensitivity.sparsities])
    ax.set_yticks(range(n_rows), sensitivity.rules)
    row = "group" if sensitivity.grouped else "leaf"
    ax.set(xlabel=f"sparsity of the {row}", title=f"Loss with one {row} pruned")
    ax.figure.colorbar(image, ax=ax, label="change of the loss")
    return ax


def _axes(function: str, ax: Any, size: tuple[float, float]) -> Any:
    """The axes of a user, or those of a new figure of pyplot, which a notebook shows by itself."""
    if ax is not None:
        if isinstance(ax, import_extra("matplotlib.axes", "plots").Axes):
            return ax
        fix = "Pass axes, such as figure.subplots(), or leave ax out for a new figure."
        if isinstance(ax, np.ndarray):
            fix = "Pass one of them, such as axes[0]."
        got = f"the module {ax.__name__}" if inspect.ismodule(ax) else kind_of(ax)
        raise TypeError(f"{function}: ax must be axes of matplotlib, got {got}. {fix}")
    pyplot = import_extra("matplotlib.pyplot", "plots")
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def _bars(ax: Any, bars: Any, offset: float, height: float, colour: str, name: str) -> None:
    """The bars of one report; those that show the sparsity of a pool are hatched."""
    for place in [place for place, sparsity, _ in bars if sparsity is None]:
        ax.text(0.005, place + offset, "?", color=colour, va="center")
    for is_exact in (True, False):
        kind = [bar for bar in bars if bar[2] == is_exact and bar[1] is not None]
        if not kind:
            continue
        places, sparsities, _ = zip(*kind, strict=True)
        places = [place + offset for place in places]
        words = [name, "" if is_exact else "average of the pool"]
        style = {} if is_exact else {"facecolor": "none", "edgecolor": colour, "hatch": "///"}
        label = ": ".join(filter(None, words))
        ax.barh(places, sparsities, height, color=colour, label=label or None, **style)


def _sparsity_axis(axis: Any) -> None:
    """Shows fractions as percent."""
    axis.set_major_formatter(import_extra("matplotlib.ticker", "plots").PercentFormatter(1))


for _name in __all__:
    with_readable_help(globals()[_name], __name__, _name)
