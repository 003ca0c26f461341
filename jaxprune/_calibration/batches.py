"""The batches of a user, and the progress bar around them."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

from jaxprune._base.arguments import shown


def as_batches(
    function: str, batch: Sequence[Any], batches: Any, progress: Any
) -> Iterable[tuple[Any, ...]]:
    """The batches of a user, each as a tuple of arguments, with a progress bar around them.

    Raises:
      TypeError: both or none are given, `batches` are not several, or `progress` is neither a bool
        nor None.
    """
    if batches is None:
        if not batch:
            raise TypeError(
                f"{function}: needs the inputs of the model, got none. Pass one batch after the "
                "variables, or batches=[...]."
            )
        batches = [tuple(batch)]
    elif batch:
        raise TypeError(
            f"{function}: got one batch and batches=. Pass one batch after the variables, or "
            "batches=, not both."
        )
    is_one = hasattr(batches, "shape") or isinstance(batches, (str, bytes, Mapping))
    if is_one or not isinstance(batches, Iterable):
        raise TypeError(
            f"{function}: batches must be an iterable of batches, got {shown(batches)}. Pass one "
            "batch after the variables, or a list of arrays or of tuples of arguments."
        )
    n = len(batches) if isinstance(batches, Sized) else None
    items = progress_bar(function, batches, n, progress)
    return (item if isinstance(item, tuple) else (item,) for item in items)


def progress_bar(
    function: str,
    items: Iterable[Any],
    n: int | None,
    progress: bool | None,
    unit: str = "batch",
) -> Iterable[Any]:
    """The items, with a progress bar around them.

    Args:
      function: the public function, which is the title of the bar.
      items: what to go through.
      n: how many there are, if known.
      progress: True or False; None for a bar in a terminal where there are several items.
      unit: the name of an item.

    Raises:
      TypeError: `progress` is neither a bool nor None.
      ModuleNotFoundError: tqdm is not installed, and `progress` is True.
    """
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"{function}: progress must be True, False or None, got {shown(progress)}.")
    if progress is False or (progress is None and n == 1):
        return items
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        if progress is None:
            return items
        text = f"{function}: progress=True needs tqdm, which is not installed: pip install tqdm."
        raise ModuleNotFoundError(text, name="tqdm") from None
    is_hidden = None if progress is None else False  # None: hidden unless stderr is a terminal
    return tqdm(items, desc=function, total=n, unit=unit, disable=is_hidden)
