"""The network, and the widths with which it has a given number of parameters.

Three convolutions, the mean over the image, and one dense layer. The convolutions are `nn.Conv`
layers, but each is computed as one matrix product: with XLA's own convolutions inside a `lax.scan`,
a step takes 2 to 25 times longer on CPUs.
"""

import itertools
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

N_CLASSES = 10
_STRIDES = (1, 2, 1)


class ConvNet(nn.Module):
    """Maps float[n, 8, 8, 1] images to float[n, 10] logits; `widths` are the channels per layer."""

    widths: tuple[int, int, int]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits of a batch of images."""
        x = images
        for width, stride in zip(self.widths, _STRIDES, strict=True):
            strides = (stride, stride)
            x = nn.relu(
                nn.Conv(width, (3, 3), strides=strides, conv_general_dilated=conv_as_matmul)(x)
            )
        return nn.Dense(N_CLASSES)(x.mean((1, 2)))


def init_params(key: jax.Array, widths: tuple[int, int, int]) -> Any:
    """Initial params of a `ConvNet`."""
    return ConvNet(widths).init(key, jnp.zeros((1, 8, 8, 1)))["params"]


def logits_of(widths: tuple[int, int, int], params: Any, images: jax.Array) -> jax.Array:
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


def match_widths(widths: tuple[int, int, int], n_params: int) -> tuple[int, int, int]:
    """Widths in about the proportions of `widths`, with nearly `n_params` parameters.

    Every first width is tried. The other two are scaled in proportion, then changed by at most two
    channels, and at least 1. The number of parameters nearest to `n_params` wins, and among equal
    distances the widths nearest to the proportions.
    """
    candidates = []
    for first in range(1, widths[0] + 1):
        scaled = [w * first / widths[0] for w in widths[1:]]
        for moves in itertools.product(range(-2, 3), repeat=2):
            second, third = (max(round(w) + m, 1) for w, m in zip(scaled, moves, strict=True))
            off = abs(n_params_of((first, second, third)) - n_params)
            skew = abs(second - scaled[0]) + abs(third - scaled[1])
            candidates.append((off, skew, (first, second, third)))
    return min(candidates)[2]
