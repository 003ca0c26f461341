"""Dropped weights that are not zero, as `check` reports them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxprune._base.counting import total
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.paths import listed, shown_path, spec_of
from jaxprune._base.plurals import is_or_are
from jaxprune._state.convert import pruned_paths
from jaxprune._state.prune_state import PruneState


class Nonzero(NamedTuple):
    """A leaf with dropped weights that are not zero."""

    path: str
    n_moved: int
    n_dropped: int
    n_not_finite: int

    def __str__(self) -> str:
        weights = "weight" if self.n_dropped == 1 else "weights"
        verb = is_or_are(self.n_moved)
        more = f", {self.n_not_finite} of them not finite" if self.n_not_finite else ""
        if self.n_moved == self.n_not_finite == 1:
            more = ", and it is not finite"
        return (
            f"{shown_path(self.path)}: {self.n_moved} of {self.n_dropped} dropped {weights} "
            f"{verb} not zero{more}"
        )


def nonzero_of(path: str, leaf: Any, mask: Any) -> Nonzero | None:
    """The dropped weights of a leaf that are not zero; None if there are none.

    Raises:
      TypeError: the mask drops weights, but the leaf is not of floating point or complex numbers.
    """
    if mask is None or spec_of(leaf) is None:
        return None
    dropped = ~mask.astype(bool)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        if total(dropped):
            raise TypeError(
                f"{shown_path(path)}: dropped weights must be floating point or complex numbers, "
                f"got dtype {leaf.dtype}. Pass the params, not masks or quantised weights."
            )
        return None
    n_moved = int(total(dropped & is_nonzero(leaf)))
    n_not_finite = int(total(dropped & ~jnp.isfinite(leaf)))
    return Nonzero(path, n_moved, int(total(dropped)), n_not_finite) if n_moved else None


def of_several_networks(states: Sequence[PruneState], paths: Sequence[str]) -> str:
    """What to say if more than one state prunes one of these leaves; empty if none does.

    The states of networks with the same paths are merged as if they were of one network.
    """
    n_states = Counter(path for state in states for path in pruned_paths(state))
    shared = [path for path in paths if n_states[path] > 1]
    if not shared:
        return ""
    n = max(n_states[path] for path in shared)
    return (
        f"{n} prune states in this optimizer state prune {listed(shared)}, and their masks are "
        "merged. If they belong to different networks, check each with its own state: "
        'check(params["q1"], opt_state["q1"]). '
    )
