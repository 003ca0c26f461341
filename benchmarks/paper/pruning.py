"""Pruning configurations: the method of the paper, and the alternatives in its findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune
from benchmarks.paper.units import Units, n_zero, prune_units
from jaxprune._report.table import Report

_SPREADS = {
    "uniform": jaxprune.uniform,
    "erk": jaxprune.erk,
    "global": jaxprune.global_pool,
}
_EVERY_WEIGHT = jaxprune.Unstructured()


@dataclasses.dataclass(frozen=True)
class Pruning:
    """How a network is pruned.

    Attributes:
      sparsity: final fraction of zeros over all pruned leaves.
      begin: step of the first fire.
      end: step of the last fire.
      every: steps between fires.
      spread: "uniform", "erk" or "global": how the layers share the sparsity.
      regrow: whether weights can return. A dropped weight then keeps its value, unused, until it is
        among the largest again, as in the TensorFlow code of the paper's authors.
      structure: as for `jaxprune.prune`, or `Units`.
    """

    sparsity: float
    begin: int
    end: int
    every: int
    spread: str = "uniform"
    regrow: bool = False
    structure: Any = _EVERY_WEIGHT

    @staticmethod
    def gradual(sparsity: float, steps: int) -> Pruning:
        """The method of the paper: cubic, with 50 fires between 10% and 60% of the steps.

        In the last 40% of the steps the network recovers, while the learning rate is high enough.
        """
        return Pruning(sparsity, steps // 10, 6 * steps // 10, max(steps // 100, 1))

    def schedule(self) -> jaxprune.SparsitySchedule:
        """The cubic schedule; it fires once if `begin` equals `end`."""
        return jaxprune.cubic_schedule(self.sparsity, self.begin, self.end, self.every)

    def plan(self, params: Any, exclude: tuple[str, ...]) -> Report:
        """The exact final counts of every leaf."""
        return jaxprune.plan(
            params,
            self.schedule(),
            exclude=exclude,
            distribution=_SPREADS[self.spread],
            structure=self.structure,
        )


class Optimizer(NamedTuple):
    """An optax transformation that prunes, with functions that read its state.

    Attributes:
      init: as in optax.
      update: as in optax.
      view: `(params, opt_state) -> params` of the forward pass.
      n_zero: `(params, opt_state) -> ` number of dropped weights, int32.
    """

    init: Callable[[Any], Any]
    update: Callable[..., Any]
    view: Callable[[Any, Any], Any]
    n_zero: Callable[[Any, Any], jax.Array]


def optimizer_of(
    pruning: Pruning | None, inner: optax.GradientTransformation, exclude: tuple[str, ...]
) -> Optimizer:
    """Wraps an optimizer in this pruning; None leaves it dense."""
    if pruning is None:
        none = jnp.zeros((), jnp.int32)
        return Optimizer(inner.init, inner.update, lambda params, _: params, lambda *_: none)
    if isinstance(pruning.structure, Units):
        return _of_units(pruning, pruning.structure, inner)
    transformation = jaxprune.prune(
        pruning.schedule(),
        inner=inner,
        exclude=exclude,
        distribution=_SPREADS[pruning.spread],
        regrow="hold" if pruning.regrow else False,
        structure=pruning.structure,
    )
    # Dropped weights keep their values in the params, so the forward pass must mask them.
    view = jaxprune.apply_masks if pruning.regrow else lambda params, _: params
    return Optimizer(
        transformation.init,
        transformation.update,
        view,
        lambda _, state: jaxprune.metrics(state)["prune/n_zero"].astype(jnp.int32),
    )


def _of_units(pruning: Pruning, units: Units, inner: optax.GradientTransformation) -> Optimizer:
    transformation = prune_units(units, pruning.schedule(), inner)
    return Optimizer(
        transformation.init,
        transformation.update,
        lambda params, _: params,
        lambda params, state: n_zero(units, state, params),
    )
