"""Images of three-digit numbers, composed of the handwritten digits in scikit-learn.

There are 1,797 real digits of 8x8 pixels: E. Alpaydin and C. Kaynak, Optical Recognition of
Handwritten Digits, UCI Machine Learning Repository, 1998. They are part of the package, so nothing
is downloaded. They are split into training and test digits first, so no part of a test image was
seen in training.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

N_PLACES = 3
HEIGHT, WIDTH = 10, 20
_SIDE = 8
_PITCH = (WIDTH - _SIDE) // (N_PLACES - 1)  # 6 pixels, so neighbours overlap by two columns


class Data(NamedTuple):
    """Images as float32[n, 10, 20, 1] in [0, 1], and their digits as int32[n, 3]."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def load(n_digits: int, n_train: int, n_test: int) -> Data:
    """Composes training images of `n_digits` random digits, and test images of the other digits.

    The images are the same for every network and every seed.

    Raises:
      ValueError: `n_digits` leaves no digit to train on, or none to test on.
    """
    train, test = split(n_digits)
    train_images, train_labels = compose(np.random.default_rng(1), *train, n_train)
    test_images, test_labels = compose(np.random.default_rng(2), *test, n_test)
    return Data(*map(jnp.asarray, (train_images, train_labels, test_images, test_labels)))


def split(n_digits: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and test digits, each as float32[n, 8, 8] in [0, 1] and int32[n].

    The split is random because the file is sorted by writer: otherwise the test digits would be by
    other writers than the training digits.
    """
    pixels, target = load_digits(return_X_y=True)
    n = len(target)
    if not 0 < n_digits < n:
        raise ValueError(f"n_digits must be between 1 and {n - 1}, got {n_digits}.")
    order = np.random.default_rng(0).permutation(n)
    digits = (pixels[order].reshape(n, _SIDE, _SIDE) / 16).astype(np.float32)
    classes = target[order].astype(np.int32)
    return (digits[:n_digits], classes[:n_digits]), (digits[n_digits:], classes[n_digits:])


def compose(
    generator: np.random.Generator, digits: np.ndarray, classes: np.ndarray, n_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images of three random digits side by side, each moved down by 0 to 2 pixels at random.

    Neighbours overlap by two columns, where the brighter pixel is shown.

    Returns:
      Images as float32[n_images, 10, 20, 1] and the classes of their digits as int32[n_images, 3],
      from left to right.
    """
    shape, n_tops = (n_images, N_PLACES), HEIGHT - _SIDE + 1
    chosen = generator.integers(len(classes), size=shape)
    tops = generator.integers(n_tops, size=shape)
    images = np.zeros((n_images, HEIGHT, WIDTH), np.float32)
    for place in range(N_PLACES):
        left = place * _PITCH
        for top in range(n_tops):
            rows = np.flatnonzero(tops[:, place] == top)
            window = (rows, slice(top, top + _SIDE), slice(left, left + _SIDE))
            images[window] = np.maximum(images[window], digits[chosen[rows, place]])
    return images[..., None], classes[chosen]
