"""Which rule of `structural=` decides for each leaf of a tree, where nothing is pruned."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune._base.paths import matches, shape_of, spec_of
from jaxprune._recipe.spelling import spelled_pairs
from jaxprune._recipe.structural import as_structural, check_fits
from jaxprune._recipe.unmatched import check_rules
from jaxprune._recipe.user_rules import UserRules


def existing_of(
    structural: Any, params: Any, paths: Sequence[str], leaves: Sequence[Any]
) -> list[np.ndarray | None]:
    """Which weights of each leaf exist; None where all do.

    Raises:
      TypeError, ValueError: a mask that does not fit its leaf, or rules that match nothing.
    """
    pairs = spelled_pairs(as_structural(structural), paths)
    check_rules(
        UserRules((".*",), (), {"structure": (), "structural": pairs}), params, paths, leaves
    )
    exist = []
    for path, leaf in zip(paths, leaves, strict=True):
        spec = spec_of(leaf)
        fitting = [e for rule, e in pairs if spec is not None and matches(rule, path, spec)]
        if fitting:
            check_fits(path, shape_of(leaf), fitting[0])
        exist.append(fitting[0].exists if fitting else None)
    return exist
