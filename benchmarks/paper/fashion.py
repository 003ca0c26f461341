"""Deep convolutional networks on real images: Fashion-MNIST, or other data in its format.

There are two studies: a plain network of eight convolutions, and a network of depthwise-separable
blocks as in MobileNet. Each is pruned with uniform sparsity, as in the paper, and with ERK, and
compared with small dense networks of as many nonzeros: narrower ones, and ones with half the
layers. Runs with the same seed are paired: they draw the same batches, shifts and mirrorings.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.paper.convolutional import MobileNetV1
from benchmarks.paper.digits import PlainNet, convolve
from benchmarks.paper.idx import ImageSets, read_image_sets
from benchmarks.paper.paired import table
from benchmarks.paper.store import by_sparsity
from benchmarks.paper.study import Study, Task, networks_with_erk

__all__ = ["networks", "order", "studies", "table"]

SPARSITIES = (0.5, 0.75, 0.8, 0.875, 0.9, 0.95, 0.975)
_N_CLASSES = 10
_LARGEST_SHIFT = 2  # pixels
_TEST_BATCH = 1000  # images per forward pass on the test set
# Steps by size, and steps between two tests.
_STEPS = {
    "quick": (40, 20),
    "cpu": (4800, 800),
    "long": (14_400, 800),
    "gpu": (24_000, 1000),
}

# (channels at width 128, stride) of each convolution, or of each separable block.
Stages = tuple[tuple[int, int], ...]


class Depths(NamedTuple):
    """A network with all of its layers, and with half of them."""

    full: Stages
    half: Stages


# The first two strides keep training cheap on a CPU: the third convolution sees 7x7 pixels.
_PLAIN = Depths(
    ((32, 2), (32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1), (128, 1)),
    ((32, 2), (32, 2), (64, 2), (128, 2)),
)
_PLAIN_GPU = Depths(
    ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1), (128, 1)),
    ((32, 1), (64, 2), (128, 2), (128, 1)),
)
# A dense convolution comes before the blocks.
_BLOCKS = Depths(
    ((16, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)), ((16, 2), (64, 2), (128, 2))
)
_BLOCKS_GPU = Depths(
    ((16, 1), (32, 2), (32, 1), (64, 2), *((64, 1),) * 4, (128, 2), (128, 1)),
    ((16, 1), (32, 2), (64, 2), (64, 1), (128, 2)),
)


def _scaled(stages: Stages, width: int) -> Stages:
    return tuple((max(round(channels * width / 128), 1), stride) for channels, stride in stages)


def _plain(width: int, *, stages: Stages) -> nn.Module:
    return PlainNet(1, stages=_scaled(stages, width))


def _separable(width: int, *, stages: Stages, first_stride: int) -> nn.Module:
    """At width 512 the last block has 512 channels."""
    first = max(round(32 * width / 512), 1)
    return MobileNetV1(
        _N_CLASSES,
        blocks=_scaled(stages, width),
        first=first,
        first_stride=first_stride,
        least=1,
        dropout=0.0,
        convolve=convolve,
    )


class Data(NamedTuple):
    """uint8[n, height, width, 1] images and int32[n] labels."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def data_of(sets: ImageSets) -> Data:
    """The images with a channel axis, on the default device."""
    images = [jnp.asarray(x[..., None]) for x in (sets.train_images, sets.test_images)]
    labels = [jnp.asarray(x, jnp.int32) for x in (sets.train_labels, sets.test_labels)]
    return Data(images[0], labels[0], images[1], labels[1])


def to_floats(images: jax.Array) -> jax.Array:
    """uint8 pixels as float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def augment(images: jax.Array, key: jax.Array) -> jax.Array:
    """Shifts each image by up to two pixels in each direction and mirrors half of the images.

    The pixels that a shift leaves free are 0, the background. The dtype stays the same.
    """
    n, height, width, channels = images.shape
    to_shift, to_mirror = jax.random.split(key)
    border = _LARGEST_SHIFT
    padded = jnp.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
    corners = jax.random.randint(to_shift, (n, 2), 0, 2 * border + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    shifted = jax.vmap(cut)(padded, corners)
    mirrored = jax.random.bernoulli(to_mirror, shape=(n, 1, 1, 1))
    return jnp.where(mirrored, shifted[:, :, ::-1], shifted)


def make_task(sets: ImageSets, batch: int) -> Task:
    """Trains on augmented batches, drawn with replacement; measures test accuracy in percent."""
    data = data_of(sets)
    n_train, height, width, _ = data.train_images.shape

    def draw(data: Data, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        to_choose, to_augment = jax.random.split(key)
        chosen = jax.random.randint(to_choose, (batch,), 0, n_train)
        images = augment(data.train_images[chosen], to_augment)
        return to_floats(images), data.train_labels[chosen]

    facts = {
        "images": "IDX files",
        "digest": sets.digest(),
        "pixels": [height, width],
        "n_train": n_train,
        "n_test": len(data.test_labels),
        "batch": batch,
    }
    inputs = (jax.ShapeDtypeStruct((1, height, width, 1), jnp.float32),)
    return Task(data, inputs, draw, _loss, _measure, facts)


def _loss(module: nn.Module, variables: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    images, labels = batch
    logits, changed = module.apply(variables, images, train=True, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), dict(changed)


@functools.partial(jax.jit, static_argnums=0)
def _test(module: nn.Module, variables: Any, images: jax.Array, labels: jax.Array) -> Any:
    """Number of right answers, and the sum of the losses."""
    logits = module.apply(variables, to_floats(images))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (logits.argmax(-1) == labels).sum(), nats.sum()


def _measure(module: nn.Module, variables: Any, data: Data) -> dict[str, float]:
    """Tests in batches, because the windows of all images at once would need gigabytes."""
    n = len(data.test_labels)
    parts = [slice(start, start + _TEST_BATCH) for start in range(0, n, _TEST_BATCH)]
    sums = [
        _test(module, variables, data.test_images[part], data.test_labels[part]) for part in parts
    ]
    right, nats = (np.sum([float(x) for x in column]) for column in zip(*sums, strict=True))
    return {"accuracy": 100 * float(right) / n, "test_loss": float(nats) / n}


def studies(size: str, folder: Path) -> list[Study]:
    """Both studies in a size.

    On a CPU, the plain network has 0.58M parameters and 3.5M multiply-adds per image. The learning
    rate is a usual one for AdamW with batch norm; it was not tuned.

    Args:
      size: "quick" (a smoke test), "cpu", "long" (the same for three times as many steps), or
        "gpu" (full resolution, longer).
      folder: of the four IDX files.
    """
    sets = read_image_sets(folder, _N_CLASSES)
    steps, chunk = _STEPS[size]
    batch = 16 if size == "quick" else 128
    widths = {"quick": (16, 64), "gpu": (256, 1024)}.get(size, (128, 512))
    suffix, training = ("-long", ", trained longer") if size == "long" else ("", "")
    few: dict[str, Any] = {"sparsities": (0.9,), "seeds": 2} if size == "quick" else {}
    plain, separable = (_PLAIN_GPU, _BLOCKS_GPU) if size == "gpu" else (_PLAIN, _BLOCKS)
    stride = 1 if size == "gpu" else 2
    common: dict[str, Any] = {
        "task": lambda: make_task(sets, batch),
        "measure": "accuracy",
        "lower_is_better": False,
        "steps": steps,
        "chunk": chunk,
        "learning_rate": 3e-3,
        "sparsities": SPARSITIES,
        "track": True,
    }
    block = functools.partial(_separable, first_stride=stride)
    return [
        Study(
            f"fashion-plain{suffix}",
            f"Real images, test accuracy in percent: eight convolutions{training}",
            module=functools.partial(_plain, stages=plain.full),
            shallow=functools.partial(_plain, stages=plain.half),
            width=widths[0],
            **common | few,
        ),
        Study(
            f"fashion-separable{suffix}",
            "Real images, test accuracy in percent: "
            f"{len(separable.full)} separable blocks{training}",
            module=functools.partial(block, stages=separable.full),
            shallow=functools.partial(block, stages=separable.half),
            width=widths[1],
            exclude=("first/.*", "depthwise_.*"),
            **common | few,
        ),
    ]


networks = networks_with_erk
order = by_sparsity((0.9, 0.95, 0.8, 0.975, 0.875, 0.75, 0.5))
