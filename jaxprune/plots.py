"""Pictures of what jaxprune reports; they need the extra `plots`, which installs matplotlib.

Every function draws on the axes that it gets as `ax`, or on new ones, and returns them, so that
they can be labelled, combined and saved: `plots.sensitivity_map(table).figure.savefig("map.png")`.
"""

from typing import Any

import numpy as np

from jaxprune._base.arguments import shown
from jaxprune._files.extras import import_extra
from jaxprune._report.sensitivity import Sensitivity


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
    ax = _axes((2.5 + 0.6 * n_columns, 1.2 + 0.28 * n_rows)) if ax is None else ax
    finite = np.abs(change[np.isfinite(change)])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    shown_change = np.ma.masked_invalid(change)
    ax.set_facecolor("0.8")
    image = ax.imshow(shown_change, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.set_xticks(range(n_columns), [f"{sparsity:.4g}" for sparsity in sensitivity.sparsities])
    ax.set_yticks(range(n_rows), sensitivity.rules)
    ax.set(xlabel="sparsity of the leaf", title="Loss with one leaf pruned")
    ax.figure.colorbar(image, ax=ax, label="change of the loss")
    return ax


def _axes(size: tuple[float, float]) -> Any:
    """New axes, without a window."""
    figure = import_extra("matplotlib.figure", "plots").Figure(size, layout="constrained")
    return figure.subplots()
