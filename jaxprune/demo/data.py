"""The handwritten digits in scikit-learn: 1,797 real images of 8x8 pixels, ten classes.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998. They are part of the package, so nothing is downloaded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits


class Data(NamedTuple):
    """Images as float32[n, 8, 8, 1] in [0, 1], labels as int32[n]."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def load(n_train: int) -> Data:
    """Splits the images at random into `n_train` for training and the rest for testing.

    The split is the same for every network and every seed. It is random because the file is sorted
    by writer: otherwise the test images would be by other writers than the training images.

    Raises:
      ValueError: `n_train` leaves no image to train on, or none to test on.
    """
    pixels, target = load_digits(return_X_y=True)
    n = len(target)
    if not 0 < n_train < n:
        raise ValueError(f"n_train must be between 1 and {n - 1}, got {n_train}.")
    order = np.asarray(jax.random.permutation(jax.random.key(0), n))
    images = jnp.asarray(pixels[order].reshape(n, 8, 8, 1) / 16, jnp.float32)
    labels = jnp.asarray(target[order], jnp.int32)
    return Data(images[:n_train], labels[:n_train], images[n_train:], labels[n_train:])
