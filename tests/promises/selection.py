"""`topk_mask` against a stable sort: dtypes, shapes, kinds of values, and any number to keep."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jaxprune
from jaxprune._base.counting import enable_x64
from promises.runner import Promise
from topk_oracle import KINDS, first, ranking, values

FLOAT8 = ("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz")
FLOAT8 += ("float8_e5m2", "float8_e5m2fnuz")
DTYPES = ("float32", "bfloat16", "float16", "float64", *FLOAT8)
SHAPES = ((), (1,), (2,), (0,), (3, 0), (5, 1), (31,), (4, 8), (3, 5, 7), (1, 1, 97), (256,))
SHAPES += ((17, 33), (3, 3, 8, 16), (1031,), (2, 1024), (8, 129), (64, 48), (5000,), (7, 7, 7, 7))
SHAPES += ((128, 80),)
PROGRAMS = tuple(itertools.product(DTYPES, SHAPES))
CASES_PER_CHUNK = 240


@functools.cache
def program(dtype, shape):
    """One compiled selection, for any number of kept scores."""
    del dtype, shape  # one entry of the cache, and so one compilation, for each
    return jax.jit(lambda scores, n_keep: jaxprune.topk_mask(scores, n_keep))


def check(chunk):
    """Checks one dtype and shape with values of all kinds."""
    dtype, shape = PROGRAMS[chunk % len(PROGRAMS)]
    rng = np.random.default_rng(chunk)
    select, size, n_cases = program(dtype, shape), math.prod(shape), 0
    n_draws = CASES_PER_CHUNK // len(KINDS) // 6
    for kind, _ in itertools.product(KINDS, range(n_draws)):
        scores = values(kind, shape, np.dtype(getattr(ml_dtypes, dtype, dtype)), rng)
        order = ranking(scores)
        for n_keep in (0, size, *rng.integers(0, size + 1, 4).tolist()):
            want = first(n_keep, order, shape)
            with enable_x64(dtype == "float64"):
                mask = select(jnp.asarray(scores), n_keep)
            assert mask.dtype == bool
            np.testing.assert_array_equal(mask, want, f"{dtype} {kind} {n_keep}")
            n_cases += 1
    return n_cases


PROMISE = Promise(
    "selection",
    "The mask keeps exactly the largest scores, and of equal ones the earlier.",
    2 * len(PROGRAMS),
    check,
    few=(0, 7, 33, 66, 111, 152, 173, 192),
)
