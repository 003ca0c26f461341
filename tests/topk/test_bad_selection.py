"""Wrong arguments of `topk_mask` and `topk_masks`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from bad_input import assert_error, case
from helpers import ones


def scores(n=3):
    return jnp.arange(n, dtype=jnp.float32)


def shape_of(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


SELECTION = [
    case(
        "n_keep_negative",
        lambda: jaxprune.topk_mask(scores(), -1),
        ValueError,
        ("topk_mask: `n_keep`", "-1", "[0, 3]"),
    ),
    case(
        "n_keep_above_size",
        lambda: jaxprune.topk_mask(scores(), 4),
        ValueError,
        ("topk_mask: `n_keep`", "4", "[0, 3]"),
    ),
    case(
        "n_keep_float",
        lambda: jaxprune.topk_mask(scores(), 1.0),
        TypeError,
        ("topk_mask: `n_keep`", "1.0", "integer"),
    ),
    case(
        "n_keep_string",
        lambda: jaxprune.topk_mask(scores(), "1"),
        TypeError,
        ("topk_mask: `n_keep`", "'1'", "integer"),
    ),
    case(
        "n_keep_bool",
        lambda: jaxprune.topk_mask(scores(), True),
        TypeError,
        ("topk_mask: `n_keep`", "True", "integer"),
    ),
    case(
        "n_keep_list",
        lambda: jaxprune.topk_mask(scores(), [1]),
        TypeError,
        ("topk_mask: `n_keep`", "[1]", "integer"),
    ),
    case(
        "n_keep_vector",
        lambda: jaxprune.topk_mask(scores(), np.int32([1, 2])),
        TypeError,
        ("topk_mask: `n_keep`", "array([1, 2], dtype=int32)", "integer"),
    ),
    case(
        "n_keep_of_one_leaf",
        lambda: jaxprune.topk_masks([scores(), scores()], [1, 7]),
        ValueError,
        ("topk_masks: n_keep[1]", "7", "[0, 3]"),
    ),
    case(
        "n_keep_of_all",
        lambda: jaxprune.topk_masks([scores(), scores()], 7, pool="global"),
        ValueError,
        ("topk_masks: `n_keep`", "7", "[0, 6]"),
    ),
    case(
        "n_keep_list_of_all",
        lambda: jaxprune.topk_masks([scores(), scores()], [1, 1], pool="global"),
        TypeError,
        ("topk_masks: `n_keep`", "[1, 1]", "integer"),
    ),
    case(
        "too_few_counts",
        lambda: jaxprune.topk_masks([scores(), scores()], [1]),
        ValueError,
        ("topk_masks: `n_keep`", ("2", "[1]"), 'pool="global"'),
    ),
    case(
        "one_count",
        lambda: jaxprune.topk_masks([scores(), scores()], 2),
        ValueError,
        ("topk_masks: `n_keep`", "2", 'pool="global"'),
    ),
    case(
        "pool",
        lambda: jaxprune.topk_masks([scores()], [1], pool="layer"),
        ValueError,
        ("topk_masks: `pool`", "'layer'", ('"leaf"', '"global"')),
    ),
    case(
        "scores_int",
        lambda: jaxprune.topk_mask(jnp.arange(3, dtype=jnp.int32), 1),
        TypeError,
        ("topk_mask: `scores`", "int32 of shape (3,)", ".astype(jnp.float32)"),
    ),
    case(
        "scores_complex",
        lambda: jaxprune.topk_masks([scores(), ones(2, dtype=jnp.complex64)], [1, 1]),
        TypeError,
        ("topk_masks: scores[1]", "complex64 of shape (2,)", ".astype(jnp.float32)"),
    ),
    case(
        "scores_tree",
        lambda: jaxprune.topk_masks({"a": scores()}, [1]),
        TypeError,
        ("topk_masks: `scores`", "dict", ("topk_mask", "jax.tree.leaves(scores)")),
    ),
    case(
        "too_many_scores_to_shuffle",
        lambda: jax.eval_shape(
            lambda *s: jaxprune.topk_masks(s, 1, pool="global", ties="hashed"),
            *[shape_of(2**15, 2**15)] * 2,
        ),
        ValueError,
        ("pool", ("2147483648", "2**31 - 2"), 'ties="index"'),
    ),
    case(
        "scores_none",
        lambda: jaxprune.topk_mask(None, 1),
        TypeError,
        ("topk_mask: `scores`", "None", "jnp.abs(w)"),
    ),
    case(
        "scores_string",
        lambda: jaxprune.topk_masks([scores(), "x"], [1, 1]),
        TypeError,
        ("topk_masks: scores[1]", "'x'", "jnp.abs(w)"),
    ),
    case(
        "scores_of_one_tree",
        lambda: jaxprune.topk_mask({"w": 1.0}, 1),
        TypeError,
        ("topk_mask: `scores`", "{'w': 1.0}", "jnp.abs(w)"),
    ),
    case(
        "ties_array",
        lambda: jaxprune.topk_mask(scores(), 1, ties=scores()),
        ValueError,
        ("ties", "Array([0., 1., 2.], dtype=float32)", '"index"'),
    ),
    case(
        "score_number",
        lambda: jaxprune.topk_mask(scores(), 1, score=3),
        TypeError,
        ("topk_mask: `score`", "3", "score=jnp.abs"),
    ),
    case(
        "score_of_none",
        lambda: jaxprune.topk_masks([scores(), None], [1, 1], score=jnp.abs),
        TypeError,
        ("topk_masks: scores[1]", "None", "array of numbers"),
    ),
    case(
        "score_int",
        lambda: jaxprune.topk_mask(scores(), 1, score=lambda x: x.astype(jnp.int32)),
        TypeError,
        ("topk_mask: `scores`", "int32", ".astype(jnp.float32)"),
    ),
    case(
        "score_tuple",
        lambda: jaxprune.topk_masks([scores()], [1], score=lambda x: (x, x)),
        TypeError,
        ("topk_masks: scores[0]", "tuple", ".astype(jnp.float32)"),
    ),
    case(
        "score_shape",
        lambda: jaxprune.topk_mask(scores(), 1, score=jnp.sum),
        ValueError,
        ("topk_mask: `scores`", ("(3,)", "()"), "jnp.abs"),
    ),
    case(
        "n_keep_key",
        lambda: jaxprune.topk_mask(scores(), jax.random.key(0)),
        TypeError,
        ("topk_mask: `n_keep`", "key<fry>", "integer"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", SELECTION)
def test_an_error_of_the_selection_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)
