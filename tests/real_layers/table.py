"""A case of the table of real layers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

KEY = jax.random.key(0)
IDS = jax.ShapeDtypeStruct((2, 3), jnp.int32)


class Layer(NamedTuple):
    """A model, the shapes of its variables and inputs, and the roles that its params have.

    Attributes:
      apply_fn: of the variables and the inputs.
      variables: as shapes.
      inputs: as shapes.
      roles: path -> roles separated by spaces, of all leaves that have some.
    """

    apply_fn: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]
    roles: dict[str, str]


LAYERS: dict[str, Callable[[], Layer]] = {}


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def layer(name, make):
    """Adds a case to the table; `make` returns it."""
    assert name not in LAYERS
    LAYERS[name] = make
