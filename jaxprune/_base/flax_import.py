"""The import of Flax, which jaxprune needs only for models of Flax."""

import importlib
from typing import Any


def import_flax(function: str, module: str) -> Any:
    """A module of Flax.

    Args:
      function: the public function that needs it, for the error.
      module: its name without the package, such as `nnx`.

    Raises:
      ModuleNotFoundError: Flax is not installed; the message says what to type.

    Example:
      >>> import_flax("shrink_nnx", "nnx").__name__
      'flax.nnx'
    """
    try:
        return importlib.import_module(f"flax.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "flax":
            raise
        text = f"{function} needs flax, which is not installed: pip install 'jaxprune[flax]'."
        raise ModuleNotFoundError(text, name="flax") from error
