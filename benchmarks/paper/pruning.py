"""Ways to prune, as values: the paper's, and those that its findings are compared with."""

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
    """When and how much.

    Attributes:
      sparsity: at the end, over all pruned weights.
      begin: step of the first fire.
      end: step of the last fire.
      every: steps between fires.
      spread: "uniform", "erk" or "global": how the layers share the sparsity.
      regrow: masks may grow back: a dropped weight keeps its value, unused, and returns when it is
        again among the largest, as in the TensorFlow code of the paper's authors.
      structure: what stays or goes together, as for `jaxprune.prune`; or `Units`.
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
        """The paper's way: cubic, from a tenth to three fifths of the steps, 50 fires.

        The last two fifths are left to heal in, while the learning rate is still high enough.
        """
        return Pruning(sparsity, steps // 10, 6 * steps // 10, max(steps // 100, 1))

    def schedule(self) -> jaxprune.SparsitySchedule:
        """The cubic schedule; one fire where `begin` is `end`."""
        return jaxprune.cubic_schedule(self.sparsity, self.begin, self.end, self.every)

    def plan(self, params: Any, exclude: tuple[str, ...]) -> Report:
        """The counts at the end, exact in total."""
        return jaxprune.plan(
            params,
            self.schedule(),
            exclude=exclude,
            distribution=_SPREADS[self.spread],
            structure=self.structure,
        )


class Optimizer(NamedTuple):
    """An optax transformation, and what the loss sees of its params.

    Attributes:
      init: as optax.
      update: as optax.
      view: `(params, opt_state)` to the params of the forward pass.
      n_zero: `(params, opt_state)` to dropped weights, int32.
    """

    init: Callable[[Any], Any]
    update: Callable[..., Any]
    view: Callable[[Any, Any], Any]
    n_zero: Callable[[Any, Any], jax.Array]


def optimizer_of(
    pruning: Pruning | None, inner: optax.GradientTransformation, exclude: tuple[str, ...]
) -> Optimizer:
    """The optimizer that prunes in this way; None is not at all."""
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
    # Held weights are not zero in the params, so the forward pass has to leave them out.
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
