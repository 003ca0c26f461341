"""Scores of every kind, and a stable sort of them: slow and obvious."""

import ml_dtypes
import numpy as np

KINDS = ("normal", "ties", "constant", "zeros", "sparse", "subnormal", "wild", "signed zeros")


def values(kind, shape, dtype, key=0):
    """Scores of a kind in a dtype.

    Args:
      kind: one of `KINDS`.
      shape: of the scores.
      dtype: a dtype of NumPy or ml_dtypes.
      key: a seed, or a generator of NumPy.
    """
    rng = np.random.default_rng(key)
    normal = rng.normal(size=shape)
    tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    wild = [normal, np.inf, -np.inf, np.nan, -normal, 0.0]
    make = {
        "normal": lambda: normal,
        "ties": lambda: np.round(normal * 2),
        "constant": lambda: np.full(shape, 0.5),
        "zeros": lambda: np.zeros(shape),
        "sparse": lambda: normal * (rng.random(shape) < 0.1),
        "subnormal": lambda: rng.integers(-7, 8, shape) * tiny,
        "wild": lambda: np.choose(rng.integers(0, 6, shape), wild),
        "signed zeros": lambda: np.where(rng.random(shape) < 0.5, 0.0, -0.0),
    }
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(make[kind]()).astype(dtype)


def ranking(scores):
    """The indices of scores, the largest first and NaN above inf; of equal ones the earlier."""
    with np.errstate(invalid="ignore"):
        flat = np.asarray(scores).astype(np.float64).reshape(-1)
    is_nan = np.isnan(flat)
    return np.lexsort((-np.where(is_nan, 0, flat), ~is_nan))


def first(n_keep, order, shape):
    """The mask of the first `n_keep` of a ranking."""
    mask = np.zeros(order.size, bool)
    mask[order[:n_keep]] = True
    return mask.reshape(shape)
