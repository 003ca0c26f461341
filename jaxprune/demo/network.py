"""The network, and the widths with which it has a given number of parameters.

Five convolutions end with one column of channels for each place of the number, averaged over the
rows; one dense layer, the same for all places, names the digit. A shallower network has only the
three convolutions that make the images smaller. The convolutions are `nn.Conv`
layers, but each is computed as one matrix product: with XLA's own convolutions inside a `lax.scan`,
a step takes 2 to 25 times longer on CPUs.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.demo.data import HEIGHT, WIDTH

N_CLASSES = 10
_STRIDES = ((2, 2), (1, 1), (2, 2), (1, 1), (1, 2))  # 10x20 pixels become 3x3
N_LAYERS = len(_STRIDES)
_STAY = [i for i, strides in enumerate(_STRIDES) if strides != (1, 1)]
N_SHALLOW = len(_STAY)


class ConvNet(nn.Module):
    """Maps float[n, 10, 20, 1] images to float[n, 3, 10] logits.

    Attributes:
      widths: channels of the five convolutions; or of three, those that make the images smaller.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits of a batch of images."""
        x = images
        layers = _STAY if len(self.widths) == N_SHALLOW else range(N_LAYERS)
        for width, strides in zip(self.widths, [_STRIDES[i] for i in layers], strict=True):
            x = nn.relu(
                nn.Conv(width, (3, 3), strides=strides, conv_general_dilated=conv_as_matmul)(x)
            )
        return nn.Dense(N_CLASSES)(x.mean(1))


def shapes_of(widths: tuple[int, ...]) -> Any:
    """The params of a `ConvNet` as `jax.ShapeDtypeStruct`s."""
    image = jax.ShapeDtypeStruct((1, HEIGHT, WIDTH, 1), jnp.float32)
    return jax.eval_shape(ConvNet(widths).init, jax.random.key(0), image)["params"]


def init_params(seed: int, widths: tuple[int, ...]) -> Any:
    """Initial params: normal kernels of variance 1 / inputs, as flax's, and biases of zero.

    They are drawn by NumPy, because compiling JAX's generators takes XLA five seconds per network
    on a CPU.
    """
    generator = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim < 2:
            return np.zeros(leaf.shape, leaf.dtype)
        scale = 1 / math.sqrt(math.prod(leaf.shape[:-1]))
        return (scale * generator.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(draw, shapes_of(widths))


def logits_of(widths: tuple[int, ...], params: Any, images: jax.Array) -> jax.Array:
    """The logits of a `ConvNet` with these params."""
    return cast(jax.Array, ConvNet(widths).apply({"params": params}, images))


def conv_as_matmul(
    images: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **_: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` for NHWC images and an HWIO kernel, without dilation or groups."""
    height, width, n_in, n_out = kernel.shape
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], window_strides, padding)
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    down, right = window_strides
    n_rows = (padded.shape[1] - height) // down + 1
    n_columns = (padded.shape[2] - width) // right + 1
    patches = [
        padded[:, i : i + down * n_rows : down, j : j + right * n_columns : right]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(patches, -1) @ kernel.reshape(height * width * n_in, n_out)


def n_params_of(widths: Sequence[int]) -> int:
    """The number of parameters of a `ConvNet`, biases included."""
    convs = sum((9 * a + 1) * b for a, b in itertools.pairwise((1, *widths)))
    return convs + (widths[-1] + 1) * N_CLASSES


def n_biases_of(widths: Sequence[int]) -> int:
    """The number of biases of a `ConvNet`, which are never pruned."""
    return sum(widths) + N_CLASSES


def shallower(widths: tuple[int, ...]) -> tuple[int, ...]:
    """The widths of the convolutions that a shallower network has, too.

    Example:
      >>> shallower((16, 16, 32, 32, 48))
      (16, 32, 48)
    """
    return tuple(widths[i] for i in _STAY)


def match_widths(widths: tuple[int, ...], n_params: int) -> tuple[int, ...]:
    """Widths in about the proportions of `widths`, with nearly `n_params` parameters.

    Every first width up to twice the given one is tried. The others are scaled in proportion, then
    changed by at most one channel (two in a shallower network), and at least 1. Among those with
    `n_params` parameters within one percent, the widths nearest to the proportions win; if there
    are none, the nearest number of parameters.
    """
    most = 2 if len(widths) == N_SHALLOW else 1
    candidates = []
    for first in range(1, 2 * widths[0] + 1):
        scaled = [w * first / widths[0] for w in widths[1:]]
        for moves in itertools.product(range(-most, most + 1), repeat=len(scaled)):
            others = [max(round(w) + m, 1) for w, m in zip(scaled, moves, strict=True)]
            off = abs(n_params_of((first, *others)) - n_params)
            skew = sum(abs(w - s) / s for w, s in zip(others, scaled, strict=True))
            candidates.append((0 if off <= 0.01 * n_params else off, skew, (first, *others)))
    return min(candidates)[2]
