"""Haiku modules that take their sizes from the params they are given.

A Haiku module compares the shapes of its params with the sizes that it was made with. Linear layers
and convolutions get the sizes of their params here. Other modules keep theirs, so that `shrink`
refuses their axes with the error of Haiku as the reason.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def haiku_sizes_from_params() -> Iterator[None]:
    """Makes Haiku layers take their sizes from their params. Does nothing if Haiku isn't loaded."""
    hk = sys.modules.get("haiku")
    if hk is None:
        yield
        return

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name == "__call__" and not hk.running_init():
            params = module.params_dict()
            kernel = params.get(f"{module.module_name}/w")
            if kernel is not None:
                _set_sizes(hk, module, tuple(kernel.shape), args[0] if args else None)
        return call(*args, **kwargs)

    with hk.intercept_methods(intercept):
        yield


def _set_sizes(hk: Any, module: Any, shape: tuple[int, ...], inputs: Any) -> None:
    """Sets the sizes of a layer to those of its kernel.

    Args:
      hk: the package.
      module: which lives for one call.
      shape: of its kernel.
      inputs: of the call.
    """
    if isinstance(module, hk.Linear):
        module.output_size = shape[-1]
    elif isinstance(module, hk.ConvND):
        module.output_channels = shape[-1]
        if module.feature_group_count > 1 and inputs is not None:
            channels = inputs.shape[module.channel_index]
            module.feature_group_count = channels // shape[-2]
