"""Translation of generated number words, money and dates between English and German.

`num2words` and the locale data of Babel generate any number of phrases. Byte-pair encoding, learned
on the training pairs, splits them into pieces, similar to the word pieces of GNMT. Decoding is
greedy.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.paper.recurrent import Translator
from benchmarks.paper.study import Study, Task

PAD, BEGIN, END, UNKNOWN = range(4)
_SPECIAL = 4
_DATE_FORMATS = ("full", "long", "medium", "EEEE, d MMMM", "MMMM y")

Pair = tuple[str, str]


class Pairs(NamedTuple):
    """Padded int32[n, time] pieces; targets begin with `BEGIN` and end with `END`."""

    train_source: jax.Array
    train_target: jax.Array
    test_source: jax.Array
    test_target: jax.Array


def _number(draw: random.Random, most_digits: int) -> int:
    """A random number; every number of digits is equally likely."""
    digits = draw.randint(1, most_digits)
    return draw.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _words(value: float, kind: str, **more: Any) -> Pair:
    from num2words import num2words  # pyright: ignore[reportMissingImports]

    english, german = (num2words(value, lang=lang, to=kind, **more) for lang in ("en", "de"))
    return english, german


def _date(draw: random.Random) -> Pair:
    from babel.dates import format_date  # pyright: ignore[reportMissingImports]

    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=draw.randrange(73_000))
    style = draw.choice(_DATE_FORMATS)
    english, german = (format_date(day, style, locale=locale) for locale in ("en_US", "de_DE"))
    return english, german


_KINDS: tuple[Callable[[random.Random], Pair], ...] = (
    lambda draw: _words(_number(draw, 9), "cardinal"),
    lambda draw: _words(1 + _number(draw, 6), "ordinal"),
    lambda draw: _words(draw.randrange(1100, 2100), "year"),
    lambda draw: _words(_number(draw, 7) / 100, "currency", currency=draw.choice(("EUR", "USD"))),
    _date,
)


def make_pairs(n: int, seed: int = 0) -> list[Pair]:
    """`n` random (English, German) pairs of all kinds; no phrase occurs twice."""
    draw = random.Random(seed)
    pairs: list[Pair] = []
    seen: set[str] = set()
    while len(pairs) < n:
        english, german = draw.choice(_KINDS)(draw)
        if f"en {english}" not in seen and f"de {german}" not in seen:
            seen |= {f"en {english}", f"de {german}"}
            pairs.append((english, german))
    return pairs


class Pieces:
    """Byte-pair encoding over characters, learned on `texts`.

    A space belongs to the piece that follows it. Characters that do not occur in `texts` become
    `UNKNOWN`.
    """

    def __init__(self, texts: Sequence[str], n_merges: int):
        words = Counter(word for text in texts for word in _split(text))
        self.merges: dict[tuple[str, str], int] = {}
        spelled = {word: tuple(word) for word in words}
        for rank in range(n_merges):
            neighbours: Counter[tuple[str, str]] = Counter()
            for word, times in words.items():
                for pair in itertools.pairwise(spelled[word]):
                    neighbours[pair] += times
            if not neighbours:
                break
            best = min(neighbours, key=lambda pair: (-neighbours[pair], pair))
            self.merges[best] = rank
            spelled = {word: _merge(pieces, best) for word, pieces in spelled.items()}
        alphabet = {letter for word in words for letter in word}
        self.pieces = sorted(alphabet | {a + b for a, b in self.merges})
        self.number = {piece: i + _SPECIAL for i, piece in enumerate(self.pieces)}
        self._cut = functools.cache(self._cut_word)

    def __len__(self) -> int:
        return len(self.pieces) + _SPECIAL

    def encode(self, text: str) -> list[int]:
        """The numbers of the pieces of a text, without begin and end tokens."""
        cut = (piece for word in _split(text) for piece in self._cut(word))
        return [self.number.get(piece, UNKNOWN) for piece in cut]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of the pieces before the first `END`; other numbers without a piece add none."""
        pieces = []
        for number in numbers:
            if number == END:
                break
            pieces.append(self.pieces[number - _SPECIAL] if _SPECIAL <= number < len(self) else "")
        return "".join(pieces)

    def _cut_word(self, word: str) -> tuple[str, ...]:
        pieces = tuple(word)
        while len(pieces) > 1:
            neighbours = set(itertools.pairwise(pieces)) & self.merges.keys()
            if not neighbours:
                break
            pieces = _merge(pieces, min(neighbours, key=self.merges.__getitem__))
        return pieces


def _split(text: str) -> list[str]:
    first, *others = text.split(" ")
    return [first, *(f" {word}" for word in others)]


def _merge(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    i = 0
    while i < len(pieces):
        neighbours = pieces[i : i + 2]
        merged.append("".join(neighbours) if neighbours == pair else pieces[i])
        i += 2 if neighbours == pair else 1
    return tuple(merged)


def as_array(rows: Sequence[Sequence[int]], length: int) -> jax.Array:
    """Pads rows with `PAD` to an int32[n, length] array."""
    padded = np.full((len(rows), length), PAD, np.int32)
    for row, numbers in zip(padded, rows, strict=True):
        row[: len(numbers)] = numbers
    return jnp.asarray(padded)


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU by sacrebleu with its default tokenization."""
    import sacrebleu  # pyright: ignore[reportMissingImports]

    return sacrebleu.corpus_bleu(list(translations), [list(references)]).score


def make_data(pairs: Sequence[Pair], n_train: int, n_merges: int) -> tuple[Pairs, Pieces, Pieces]:
    """Encodes the pairs, the first `n_train` to train on, with pieces learned on these."""
    sides = [Pieces([pair[i] for pair in pairs[:n_train]], n_merges) for i in (0, 1)]
    source = [sides[0].encode(pair[0]) + [END] for pair in pairs]
    target = [[BEGIN, *sides[1].encode(pair[1]), END] for pair in pairs]
    arrays = [as_array(rows, max(map(len, rows))) for rows in (source, target)]
    arrays_by_part = [
        array[part] for part in (slice(n_train), slice(n_train, None)) for array in arrays
    ]
    return Pairs(*arrays_by_part), sides[0], sides[1]


@functools.partial(jax.jit, static_argnums=(0, 3))
def greedy(module: nn.Module, variables: Any, source: jax.Array, n_steps: int) -> Any:
    """Greedy decoding to int[n, n_steps] pieces; compiled once for all networks of one width."""
    return module.apply(variables, source, n_steps, BEGIN, method="greedy")


def make_task(to_german: bool, batch: int, n_train: int, n_test: int, n_merges: int) -> Task:
    """Trains with teacher forcing; measures BLEU and exact matches of greedy decoding."""
    pairs = make_pairs(n_train + n_test)
    pairs = pairs if to_german else [(german, english) for english, german in pairs]
    data, source, target = make_data(pairs, n_train, n_merges)
    references = [pair[1] for pair in pairs[n_train:]]

    def draw(data: Pairs, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = jax.random.randint(key, (batch,), 0, n_train)
        return data.train_source[chosen], data.train_target[chosen]

    def loss(
        module: nn.Module, variables: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        source, target = batch
        logits: Any = module.apply(
            variables, source, target[:, :-1], train=True, rngs={"dropout": key}
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target[:, 1:])
        where = target[:, 1:] != PAD
        return jnp.sum(losses, where=where) / where.sum(), {}

    def measure(module: nn.Module, variables: Any, data: Pairs) -> dict[str, float]:
        pieces = greedy(module, variables, data.test_source, data.test_target.shape[1])
        translations = [target.decode(row) for row in np.asarray(pieces)]
        is_exact = [a == b for a, b in zip(translations, references, strict=True)]
        return {"bleu": bleu(translations, references), "exact": 100 * float(np.mean(is_exact))}

    facts = {
        "n_train": n_train,
        "n_test": n_test,
        "pieces": [len(source), len(target)],
        "longest": [data.train_source.shape[1], data.train_target.shape[1]],
        "examples": [list(pair) for pair in pairs[:4]],
    }
    shape = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return Task(data, (shape, shape), draw, loss, measure, facts)


def studies(size: str) -> list[Study]:
    """Both directions in a size: "quick", "cpu" (an hour on one core each) or "gpu".

    The settings were chosen on dense networks, before any network was pruned. With 300 merges,
    pieces split German number words at meaningless positions, and networks learn more slowly. With
    4,000 training pairs, a network may learn these by heart: after 3,000 steps, German to English,
    five seeds end between 88 and 99 BLEU. With 20,000 pairs they end between 99.5 and 100.0. That
    is with a learning rate of 1e-2; with 2e-2, one of the five ends at 61. For a network of width
    13 both rates are as good: 24 BLEU with 4,000 pairs.
    """
    numbers = {
        "quick": (8, 200, 20, 40),
        "cpu": (32, 20_000, 400, 120),
        "gpu": (128, 40_000, 1000, 120),
    }
    batch, n_train, n_test, n_merges = numbers[size]
    layers = 4 if size == "gpu" else 2

    def direction(name: str, to_german: bool) -> Study:
        way = "English to German" if to_german else "German to English"
        # All networks have the same vocabulary, so they differ only in width and in layers.
        module, shallow = (
            _module_of(n, (n_merges + _LETTERS, n_merges + _LETTERS)) for n in (layers, layers // 2)
        )
        return Study(
            name=f"seq2seq-{name}",
            title=f"Number words, money and dates, {way}, BLEU of {n_test} phrases",
            task=lambda: make_task(to_german, batch, n_train, n_test, n_merges),
            module=module,
            shallow=shallow,
            width={"quick": 16, "cpu": 48, "gpu": 512}[size],
            measure="bleu",
            lower_is_better=False,
            steps={"quick": 40, "cpu": 3000, "gpu": 6000}[size],
            chunk={"quick": 20, "cpu": 100, "gpu": 200}[size],
            learning_rate=1e-3 if size == "gpu" else 1e-2,
            sparsities=(0.9,) if size == "quick" else Study.sparsities,
            seeds=2 if size == "quick" else 5,
        )

    return [direction("en-de", True), direction("de-en", False)]


# Room in the vocabulary for letters, digits, punctuation and the special pieces.
_LETTERS = 80


def _module_of(n_layers: int, vocabularies: tuple[int, int]) -> Callable[[int], nn.Module]:
    least = 2 if n_layers == 1 else 1  # the two directions of the only layer share its units
    return lambda width: Translator(vocabularies, max(width, least), n_layers)
