"""Readers of data that is not ours to pass on: PTB text, an ImageNet folder, a WMT pair of files.

Each reads what is on the user's own disk, in the form in which it is usually found, and nothing is
downloaded. Everything comes out as NumPy arrays.
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
    """int32[n] words of each part of a corpus, and the words that the numbers stand for."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    vocabulary: tuple[str, ...]


def read_ptb(folder: Path) -> Words:
    """The Penn Treebank as Mikolov prepared it: `ptb.train.txt`, `ptb.valid.txt`, `ptb.test.txt`.

    Every line ends in `<eos>`. The vocabulary is that of the training text, the most frequent words
    first; a word of the other parts that is not in it becomes `<unk>`.

    Raises:
      FileNotFoundError: naming the file that is not there.
      ValueError: a word that is not in the vocabulary, which has no `<unk>`.
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
                f"{folder}: ptb.{name}.txt has {unseen[0]!r}, which ptb.train.txt has not, and "
                "there is no <unk>. Replace rare words by <unk> in all three files."
            )
        unknown = number.get("<unk>", 0)
        arrays.append(np.array([number.get(word, unknown) for word in part], np.int32))
    return Words(arrays[0], arrays[1], arrays[2], vocabulary)


def _words_of(path: Path) -> list[str]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there. Pass the folder that holds ptb.train.txt.")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [word for line in lines if line.strip() for word in (*line.split(), "<eos>")]


def windows(words: np.ndarray, batch: int, time: int) -> Iterator[np.ndarray]:
    """int32[batch, time + 1] windows of `batch` streams, in order: states carry over between them.

    The last column of a window is the first of the next. What does not fill a window is left out.
    """
    length = len(words) // batch
    streams = words[: length * batch].reshape(batch, length)
    for start in range(0, length - time, time):
        yield streams[:, start : start + time + 1]


class Images(NamedTuple):
    """Files and int32 labels, and the class that each label stands for."""

    files: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]


def list_images(folder: Path) -> Images:
    """A folder of folders, one for each class, named after it: `train/n01440764/*.JPEG`.

    Classes are numbered in the order of their names.

    Raises:
      ValueError: there is no image in it.
    """
    classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in _IMAGES
    ]
    if not found:
        raise ValueError(f"{folder}: no images. Pass a folder such as train/, with one per class.")
    files, labels = zip(*found, strict=True)
    return Images(tuple(files), np.array(labels, np.int32), classes)


def read_image(path: Path, side: int, draw: np.random.Generator | None = None) -> np.ndarray:
    """float32[side, side, 3] in [-1, 1].

    With `draw`, a random window of 8 to 100 percent of the area, 3:4 to 4:3, mirrored half of the
    time (Szegedy et al., 2015); without, the middle 87.5 percent of each axis.
    """
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
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
    """Shuffled batches of one pass: float32[batch, side, side, 3] and int32[batch].

    What does not fill a batch is left out.
    """
    order = draw.permutation(len(images.files))
    for start in range(0, len(order) - batch + 1, batch):
        chosen = order[start : start + batch]
        pixels = [read_image(images.files[i], side, draw) for i in chosen]
        yield np.stack(pixels), images.labels[chosen]


class Corpus(NamedTuple):
    """Sentences as numbers, without begin and end, and the vocabulary of each side."""

    source: list[list[int]]
    target: list[list[int]]
    vocabularies: tuple[tuple[str, ...], tuple[str, ...]]


def read_pair(source: Path, target: Path, n_words: int = 36_548, longest: int = 50) -> Corpus:
    """Two text files whose lines translate each other, words or word pieces between spaces.

    Args:
      source: one sentence on each line.
      target: its translation on the same line.
      n_words: size of each vocabulary, the most frequent words after `<pad>`, `<s>`, `</s>` and
        `<unk>`.
      longest: pairs with a longer side are left out, and so are those with an empty one.

    Raises:
      ValueError: the files differ in length.
    """
    lines = [path.read_text(encoding="utf-8").splitlines() for path in (source, target)]
    if len(lines[0]) != len(lines[1]):
        raise ValueError(
            f"{source} has {len(lines[0]):,} lines and {target} has {len(lines[1]):,}: line n of "
            "one must be the translation of line n of the other."
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
    """Shuffled batches of one pass: int32 sources, and targets with begin and end.

    A batch holds pairs of about one length, rounded up to a multiple of `bucket`, so that few
    shapes are compiled.
    """
    of_length: dict[int, list[int]] = {}
    for i in draw.permutation(len(corpus.source)):
        length = max(len(corpus.source[i]), len(corpus.target[i]))
        place = of_length.setdefault(-(-length // bucket) * bucket, [])
        place.append(int(i))
        if len(place) == batch:
            rounded = -(-length // bucket) * bucket
            yield (
                _padded([corpus.source[j] for j in place], rounded),
                _padded([[BEGIN, *corpus.target[j], END] for j in place], rounded + 2),
            )
            place.clear()


def _padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    out = np.full((len(rows), length), PAD, np.int32)
    for row, numbers in zip(out, rows, strict=True):
        row[: len(numbers)] = numbers
    return out
