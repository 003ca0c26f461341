"""The convolutional networks of the paper: InceptionV3 with its auxiliary head, and MobileNet v1.

Both follow the descriptions by their authors; `width=1.0` is the published network. The paper
counts only the kernels, so `sizes` lists biases and batch norm separately.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class ConvNorm(nn.Module):
    """The layer of InceptionV3: convolution without bias, batch norm without scale, ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    strides: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        strides = (self.strides, self.strides)
        x = nn.Conv(
            self.features, self.kernel, strides=strides, padding=self.padding, use_bias=False
        )(x)
        norm = nn.BatchNorm(
            use_running_average=not train, momentum=0.9997, epsilon=1e-3, use_scale=False
        )
        return nn.relu(norm(x))


class InceptionV3(nn.Module):
    """InceptionV3 (Szegedy et al., 2016), for float[n, 299, 299, 3] images.

    The auxiliary head reads the 17x17 grid; in training its loss has weight 0.4.
    """

    n_classes: int = 1000
    width: float = 1.0
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Main and auxiliary logits; `train` needs a `dropout` key."""
        conv = functools.partial(_conv, self.width, train)
        x = _stem(conv, x)
        for pool in (32, 64, 64):
            x = _grid_35(conv, x, pool)
        x = _to_17(conv, x)
        for middle in (128, 160, 160, 192):
            x = _grid_17(conv, x, middle)
        auxiliary = _auxiliary(conv, x, self.n_classes)
        x = _to_8(conv, x)
        for _ in range(2):
            x = _grid_8(conv, x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.n_classes, name="logits")(x), auxiliary


def _conv(
    width: float,
    train: bool,
    x: jax.Array,
    features: int,
    kernel: tuple[int, int] = (1, 1),
    strides: int = 1,
    padding: str = "SAME",
    name: str | None = None,
) -> jax.Array:
    features = max(round(features * width), 1)
    return ConvNorm(features, kernel, strides, padding, name=name)(x, train=train)


def _chain(conv: Any, x: jax.Array, *layers: Sequence[Any]) -> jax.Array:
    for layer in layers:
        x = conv(x, *layer)
    return x


def _halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def _smooth(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, -1)


def _stem(conv: Any, x: jax.Array) -> jax.Array:
    x = conv(x, 32, (3, 3), 2, "VALID", name="first")
    x = _halve(_chain(conv, x, (32, (3, 3), 1, "VALID"), (64, (3, 3))))
    return _halve(_chain(conv, x, (80,), (192, (3, 3), 1, "VALID")))


def _grid_35(conv: Any, x: jax.Array, pool: int) -> jax.Array:
    return _join(
        conv(x, 64),
        _chain(conv, x, (48,), (64, (5, 5))),
        _chain(conv, x, (64,), (96, (3, 3)), (96, (3, 3))),
        conv(_smooth(x), pool),
    )


def _to_17(conv: Any, x: jax.Array) -> jax.Array:
    last = (96, (3, 3), 2, "VALID")
    return _join(
        conv(x, 384, (3, 3), 2, "VALID"), _chain(conv, x, (64,), (96, (3, 3)), last), _halve(x)
    )


def _grid_17(conv: Any, x: jax.Array, middle: int) -> jax.Array:
    wide, tall = (1, 7), (7, 1)
    once = ((middle,), (middle, wide), (192, tall))
    twice = ((middle,), (middle, tall), (middle, wide), (middle, tall), (192, wide))
    return _join(
        conv(x, 192), _chain(conv, x, *once), _chain(conv, x, *twice), conv(_smooth(x), 192)
    )


def _to_8(conv: Any, x: jax.Array) -> jax.Array:
    last = ((3, 3), 2, "VALID")
    return _join(
        _chain(conv, x, (192,), (320, *last)),
        _chain(conv, x, (192,), (192, (1, 7)), (192, (7, 1)), (192, *last)),
        _halve(x),
    )


def _grid_8(conv: Any, x: jax.Array) -> jax.Array:
    short = conv(x, 384)
    long = _chain(conv, x, (448,), (384, (3, 3)))
    fans = [conv(y, 384, kernel) for y in (short, long) for kernel in ((1, 3), (3, 1))]
    return _join(conv(x, 320), *fans, conv(_smooth(x), 192))


def _auxiliary(conv: Any, x: jax.Array, n_classes: int) -> jax.Array:
    x = nn.avg_pool(x, (5, 5), (3, 3), "VALID")
    x = conv(x, 128, name="auxiliary_project")
    x = conv(x, 768, (5, 5), 1, "VALID", name="auxiliary_conv")
    return nn.Dense(n_classes, name="auxiliary_logits")(x.mean((1, 2)))


# (features, stride) of each block.
_MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5)
_MOBILENET_BLOCKS = (*_MOBILENET, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """MobileNet v1 (Howard et al., 2017), for float[n, 224, 224, 3] images.

    Attributes:
      n_classes: number of classes.
      width: the width multiplier: every layer has this fraction of its channels.
      blocks: (features, stride) of each depthwise-separable block.
      first: features of the first convolution.
      first_stride: stride of the first convolution.
      least: smallest number of channels of a layer.
      dropout: rate of dropout before the logits.
      convolve: computes the convolutions, with the interface of `lax.conv_general_dilated`.
    """

    n_classes: int = 1000
    width: float = 1.0
    blocks: tuple[tuple[int, int], ...] = _MOBILENET_BLOCKS
    first: int = 32
    first_stride: int = 2
    least: int = 8
    dropout: float = 1e-3
    convolve: Callable[..., jax.Array] = lax.conv_general_dilated

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of images; `train` needs a `dropout` key."""

        def norm(x: jax.Array, name: str) -> jax.Array:
            batch_norm = nn.BatchNorm(
                use_running_average=not train, momentum=0.99, epsilon=1e-3, name=name
            )
            return nn.relu6(batch_norm(x))

        def channels(features: int) -> int:
            return max(int(features * self.width), self.least)

        stride = (self.first_stride,) * 2
        conv = functools.partial(
            nn.Conv, use_bias=False, padding="SAME", conv_general_dilated=self.convolve
        )
        x = conv(channels(self.first), (3, 3), strides=stride, name="first")(x)
        x = norm(x, "first_norm")
        for i, (features, step) in enumerate(self.blocks):
            n, strides = x.shape[-1], (step, step)
            depthwise = conv(
                n, (3, 3), strides=strides, feature_group_count=n, name=f"depthwise_{i}"
            )
            x = norm(depthwise(x), f"depthwise_norm_{i}")
            x = conv(channels(features), (1, 1), name=f"pointwise_{i}")(x)
            x = norm(x, f"pointwise_norm_{i}")
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.n_classes, name="logits")(x)
