"""`LayerInputs`: the moments of the inputs of every leaf of a model, with the roles of its axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxprune._base.arguments import shown
from jaxprune._base.on_host import is_here
from jaxprune._base.paths import listed
from jaxprune._base.same_values import same_values
from jaxprune._calibration.moments import Moments
from jaxprune._recipe.roles import AxisRoles


class LayerInputs(Mapping[str, Moments]):
    """What `layer_inputs` returns: path of a leaf -> the `Moments` of its inputs.

    It is a pytree of the moments. `a + b` and `sum([...])` merge batches.

    Args:
      moments: path of a leaf -> the moments of its inputs.
      roles: of the axes of the leaves.
      without: path of a leaf -> why its inputs could not be collected.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> roles = jaxprune.AxisRoles({"w": ("in", "out")})
      >>> inputs = LayerInputs({"w": jaxprune.Moments(2.0, jnp.eye(2))}, roles)
      >>> both = inputs + inputs
      >>> both["w"].count, both["w"].gram.tolist()
      (4.0, [[2.0, 0.0], [0.0, 2.0]])
    """

    def __init__(
        self,
        moments: Mapping[str, Moments],
        roles: AxisRoles,
        without: Mapping[str, str] | None = None,
    ):
        _check_parts(moments, roles, without)
        self._moments = dict(moments)
        self._roles = roles
        self._without = dict(without or {})

    @property
    def roles(self) -> AxisRoles:
        """The roles of the axes of all leaves of the model."""
        return self._roles

    @property
    def without(self) -> dict[str, str]:
        """The leaves whose inputs could not be collected: path -> reason."""
        return dict(self._without)

    def __getitem__(self, path: str) -> Moments:
        return self._moments[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def __add__(self, other: Any) -> LayerInputs:
        """The moments of the batches of both."""
        if not isinstance(other, LayerInputs):
            return NotImplemented
        if self.keys() != other.keys():
            different = sorted(self.keys() ^ other.keys())
            raise ValueError(
                f"layer_inputs of different leaves can't be added: {listed(different)} are only in "
                "one of the two. Collect both from the same model."
            )
        return jax.tree.map(lambda a, b: a + b, self, other)

    def __radd__(self, other: Any) -> LayerInputs:
        """Lets `sum` start with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __eq__(self, other: object) -> bool:
        """Whether others hold the same numbers; traced ones are only equal to themselves."""
        if not isinstance(other, LayerInputs):
            return NotImplemented
        return (
            self.keys() == other.keys()
            and self.roles == other.roles
            and self.without == other.without
            and all(
                same_values(a, b)
                for path in self
                for a, b in zip(self[path], other[path], strict=True)
            )
        )

    def __hash__(self) -> int:
        return hash((frozenset(self), self.roles))

    def __repr__(self) -> str:
        rows = [f"{path}: {tuple(m.gram.shape)}" for path, m in self.items()]
        return f"LayerInputs({', '.join(rows)})"


def _check_parts(moments: Any, roles: Any, without: Any) -> None:
    """Raises a TypeError unless these are what `LayerInputs` holds."""
    if not isinstance(moments, Mapping) or not all(isinstance(path, str) for path in moments):
        raise TypeError(
            f"LayerInputs: moments must map paths to Moments, got {shown(moments)}. Pass "
            '{"fc/kernel": jaxprune.moments(x)}.'
        )
    for path, value in moments.items():
        if not isinstance(value, Moments):
            raise TypeError(
                f"LayerInputs: moments[{path!r}] must be Moments, got {shown(value)}. Pass "
                "jaxprune.moments(x) of the inputs x of the leaf, (rows, in)."
            )
    if not isinstance(roles, AxisRoles):
        raise TypeError(
            f"LayerInputs: roles must be AxisRoles, got {shown(roles)}. Pass "
            'jaxprune.AxisRoles({"fc/kernel": ("in", "out")}).'
        )
    if without is not None and not isinstance(without, Mapping):
        raise TypeError(
            f"LayerInputs: without must map paths to reasons, got {shown(without)}. Pass a dict, "
            "or leave it out."
        )


def counts_nothing(inputs: LayerInputs) -> bool:
    """Whether no leaf got any input. Counts that can't be read here are taken as not 0."""
    return not any(_may_be_positive(count) for count, _ in inputs.values())


def _may_be_positive(count: Any) -> bool:
    """Whether a count of inputs is not 0 everywhere, or can't be read here."""
    if isinstance(count, Tracer):
        return True
    if isinstance(count, jax.Array):
        return not is_here(count) or bool(np.asarray(count).any())
    return bool(np.any(count))


def _flatten(inputs: LayerInputs) -> tuple[Any, Any]:
    paths = tuple(inputs)
    return tuple(inputs.values()), (paths, inputs.roles, tuple(inputs.without.items()))


def _flatten_with_keys(inputs: LayerInputs) -> tuple[Any, Any]:
    values, static = _flatten(inputs)
    keys = map(jax.tree_util.DictKey, inputs)
    return tuple(zip(keys, values, strict=True)), static


def _unflatten(static: Any, values: Any) -> LayerInputs:
    paths, roles, without = static
    inputs = LayerInputs({}, roles, dict(without))
    inputs._moments = dict(zip(paths, values, strict=True))  # of any kind: placeholders, axes
    return inputs


jax.tree_util.register_pytree_with_keys(LayerInputs, _flatten_with_keys, _unflatten, _flatten)

# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
LayerInputs.__module__ = "jaxprune"
__test__ = {"LayerInputs": LayerInputs}
