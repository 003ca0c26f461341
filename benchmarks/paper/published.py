"""Published sizes and qualities, each with its source.

The digits are as printed. `sizes` computes its own counts and reads these only to compare.
"""

from __future__ import annotations

from typing import NamedTuple

PAPER = "Zhu & Gupta (2017), arXiv:1710.01878"
TFMOT = "tensorflow.org/model_optimization/guide/pruning"
DISTILLER = "nervanasystems.github.io/distiller/tutorial-lang_model.html"


class Size(NamedTuple):
    """One row of a size table.

    Attributes:
      network: its name in `sizes.NETWORKS`.
      sparsity: of every pruned leaf; 0 for a dense network.
      printed: nonzero parameters as the source prints them; None if no source was available.
      overrides: pairs of a path regex and the sparsity of its leaves, if layers differ.
      why: if our count differs in a printed digit, the explanation.
      source: the publication that printed it.
    """

    network: str
    sparsity: float
    printed: str | None
    overrides: tuple[tuple[str, float], ...] = ()
    why: str = ""
    source: str = PAPER


def _rows(network: str, printed: dict[float, str | None]) -> list[Size]:
    return [Size(network, s, digits) for s, digits in printed.items()]


_INCEPTION_87 = (
    "An eighth of 27.1M is 3.39M. No weight count rounds to 6.8M at 75% (at least 27.0M) and also "
    "to 3.3M at 87.5% (at most 26.8M). Either the last digit was truncated, or the network was "
    "pruned to 87.7%."
)
_SMALL = (
    "An embedding of 6,655,600 and two LSTM layers of 320,000 have 160,000 more, which is the size "
    "of one of the four 200 x 800 matrices. The medium and large networks agree in every digit."
)
_PTB = (0.0, 0.8, 0.85, 0.9, 0.95, 0.975)

SIZES: list[Size] = [
    *_rows("InceptionV3", {0.0: "27.1M", 0.5: "13.6M", 0.75: "6.8M"}),
    Size("InceptionV3", 0.875, "3.3M", why=_INCEPTION_87),
    *_rows(
        "MobileNet v1", {0.0: "4.21M", 0.5: "2.13M", 0.75: "1.09M", 0.9: "0.46M", 0.95: "0.25M"}
    ),
    Size("MobileNet v1, width 0.75", 0.0, "2.57M"),
    Size("MobileNet v1, width 0.5", 0.0, "1.32M"),
    Size("MobileNet v1, width 0.25", 0.0, "0.46M"),
    *_rows("PTB LSTM small", dict.fromkeys(_PTB) | {0.0: "4.6M"}),
    *_rows("PTB LSTM medium", dict.fromkeys(_PTB) | {0.0: "19.8M"}),
    *_rows("PTB LSTM large", dict.fromkeys(_PTB) | {0.0: "66M"}),
    *_rows("GNMT", {0.0: "211M", 0.8: "44M", 0.85: "33M", 0.9: "23M"}),
    Size("WikiText-2 LSTM small", 0.0, "7,135,600", why=_SMALL, source=DISTILLER),
    Size("WikiText-2 LSTM medium", 0.0, "28,390,700", source=DISTILLER),
    Size("WikiText-2 LSTM large", 0.0, "85,917,000", source=DISTILLER),
    Size(
        "WikiText-2 LSTM large",
        0.7,
        "25,487,550",
        (("embed/.*", 0.85), ("lstm_.*", 0.5)),
        "",
        DISTILLER,
    ),
    Size(
        "WikiText-2 LSTM large",
        0.804,
        "16,847,550",
        (("embed/.*", 0.85), ("lstm_.*", 0.74)),
        "",
        DISTILLER,
    ),
    Size("WikiText-2 LSTM large", 0.9, "8,591,700", source=DISTILLER),
    Size("WikiText-2 LSTM large", 0.95, "4,295,850", source=DISTILLER),
]


class Quality(NamedTuple):
    """The published quality of a trained network, to compare with your own runs."""

    network: str
    measure: str
    sparsity: float
    value: str
    source: str


def _quality(network: str, measure: str, values: dict[float, str], source: str) -> list[Quality]:
    return [Quality(network, measure, s, value, source) for s, value in values.items()]


_FROM_PAPER = f"the paper, as reported by {TFMOT}"

QUALITY: list[Quality] = [
    *_quality(
        "InceptionV3",
        "ImageNet top-1, %",
        {0.0: "78.1", 0.5: "78.0", 0.75: "76.1", 0.875: "74.6"},
        _FROM_PAPER,
    ),
    *_quality(
        "GNMT",
        "BLEU en-de, newstest2015",
        {0.0: "26.77", 0.8: "26.86", 0.85: "26.52", 0.9: "26.19"},
        _FROM_PAPER,
    ),
    *_quality(
        "GNMT",
        "BLEU de-en, newstest2015",
        {0.0: "29.47", 0.8: "29.50", 0.85: "29.24", 0.9: "28.81"},
        _FROM_PAPER,
    ),
    Quality("WikiText-2 LSTM small", "test perplexity", 0.0, "96.29", DISTILLER),
    Quality("WikiText-2 LSTM medium", "test perplexity", 0.0, "84.21", DISTILLER),
    *_quality(
        "WikiText-2 LSTM large",
        "test perplexity",
        {0.0: "83.85", 0.7: "82.93", 0.804: "83.64", 0.9: "85.67", 0.95: "92.79"},
        DISTILLER,
    ),
]
