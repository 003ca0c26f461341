"""Imports of packages that are installed only with an extra, such as `jaxprune[files]`."""

import importlib
from typing import Any


def import_extra(module: str, extra: str = "files") -> Any:
    """Imports a module of a package that comes with an extra.

    Args:
      module: its name, with the package.
      extra: the extra of jaxprune that installs the package.

    Raises:
      ImportError: the package is not installed; the message says what to type.

    Example:
      >>> import_extra("no_such_package.module")
      Traceback (most recent call last):
      ...
      ImportError: no_such_package is not installed. Type: pip install 'jaxprune[files]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f"{package} is not installed. Type: pip install 'jaxprune[{extra}]'", name=package
        ) from None
