"""Deep convolutional networks on a few of scikit-learn's handwritten digits, 8x8 pixels.

There are two studies: a MobileNet of depthwise-separable blocks, where width is the width
multiplier, and a plain deep network. Augmentation shifts, rotates and scales the images, so that
100 of them suffice to train a deep network, and accuracy stays below its maximum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.paper.convolutional import MobileNetV1
from benchmarks.paper.study import Study, Task
from jaxprune.demo.network import conv_as_matmul

_N_CLASSES = 10
# All networks share one split. The images outside the training set are enough to compare them.
_SPLIT_SEED = 0


class Digits(NamedTuple):
    """float32[n, 8, 8, 1] images in [0, 1] and int32[n] labels."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


# (channels / width, stride) of each convolution of the plain network.
_STAGES = ((1, 1), (1, 1), (2, 2), (2, 1), (2, 1), (4, 2), (4, 1))
_DEEP_STAGES = (*((1, 1),) * 4, (2, 2), *((2, 1),) * 4, (4, 2), *((4, 1),) * 3)


class PlainNet(nn.Module):
    """Convolutions with batch norm, two of stride 2, then a dense layer.

    Attributes:
      width: channels of the first convolution.
      stages: (channels / width, stride) of each convolution.
    """

    width: int
    stages: tuple[tuple[int, int], ...] = _STAGES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of float[n, 8, 8, 1] images."""
        for times, stride in self.stages:
            conv = nn.Conv(
                times * self.width,
                (3, 3),
                strides=(stride, stride),
                use_bias=False,
                conv_general_dilated=conv_as_matmul,
            )
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.95)
            x = nn.relu(norm(conv(x)))
        return nn.Dense(_N_CLASSES, name="logits")(x.mean((1, 2)))


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    **_: Any,
) -> jax.Array:
    """Computes `lax.conv_general_dilated`, dense or depthwise, without XLA's convolution.

    A dense convolution is a matrix product here, and a depthwise one a sum over the window. XLA's
    convolution is several times slower on a CPU inside a `lax.scan`.
    """
    if feature_group_count == 1:
        return conv_as_matmul(images, kernel, window_strides, padding)
    height, width = kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], (height, width), window_strides, padding)
    # Without the barrier, XLA recomputes `images` for each of the nine windows.
    padded = lax.optimization_barrier(jnp.pad(images, ((0, 0), *padding, (0, 0))))
    down, right = window_strides
    n_rows = (padded.shape[1] - height) // down + 1
    n_columns = (padded.shape[2] - width) // right + 1
    windows = [
        padded[:, i : i + down * n_rows : down, j : j + right * n_columns : right] * kernel[i, j, 0]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.sum(jnp.stack(windows), axis=0)


def load(n_train: int) -> Digits:
    """Loads the digits in a fixed shuffle; the first `n_train` are the training set."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    images = (images[order].reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    labels = labels[order].astype(np.int32)
    parts = (images[:n_train], labels[:n_train], images[n_train:], labels[n_train:])
    return Digits(*map(jnp.asarray, parts))


def augment(images: jax.Array, key: jax.Array) -> jax.Array:
    """Rotates images by up to 12 degrees, scales by up to 10%, shifts by up to a pixel."""
    n, side = images.shape[:2]
    draw = jax.random.uniform(key, (4, n), minval=-1, maxval=1)
    angle, scale = draw[0] * jnp.pi / 15, 1 + 0.1 * draw[1]
    grid = jnp.arange(side) - (side - 1) / 2
    down, right = jnp.meshgrid(grid, grid, indexing="ij")
    cos, sin = (f(angle)[:, None, None] / scale[:, None, None] for f in (jnp.cos, jnp.sin))
    middle = (side - 1) / 2
    y = cos * down + sin * right + draw[2][:, None, None] + middle
    x = cos * right - sin * down + draw[3][:, None, None] + middle

    def sample(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(image, [y, x], order=1, cval=0.0)

    return jax.vmap(sample)(images[..., 0], y, x)[..., None]


@functools.partial(jax.jit, static_argnums=0)
def answer(module: nn.Module, variables: Any, images: jax.Array) -> Any:
    """Logits of images; compiled once for all networks of one width."""
    return module.apply(variables, images)


def make_task(batch: int, n_train: int) -> Task:
    """Trains on augmented batches of the training digits; measures accuracy in percent."""
    digits = load(n_train)

    def draw(data: Digits, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        to_choose, to_augment = jax.random.split(key)
        chosen = jax.random.randint(to_choose, (batch,), 0, n_train)
        return augment(data.train_images[chosen], to_augment), data.train_labels[chosen]

    def loss(
        module: nn.Module, variables: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        images, labels = batch
        logits, changed = module.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), dict(changed)

    def measure(module: nn.Module, variables: Any, data: Digits) -> dict[str, float]:
        logits = answer(module, variables, data.test_images)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, data.test_labels)
        right = (logits.argmax(-1) == data.test_labels).mean()
        return {"accuracy": 100 * float(right), "test_loss": float(nats.mean())}

    facts = {
        "images": "scikit-learn load_digits",
        "n_train": n_train,
        "n_test": int(digits.test_labels.size),
    }
    inputs = (jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32),)
    return Task(digits, inputs, draw, loss, measure, facts)


# (features at width 64, stride) of each block. Width is the features of the first convolution.
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
_DEEP_BLOCKS = ((64, 1), (128, 2), *((128, 1),) * 3, (256, 2), *((256, 1),) * 5)


def _separable(width: int, all_blocks: Sequence[tuple[int, int]] = _BLOCKS) -> nn.Module:
    blocks = tuple((max(features * width // 64, 1), stride) for features, stride in all_blocks)
    return MobileNetV1(
        _N_CLASSES,
        blocks=blocks,
        first=width,
        first_stride=1,
        least=1,
        dropout=0.0,
        convolve=convolve,
    )


def studies(size: str) -> list[Study]:
    """Both studies in a size: "quick" (a smoke test), "cpu" (half an hour) or "gpu" (longer).

    The number of training images was chosen on dense networks, with two seeds, before any network
    was pruned. With 300 images the plain network reaches its maximum. With 100 it reaches 93.9%,
    and with a tenth of its parameters 92.2%; the separable network reaches 91.3%, and with a fifth
    of its parameters 88.5%.
    """
    steps, chunk = {"quick": (40, 20), "cpu": (1000, 100), "gpu": (8000, 200)}[size]
    batch, n_train = {"quick": (16, 200), "cpu": (32, 100), "gpu": (128, 100)}[size]
    widths = {"quick": (16, 8), "cpu": (32, 24), "gpu": (128, 96)}[size]
    few: dict[str, Any] = {"sparsities": (0.9,), "seeds": 2} if size == "quick" else {"seeds": 5}
    common: dict[str, Any] = {
        "task": lambda: make_task(batch, n_train),
        "measure": "accuracy",
        "lower_is_better": False,
        "steps": steps,
        "chunk": chunk,
        "learning_rate": 5e-3,
        **few,
    }
    modules: tuple[Callable[[int], nn.Module], ...] = (_separable, PlainNet)
    if size == "gpu":
        modules = (
            functools.partial(_separable, all_blocks=_DEEP_BLOCKS),
            functools.partial(PlainNet, stages=_DEEP_STAGES),
        )
    title = f"{n_train} training digits, test accuracy in percent: "
    return [
        Study(
            "cnn-separable",
            title + "depthwise-separable network",
            module=modules[0],
            width=widths[0],
            exclude=("first/.*", "depthwise_.*"),
            **common,
        ),
        Study(
            "cnn-plain", title + "plain deep network", module=modules[1], width=widths[1], **common
        ),
    ]
