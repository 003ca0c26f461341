"""English sentences that are installed with Python and its packages; nothing is downloaded.

There are two kinds: documentation of Python (docstrings of the standard library, and the topics of
`help()`), and descriptions of data sets in scikit-learn, which speak of wine, tumours and faces.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "encodings", "__pycache__"}
_LETTERS = 0.85  # of the characters of a sentence, letters and spaces


def python_documentation() -> list[str]:
    """Sentences of the documentation of Python, each once, in a fixed order."""
    from pydoc_data import topics

    texts: list[str] = [text for _, text in sorted(topics.topics.items())]
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if not _LEFT_OUT & set(path.relative_to(folder).parts):
            texts += _docstrings(path)
    return list(dict.fromkeys(_sentences(texts)))


def dataset_descriptions() -> list[str]:
    """Sentences of the descriptions of data sets in scikit-learn, each once, in a fixed order.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        text = "scikit-learn is not installed: pip install 'jaxprune[llm]'."
        raise ModuleNotFoundError(text, name="sklearn")
    files = sorted((Path(spec.origin).parent / "datasets" / "descr").glob("*.rst"))
    return list(dict.fromkeys(_sentences(file.read_text("utf-8") for file in files)))


def drawn(sentences: list[str], n: int, seed: int) -> list[str]:
    """`n` of the sentences at random; all of them if there are fewer."""
    order = np.random.default_rng(seed).permutation(len(sentences))
    return [sentences[i] for i in order[:n]]


def _docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in texts if text]


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """The sentences of paragraphs of prose: no code, no tables, no headings."""
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            joined = " ".join(paragraph.split())
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", joined):
                if _is_prose(sentence):
                    yield sentence


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    if not 6 <= len(words) <= 40 or not re.match(r"[A-Z][^`*:|]*[.!?]$", sentence):
        return False
    return sum(c.isalpha() or c == " " for c in sentence) >= _LETTERS * len(sentence)
