"""Real layers of linen, NNX, Equinox, Haiku and plain JAX, and the roles of their params' axes.

`LAYERS` maps a name to a function that makes the case. Everything is made of shapes: nothing is
computed until a test asks for arrays.
"""

from real_layers import equinox_layers, haiku_layers, jax_layers, linen_layers, nnx_layers
from real_layers.table import LAYERS, Layer

__all__ = ["LAYERS", "Layer", "equinox_layers", "haiku_layers", "jax_layers", "linen_layers"]
__all__ += ["nnx_layers"]
