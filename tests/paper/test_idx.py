"""The reader of IDX files, on tiny files of the same format."""

import gzip
import struct

import numpy as np
import pytest

from benchmarks.paper.idx import FILES, ImageSets, read_idx, read_image_sets

NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
assert tuple(NAMES.values()) == FILES


def idx(array, type_=8):
    """An IDX file of unsigned bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, type_, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def image_sets(n_train=7, n_test=3, side=4):
    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 256, (n, side, side), np.uint8) for n in (n_train, n_test)]
    labels = [np.arange(n, dtype=np.uint8) % 10 for n in (n_train, n_test)]
    return ImageSets(pixels[0], labels[0], pixels[1], labels[1])


def write(folder, sets, compressed=()):
    for field, name in NAMES.items():
        content = idx(getattr(sets, field))
        if field in compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("compressed", ((), ("train_images", "test_labels"), tuple(NAMES)))
def test_files_are_read_plain_or_compressed(tmp_path, compressed):
    sets = image_sets()
    read = read_image_sets(write(tmp_path, sets, compressed))
    for array, expected in zip(read, sets, strict=True):
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, expected)
    assert read.digest() == sets.digest()


def test_the_digest_changes_with_every_value():
    sets = image_sets()
    digests = {sets.digest()}
    for field in NAMES:
        array = getattr(sets, field).copy()
        array.flat[-1] ^= 1
        digests.add(sets._replace(**{field: array}).digest())
    assert len(digests) == 5


@pytest.mark.parametrize("field", NAMES)
def test_a_missing_file_is_named_with_where_such_files_come_from(tmp_path, field):
    write(tmp_path, image_sets())
    (tmp_path / NAMES[field]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{NAMES[field]} \(or {NAMES[field]}\.gz\)") as e:
        read_image_sets(tmp_path)
    assert "Debian's package dataset-fashion-mnist" in str(e.value)


def test_a_bad_file_is_refused_with_what_is_wrong(tmp_path):
    images = image_sets().train_images
    good = idx(images)
    path = tmp_path / "images"
    bad = {
        "starts with the bytes 00 00 0d 03": idx(images, type_=13),
        "starts with the bytes 00 00 08 01": idx(images[0, 0]),
        "header of 16 bytes": good[:9],
        "has 111 bytes after its header, but its shape .7, 4, 4. needs 112": good[:-1],
        "has 113 bytes after its header": good + b"\0",
    }
    for message, content in bad.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_idx(path, 3)


CUT = gzip.compress(idx(np.zeros((2, 2, 2))))[:-9]


@pytest.mark.parametrize("content", (b"no gzip", CUT), ids=("other", "cut"))
def test_a_file_that_is_not_a_complete_gzip_file_is_refused(tmp_path, content):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a complete gzip file"):
        read_idx(path, 3)


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    sets = image_sets()
    bad = {
        r"has 7 images, but .* has 6 labels": {"train_labels": sets.train_labels[:6]},
        r"has the label 10, but labels must be 0 to 9": {"test_labels": sets.test_labels + 8},
        r"training images of 4 x 4 pixels, but test images of 4 x 3": {
            "test_images": sets.test_images[..., :3]
        },
        r"has no pixels: its shape is \(0, 4, 4\)": {"test_images": sets.test_images[:0]},
    }
    for message, changes in bad.items():
        with pytest.raises(ValueError, match=message):
            read_image_sets(write(tmp_path, sets._replace(**changes)))
