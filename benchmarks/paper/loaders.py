"""Readers of data that we may not distribute: PTB text, ImageNet folders and pairs of WMT files.

They read files on your disk in the usual formats and download nothing. The results are NumPy arrays
or lists of integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

PAD, BEGIN, END, UNKNOWN = range(4)
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_IMAGES = {".jpeg", ".jpg", ".png"}


class Words(NamedTuple):
    """The three parts of a corpus as int32[n] word numbers, and the word of each number."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    vocabulary: tuple[str, ...]


def read_ptb(folder: Path) -> Words:
    """Reads the Penn Treebank as Mikolov prepared it: `ptb.train.txt`, `.valid.txt`, `.test.txt`.

    Every line ends with `<eos>`. The vocabulary holds the words of the training text, the most
    frequent first. Words of the other texts that are not in it become `<unk>`.

    Raises:
      FileNotFoundError: a file is missing; the message names it.
      ValueError: a word is not in the vocabulary, and the vocabulary has no `<unk>`.
    """
    parts = [_words_of(folder / f"ptb.{part}.txt") for part in ("train", "valid", "test")]
    times = Counter(parts[0])
    vocabulary = tuple(sorted(times, key=lambda word: (-times[word], word)))
    number = {word: i for i, word in enumerate(vocabulary)}
    arrays = []
    for name, part in zip(("train", "valid", "test"), parts, strict=True):
        unseen = [word for word in part if word not in number]
        if unseen and "<unk>" not in number:
            raise ValueError(
                f"{folder}: ptb.{name}.txt has {unseen[0]!r}, but ptb.train.txt has neither this "
                "word nor <unk>. Replace rare words with <unk> in all three files."
            )
        unknown = number.get("<unk>", 0)
        arrays.append(np.array([number.get(word, unknown) for word in part], np.int32))
    return Words(arrays[0], arrays[1], arrays[2], vocabulary)


def _words_of(path: Path) -> list[str]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Pass the folder that contains ptb.train.txt."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return [word for line in lines if line.strip() for word in (*line.split(), "<eos>")]


def windows(words: np.ndarray, batch: int, time: int) -> Iterator[np.ndarray]:
    """Yields int32[batch, time + 1] windows of `batch` streams in order, for a carried LSTM state.

    The last column of a window is the first column of the next. An incomplete window is dropped.
    """
    length = len(words) // batch
    streams = words[: length * batch].reshape(batch, length)
    for start in range(0, length - time, time):
        yield streams[:, start : start + time + 1]


class Images(NamedTuple):
    """Image files, their int32 labels, and the name of the class of each label."""

    files: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]


def list_images(folder: Path) -> Images:
    """Lists the images of a folder with one subfolder per class, such as `train/n01440764/*.JPEG`.

    Classes are numbered in the order of their names.

    Raises:
      ValueError: the folder has no images.
    """
    classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    labelled_files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in _IMAGES
    ]
    if not labelled_files:
        raise ValueError(
            f"{folder}: no images in its subfolders. Pass a folder such as train/, which has one "
            "subfolder of images per class."
        )
    files, labels = zip(*labelled_files, strict=True)
    return Images(tuple(files), np.array(labels, np.int32), classes)


def read_image(path: Path, side: int, draw: np.random.Generator | None = None) -> np.ndarray:
    """Reads an image as float32[side, side, 3] in [-1, 1].

    With `draw`, it is a random crop with 8 to 100% of the area and an aspect ratio of 3:4 to 4:3,
    mirrored half of the time (Szegedy et al., 2015). Otherwise it is the central 87.5% of each
    axis.
    """
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height = image.size
    if draw is None:
        x, y = (round(n * 0.0625) for n in (width, height))
        box = (x, y, width - x, height - y)
    else:
        box = _window(width, height, draw)
    image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    return pixels[:, ::-1] if draw is not None and draw.random() < 0.5 else pixels


def _window(width: int, height: int, draw: np.random.Generator) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = draw.uniform(0.08, 1) * width * height
        aspect = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
            return x, y, x + w, y + h
    return 0, 0, width, height


def image_batches(
    images: Images, batch: int, side: int, draw: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields shuffled batches of one pass: float32[batch, side, side, 3] and int32[batch].

    An incomplete batch is dropped.
    """
    order = draw.permutation(len(images.files))
    for start in range(0, len(order) - batch + 1, batch):
        chosen = order[start : start + batch]
        pixels = [read_image(images.files[i], side, draw) for i in chosen]
        yield np.stack(pixels), images.labels[chosen]


class Corpus(NamedTuple):
    """Sentences as word numbers without begin and end tokens, and the vocabulary of each side."""

    source: list[list[int]]
    target: list[list[int]]
    vocabularies: tuple[tuple[str, ...], tuple[str, ...]]


def read_pair(source: Path, target: Path, n_words: int = 36_548, longest: int = 50) -> Corpus:
    """Reads two text files whose lines translate each other; spaces separate words or pieces.

    Args:
      source: file with one sentence per line.
      target: file with the translation of each sentence on the same line.
      n_words: size of each vocabulary: `<pad>`, `<s>`, `</s>`, `<unk>`, then the most frequent
        words.
      longest: pairs in which a sentence is longer than this, or empty, are dropped.

    Raises:
      ValueError: the files have different numbers of lines.
    """
    lines = [path.read_text(encoding="utf-8").splitlines() for path in (source, target)]
    if len(lines[0]) != len(lines[1]):
        raise ValueError(
            f"{source} has {len(lines[0]):,} lines and {target} has {len(lines[1]):,}. Pass files "
            "in which every line is the translation of the same line in the other file."
        )
    split = [[line.split() for line in part] for part in lines]
    kept = [
        pair for pair in zip(*split, strict=True) if all(0 < len(side) <= longest for side in pair)
    ]
    sides = [[pair[i] for pair in kept] for i in (0, 1)]
    vocabularies = [_vocabulary(side, n_words) for side in sides]
    numbers = [_numbers(side, words) for side, words in zip(sides, vocabularies, strict=True)]
    return Corpus(numbers[0], numbers[1], (vocabularies[0], vocabularies[1]))


def _vocabulary(sentences: Iterable[Sequence[str]], n_words: int) -> tuple[str, ...]:
    times = Counter(word for sentence in sentences for word in sentence)
    for word in _SPECIAL:
        times.pop(word, None)
    ordered = sorted(times, key=lambda word: (-times[word], word))
    return (*_SPECIAL, *ordered[: n_words - len(_SPECIAL)])


def _numbers(sentences: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> list[list[int]]:
    number = {word: i for i, word in enumerate(vocabulary)}
    return [[number.get(word, UNKNOWN) for word in sentence] for sentence in sentences]


def pair_batches(
    corpus: Corpus, batch: int, draw: np.random.Generator, bucket: int = 10
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields shuffled batches of one pass: int32 sources, and targets with begin and end tokens.

    The pairs of a batch have similar lengths, and it is padded to a multiple of `bucket`, so that
    only a few shapes are compiled.
    """
    by_length: dict[int, list[int]] = {}
    for i in draw.permutation(len(corpus.source)):
        length = max(len(corpus.source[i]), len(corpus.target[i]))
        waiting = by_length.setdefault(-(-length // bucket) * bucket, [])
        waiting.append(int(i))
        if len(waiting) == batch:
            rounded = -(-length // bucket) * bucket
            yield (
                _padded([corpus.source[j] for j in waiting], rounded),
                _padded([[BEGIN, *corpus.target[j], END] for j in waiting], rounded + 2),
            )
            waiting.clear()


def _padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    padded = np.full((len(rows), length), PAD, np.int32)
    for row, numbers in zip(padded, rows, strict=True):
        row[: len(numbers)] = numbers
    return padded
