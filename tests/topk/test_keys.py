"""The integers that a pass compares, against the keys of a pool; and which scores have a sign."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune._base.float_bits import bits_of, is_nonzero, key_value, order_key
from jaxprune._topk import topk
from jaxprune._topk.keys import KeyForm
from jaxprune._topk.signs import score_specs

SPECIAL = (0, 1, 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1)
SPECIAL += (0x7F7FFFFF, 0x7F800000, 0x7F800001, 0xFF7FFFFF, 0xFF800000, 0xFF800001, 0x00800000)
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
# A dtype, and whether its integers are the keys.
FORMS = tuple((dtype, is_key) for dtype in DTYPES for is_key in (False, True))


def patterns(dtype):
    """All bit patterns of 16 bits, or the special and many random ones of 32."""
    if np.dtype(dtype).itemsize == 2:
        return np.arange(2**16).astype(np.uint16)
    drawn = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint64)
    return np.concatenate([np.array(SPECIAL, np.uint64), drawn]).astype(np.uint32)


@pytest.mark.skip_in("debug_nans", reason="NaN is among the scores")
@pytest.mark.parametrize("dtype, is_key", FORMS)
@pytest.mark.parametrize("has_sign", (True, False), ids=("signed", "magnitude"))
@pytest.mark.parametrize("has_floor", (True, False), ids=("among", "all"))
@pytest.mark.parametrize("exact", (True, False), ids=("exact", "raw"))
def test_integers_and_cuts_compare_like_keys(dtype, is_key, has_sign, has_floor, exact):
    bits, layout = patterns(dtype), bits_of(dtype)
    is_nan = np.isnan(bits.view(dtype).astype(np.float32))
    if not has_sign:
        bits = bits[(bits < layout.sign) | (bits == layout.sign) | is_nan]
    scores = jnp.asarray(bits.view(dtype))
    among = jnp.asarray(np.random.default_rng(1).random(len(bits)) < 0.5) if has_floor else None
    form = KeyForm(np.dtype(dtype), has_sign, has_floor, is_key)
    integers = np.asarray(form.integers(scores, among, exact=exact))
    assert integers.itemsize == 4 if is_key else integers.itemsize == np.dtype(dtype).itemsize
    keys = np.asarray(order_key(scores)).astype(np.int64)
    if has_floor:
        keys = np.where(among, keys, 0)
    near = {k + d for k in keys[:: max(len(keys) // 200, 1)].tolist() for d in (-1, 0, 1)}
    ends = {1 - has_floor, layout.lowest_key, layout.sign, layout.sign + 1, layout.nan_key}
    cuts = np.array(sorted(c for c in near | ends if 1 - has_floor <= c <= layout.nan_key))
    in_form = np.asarray(form.cuts(jnp.asarray(cuts.astype(np.uint32))))
    for cut, integer in zip(cuts, in_form, strict=True):
        np.testing.assert_array_equal(integers < integer, keys < cut, err_msg=hex(cut))
        if exact and (keys == cut).any():
            np.testing.assert_array_equal(integers == integer, keys == cut, err_msg=hex(cut))
    above_all = form.cuts(jnp.uint32([layout.nan_key + 1]))
    assert not exact or (integers < np.asarray(above_all)).all()


@pytest.mark.skip_in("debug_nans", reason="NaN is among the scores")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("has_sign", (True, False), ids=("signed", "magnitude"))
@pytest.mark.parametrize("has_floor", (True, False), ids=("among", "all"))
def test_scores_reach_plain_cuts_as_their_keys_do(dtype, has_sign, has_floor):
    bits, layout = patterns(dtype)[::7], bits_of(dtype)
    special = np.array(SPECIAL, np.uint64) >> (32 - 8 * np.dtype(dtype).itemsize)
    bits = np.concatenate([bits, special.astype(bits.dtype)])
    is_nan = np.isnan(bits.view(dtype).astype(np.float32))
    if not has_sign:
        bits = bits[(bits < layout.sign) | (bits == layout.sign) | is_nan]
    scores = jnp.asarray(bits.view(dtype))
    among = jnp.asarray(np.random.default_rng(1).random(len(bits)) < 0.5) if has_floor else None
    form = KeyForm(np.dtype(dtype), has_sign, has_floor)
    keys = np.asarray(order_key(scores)).astype(np.int64)
    keys = np.where(among, keys, 0) if has_floor else keys
    zero = layout.sign
    cuts = np.array([*sorted(keys[::97]), zero - 1, zero, zero + 1, *range(-1, 2)])
    cuts[-3:] += layout.nan_key
    cut_keys = jnp.asarray(np.maximum(cuts, 1 - has_floor).astype(np.uint32))
    plain = np.asarray(form.are_plain(form.cuts(cut_keys)))
    entries = jax.tree.map(lambda x: x[None], (scores, among))
    reaching = np.asarray(form.reaching(*entries, cut_keys[:, None]))
    np.testing.assert_array_equal(reaching[plain], (keys >= cuts[:, None])[plain])
    is_above_zero = (cuts > zero) | (not has_sign or has_floor)
    np.testing.assert_array_equal(plain, (cuts <= layout.nan_key) & is_above_zero)


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16), ids=str)
def test_masks_are_equal_on_a_gpu(dtype, monkeypatch):
    scores = jnp.round(jax.random.normal(jax.random.key(0), (7, 9)) * 4).astype(dtype)
    with jax.disable_jit():
        on_cpu = [topk.topk_mask(scores, n_keep) for n_keep in (0, 20, 63)]
        monkeypatch.setattr(topk, "on_gpu", lambda arrays: True)
        for n_keep, mask in zip((0, 20, 63), on_cpu, strict=True):
            np.testing.assert_array_equal(topk.topk_mask(scores, n_keep), mask)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16, jnp.float16), ids=str)
def test_the_value_of_a_key_is_the_score(dtype):
    scores = patterns(dtype).view(dtype)
    scores = scores[~np.isnan(scores.astype(np.float32))]
    keys = order_key(jnp.asarray(scores)).astype(jnp.uint32)
    values = np.asarray(key_value(keys, np.dtype(dtype)))
    np.testing.assert_array_equal(values.astype(np.float64), scores.astype(np.float64))


NOT_NEGATIVE = {
    "abs": jnp.abs,
    "square": jnp.square,
    "product": lambda x: x * x,
    "power": lambda x: x**2,
    "cast": lambda x: jnp.abs(x).astype(jnp.float16),
    "jit": jax.jit(lambda x: jnp.sqrt(jnp.abs(x))),
    "magnitude": jaxprune.magnitude,
}
UNCLEAR = {
    "itself": lambda x: x,
    "difference": lambda x: jnp.abs(x) - 1,
    "cube": lambda x: x**3,
    "other product": lambda x: x * (x + 1),
    "negative": lambda x: -jnp.abs(x),
    "constant": lambda x: jnp.full_like(x, -1),
    "bits": lambda x: jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & -2, jnp.float32
    ),
}


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16), ids=str)
@pytest.mark.parametrize("score", NOT_NEGATIVE.values(), ids=NOT_NEGATIVE)
def test_scores_without_a_sign_are_recognized(score, dtype):
    [spec] = score_specs(score, [jnp.zeros((2, 3), dtype)])
    assert not spec.has_sign


@pytest.mark.parametrize("score", UNCLEAR.values(), ids=UNCLEAR)
def test_other_scores_may_have_a_sign(score):
    assert score_specs(score, [jnp.zeros(3)])[0].has_sign


@pytest.mark.skip_in("debug_nans", reason="NaN is among the numbers")
def test_a_number_is_zero_if_all_its_bits_but_the_sign_are():
    x = np.array([0, -0.0, 1e-45, np.nan, 2], np.float32)
    assert is_nonzero(jnp.asarray(x)).tolist() == [False, False, True, True, True]
    z = np.array([0, 1j, 1, 1e-45j, -0.0j], np.complex64)
    assert is_nonzero(jnp.asarray(z)).tolist() == [False, True, True, True, False]
