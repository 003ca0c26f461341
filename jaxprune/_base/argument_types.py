"""The types of arguments that many public functions have, for type checkers and for `help()`."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from jaxprune._base.paths import Rule

# A fraction of zeros, in [0, 1). Fractions are exact; floats of Python are taken as decimals.
Sparsity = float | Fraction | np.floating[Any]
# Which leaves: regexes for whole paths, or functions `(path, shape_and_dtype) -> bool`.
Selection = Rule | Sequence[Rule]
# Regexes or functions -> what they decide.
Overrides = Mapping[Any, Sparsity]
Ties = Literal["index", "hashed"]
Regrow = bool | Literal["zero", "hold", "train"]
# What a cut may change.
Changes = Literal["layer_norm"]
