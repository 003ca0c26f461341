"""Reads images and labels from the four IDX files of MNIST and of data sets in its format.

    train-images-idx3-ubyte, train-labels-idx1-ubyte     training set
    t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte       test set

Each file may be plain or compressed (`.gz`). Nothing is downloaded. Fashion-MNIST (Xiao et al.,
2017) is one of these data sets; Debian's package `dataset-fashion-mnist` installs it in
`share/datasets/fashion-mnist` below `/usr`.

An IDX file starts with two zero bytes, a byte for the type of the values (8: unsigned bytes) and a
byte for the number of axes, then has the length of each axis as a big-endian uint32, then the
values in row-major order.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)

_UNSIGNED_BYTES = 8
_SOURCE = (
    f"Pass the folder that contains the four files {', '.join(FILES)}, plain or as .gz. "
    "Debian's package dataset-fashion-mnist installs them in /usr/share/datasets/fashion-mnist."
)


class ImageSets(NamedTuple):
    """uint8[n, height, width] images and uint8[n] labels of the training set and the test set."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of all values: another data set has another."""
        sha = hashlib.sha256()
        for array in self:
            sha.update(np.ascontiguousarray(array))
        return sha.hexdigest()[:16]


def read_image_sets(folder: Path, n_classes: int = 10) -> ImageSets:
    """Reads the four files of a folder.

    Args:
      folder: contains the files; a plain file is preferred to its `.gz`.
      n_classes: labels must be below this number.

    Raises:
      FileNotFoundError: a file is missing; the message names it and says where to get the files.
      ValueError: a file is not a complete IDX file of bytes, or the files do not fit together.
    """
    parts = []
    for part in ("train", "t10k"):
        images_path = _path_of(folder, f"{part}-images-idx3-ubyte")
        labels_path = _path_of(folder, f"{part}-labels-idx1-ubyte")
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if not images.size:
            raise ValueError(f"{images_path} has no pixels: its shape is {images.shape}. {_SOURCE}")
        if len(images) != len(labels):
            raise ValueError(
                f"{images_path} has {len(images):,} images, but {labels_path} has {len(labels):,} "
                "labels. Pass a folder whose files belong together."
            )
        if labels.max() >= n_classes:
            raise ValueError(
                f"{labels_path} has the label {labels.max()}, but labels must be 0 to "
                f"{n_classes - 1}. Pass a data set with {n_classes} classes."
            )
        parts += [images, labels]
    sets = ImageSets(*parts)
    if sets.train_images.shape[1:] != sets.test_images.shape[1:]:
        raise ValueError(
            f"{folder}: training images of {_size_of(sets.train_images)} pixels, but test images "
            f"of {_size_of(sets.test_images)}. Pass a folder whose files belong together."
        )
    return sets


def read_idx(path: Path, n_axes: int) -> np.ndarray:
    """Reads a file as uint8 with `n_axes` axes.

    Raises:
      ValueError: it is not a complete IDX file of unsigned bytes with this number of axes.
    """
    content = _content_of(path)
    start = bytes((0, 0, _UNSIGNED_BYTES, n_axes))
    n_header = 4 * (1 + n_axes)
    if content[:4] != start or len(content) < n_header:
        raise ValueError(
            f"{path} starts with the bytes {content[:4].hex(' ')}, but an IDX file of unsigned "
            f"bytes with {n_axes} {'axis' if n_axes == 1 else 'axes'} starts with {start.hex(' ')} "
            f"and has a header of {n_header} bytes. {_SOURCE}"
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", n_axes, offset=4))
    n_values = len(content) - n_header
    if n_values != math.prod(shape):
        raise ValueError(
            f"{path} has {n_values:,} bytes after its header, but its shape {shape} needs "
            f"{math.prod(shape):,}. The copy is not complete: install or copy the file again."
        )
    return np.frombuffer(content, np.uint8, offset=n_header).reshape(shape)


def _path_of(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder / name} (or {name}.gz) does not exist. {_SOURCE}")


def _content_of(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not a complete gzip file ({error}). Install or copy the file again."
        ) from error


def _size_of(images: np.ndarray) -> str:
    return " x ".join(map(str, images.shape[1:]))
