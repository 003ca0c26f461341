"""Exact selection against a stable sort, over every float type, shape and kind of value."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jaxprune._base import counting
from jaxprune._base.counting import enable_x64
from jaxprune._base.float_bits import key_value, order_key
from jaxprune._topk import candidates, first_cuts, kept, search, stacks, topk
from jaxprune._topk.topk import select, topk_mask, topk_masks
from topk_oracle import KINDS, first, ranking, values

pytestmark = pytest.mark.usefixtures("counted_programs")

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e4m3b11fnuz)
SHAPES = ((), (1,), (0,), (3, 0), (31,), (4, 8), (3, 5, 7), (1031,), (2, 1024))


def oracle(scores, n_keep):
    return first(n_keep, ranking(scores), np.shape(scores))


@functools.cache
def jitted(one_device):
    """One function for each layout, so that tests share what it compiles."""
    return jax.jit(lambda scores, n_keep: topk_mask(scores, n_keep))


LAYOUTS = ("one device", "many devices")


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch):
    """`topk_mask` as on one device, where axes are merged into rows, and as on many devices."""
    one_device = request.param == "one device"
    monkeypatch.setattr(jax, "device_count", lambda: 1 if one_device else 8)
    return jitted(one_device)


def shapes_dtypes_layouts():
    """All combinations; few entries are slow tests but for two dtypes, on many devices three."""
    for shape, dtype, layout in itertools.product(SHAPES, DTYPES, LAYOUTS):
        few = math.prod(shape) < (32 if layout == "many devices" else 512)
        slow = few and dtype in (DTYPES[2:] if layout == "one device" else DTYPES[3:])
        marks = pytest.mark.slow if slow else ()
        yield pytest.param(
            shape, dtype, layout, id=f"{layout}-{shape}-{dtype.__name__}", marks=marks
        )


@pytest.mark.parametrize("shape, dtype, layout", list(shapes_dtypes_layouts()), indirect=["layout"])
def test_keeps_exactly_the_largest_and_the_earlier_of_equal_scores(shape, dtype, layout):
    for kind in KINDS:
        scores = values(kind, shape, dtype)
        order, n = ranking(scores), scores.size
        for n_keep in sorted({0, min(1, n), n // 10, n // 2, max(n - 1, 0), n}):
            mask = layout(scores, n_keep)
            assert mask.dtype == bool
            want = first(n_keep, order, shape)
            np.testing.assert_array_equal(mask, want, err_msg=f"{kind} {n_keep}")


# More than the 2**15 entries from which on a part is sampled first; a whole number of rows or not.
SAMPLED = ((219, 160), (33_037,))


@pytest.mark.parametrize(
    "dtype, short",
    ((jnp.float32, 2**17), (jnp.float32, 0), (jnp.bfloat16, 2**17)),
    ids=("float32", "float32 in rows", "bfloat16"),
)
@pytest.mark.parametrize("shape", SAMPLED, ids=str)
def test_selection_from_sampled_leaves_is_exact(shape, dtype, short, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(stacks, "SHORT", short)
    monkeypatch.setattr(topk, "_select", fresh_select())
    fn = jax.jit(lambda a, b, n: topk_masks([a, b], [n, n // 2]))  # two of a shape: a stack
    for kind in KINDS:
        a, b = values(kind, shape, dtype), values(kind, shape, dtype, key=1)
        order_a, order_b = ranking(a), ranking(b)
        for n_keep in (0, 1, a.size // 10, a.size - 1, a.size):
            mask_a, mask_b = fn(a, b, n_keep)
            want = first(n_keep, order_a, shape)
            np.testing.assert_array_equal(mask_a, want, err_msg=f"{kind} {n_keep}")
            np.testing.assert_array_equal(mask_b, first(n_keep // 2, order_b, shape))


@pytest.mark.parametrize("short", (0, 2**17), ids=("in rows", "one row"))
@pytest.mark.parametrize("score", (None, jnp.abs), ids=("signed", "magnitude"))
@pytest.mark.parametrize("shape", ((4, 300), *SAMPLED[1:]), ids=str)
def test_a_leaf_alone_is_exact_whether_it_is_one_row_or_several(shape, score, short, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(stacks, "SHORT", short)
    monkeypatch.setattr(kept, "SHORT", short)
    monkeypatch.setattr(topk, "_select", fresh_select())
    fn = jax.jit(functools.partial(topk_mask, score=score))
    magnitude = np.asarray if score is None else np.abs
    for kind, dtype in itertools.product(KINDS, DTYPES[: 2 if shape[0] < 99 else 1]):
        w = values(kind, shape, dtype)
        order = ranking(magnitude(w))
        for n_keep in (0, 1, w.size // 10, w.size // 2, w.size * 9 // 10, w.size - 1, w.size):
            want = first(n_keep, order, shape)
            np.testing.assert_array_equal(fn(w, n_keep), want, err_msg=f"{kind} {n_keep}")


def test_a_global_pool_of_sampled_leaves_is_exact(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    fn = jax.jit(lambda leaves, n: topk_masks(leaves, n, pool="global"))
    shapes = ((40, 600), (40, 600), (31,), (16_411,))
    for kind in KINDS:
        leaves = [values(kind, shape, jnp.float32, key) for key, shape in enumerate(shapes)]
        whole = np.concatenate([leaf.reshape(-1) for leaf in leaves])
        order = ranking(whole)
        for n_keep in (0, 1, whole.size // 10, whole.size - 1):
            flat = np.concatenate([np.asarray(mask).reshape(-1) for mask in fn(leaves, n_keep)])
            want = first(n_keep, order, whole.shape)
            np.testing.assert_array_equal(flat, want, err_msg=f"{kind} {n_keep}")


def fresh_select():
    """A `jit` of its own, since that of `topk` may have traced leaves of the same shapes before.

    Its function is another one, too: all `jit`s of a function share what JAX has traced.
    """
    static = ("score", "pool_of", "ties", "one_device", "axis_name")
    select = topk._select.__wrapped__

    @functools.wraps(select)
    def fresh(*args, **kwargs):
        return select(*args, **kwargs)

    return jax.jit(fresh, static_argnames=static)


@pytest.fixture
def short_rows(monkeypatch):
    """Leaves of 2**15 entries have as many rows as otherwise those of 2**17, and that is many."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(counting, "_ROW", 256)
    monkeypatch.setattr(candidates, "_MANY_ROWS", 100)
    monkeypatch.setattr(stacks, "SHORT", 0)
    monkeypatch.setattr(topk, "_select", fresh_select())
    counting._row_length.cache_clear()
    yield
    counting._row_length.cache_clear()


@pytest.mark.parametrize("score", (None, jnp.abs), ids=("signed", "magnitude"))
@pytest.mark.parametrize("shape", SAMPLED, ids=str)
def test_a_search_that_ends_in_gathered_rows_is_exact(shape, score, short_rows, monkeypatch):
    gather, gathered = search.gather, []
    monkeypatch.setattr(search, "gather", lambda *x: gathered.append(x) or gather(*x))
    fn = jax.jit(lambda a, b, c, n: topk_masks([a, b, c], [n, n // 2, 5], score=score))
    small = values("ties", (31,), jnp.float32)  # a leaf that is read whole
    magnitude = np.asarray if score is None else np.abs
    for kind in KINDS:
        a, b = values(kind, shape, jnp.float32), values(kind, shape, jnp.float32, key=1)
        order_a, order_b = ranking(magnitude(a)), ranking(magnitude(b))
        for n_keep in (0, 1, a.size // 10, a.size // 2, a.size - 1, a.size):
            mask_a, mask_b, mask_c = fn(a, b, small, n_keep)
            want = first(n_keep, order_a, shape)
            np.testing.assert_array_equal(mask_a, want, err_msg=f"{kind} {n_keep}")
            np.testing.assert_array_equal(mask_b, first(n_keep // 2, order_b, shape))
            np.testing.assert_array_equal(mask_c, oracle(magnitude(small), 5))
    assert gathered


@given(
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from(((31,), (4, 8), (3, 5, 7))),
    dtype=st.sampled_from(DTYPES),
    key=st.integers(0, 2**16),
    part=st.floats(0, 1),
)
def test_keeps_exactly_the_largest_on_generated_scores(kind, shape, dtype, key, part):
    scores = values(kind, shape, dtype, key)
    n_keep = round(part * scores.size)
    np.testing.assert_array_equal(
        jitted(jax.device_count() == 1)(scores, n_keep), oracle(scores, n_keep)
    )


@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=31, max_size=31),
    n_keep=st.integers(0, 31),
)
def test_keeps_exactly_the_largest_of_any_bit_patterns(bits, n_keep):
    scores = np.array(bits, np.uint32).view(np.float32)
    np.testing.assert_array_equal(
        jitted(jax.device_count() == 1)(scores, n_keep), oracle(scores, n_keep)
    )


@pytest.mark.skip_in("debug_nans", reason="NaN is among the scores")
@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16), ids=lambda d: d.__name__)
def test_keys_sort_like_all_65536_patterns(dtype):
    scores = np.arange(2**16).astype(np.uint16).view(dtype)
    keys = np.asarray(order_key(jnp.asarray(scores))).astype(np.int64)
    with np.errstate(invalid="ignore"):
        wide = scores.astype(np.float64)
    assert keys.min() >= 1
    assert len(set(keys[np.isnan(wide)])) == 1
    assert keys[np.isnan(wide)][0] > keys[np.isposinf(wide)].max()
    order = np.argsort(wide[~np.isnan(wide)], kind="stable")
    steps, key_steps = (
        np.diff(wide[~np.isnan(wide)][order][1:-1]),
        np.diff(keys[~np.isnan(wide)][order][1:-1]),
    )
    np.testing.assert_array_equal(np.sign(steps), np.sign(key_steps))


def test_float64_scores_that_are_equal_in_float32_are_ordered(x64):
    scores = 1.0 + np.arange(1000) * 2.0**-50
    np.random.default_rng(0).shuffle(scores)
    for n_keep in (0, 1, 300, 999, 1000):
        np.testing.assert_array_equal(
            topk_mask(jnp.asarray(scores), n_keep), oracle(scores, n_keep)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_leaf_pools_are_independent_of_each_other(kind):
    leaves = [
        values(kind, shape, dtype) for shape, dtype in zip(SHAPES, (*DTYPES, *DTYPES), strict=False)
    ]
    counts = [leaf.size // 3 for leaf in leaves]
    masks = topk_masks(leaves, counts)
    for leaf, n_keep, mask in zip(leaves, counts, masks, strict=True):
        np.testing.assert_array_equal(mask, oracle(leaf, n_keep))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixed", (False, True), ids=("one dtype", "mixed dtypes"))
def test_global_pool_equals_selection_from_the_concatenation(kind, mixed):
    dtypes = (jnp.float32, jnp.bfloat16, jnp.float16) if mixed else (jnp.float32,) * 3
    leaves = [values(kind, s, d) for s, d in zip(((31,), (4, 8), (3, 5, 7)), dtypes, strict=True)]
    whole = np.concatenate([np.asarray(leaf).astype(np.float64).reshape(-1) for leaf in leaves])
    for n_keep in (0, 1, 50, whole.size - 1, whole.size):
        masks = topk_masks(leaves, n_keep, pool="global")
        flat = np.concatenate([np.asarray(mask).reshape(-1) for mask in masks])
        np.testing.assert_array_equal(flat, oracle(whole, n_keep))


def test_agrees_with_lax_top_k_on_which_of_equal_scores_are_kept(getkey):
    scores = jnp.round(jax.random.normal(getkey(), (500,)))
    kept = np.zeros(500, bool)
    kept[np.asarray(jax.lax.top_k(scores, 123)[1])] = True
    np.testing.assert_array_equal(topk_mask(scores, 123), kept)


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
def test_traced_counts_are_clipped_and_need_one_trace(getkey):
    scores = jax.random.normal(getkey(), (10,))
    fn = jax.jit(lambda scores, n_keep: topk_mask(scores, n_keep))
    for n_keep, expected in ((-3, 0), (4, 4), (99, 10)):
        assert fn(scores, n_keep).sum() == expected
    assert fn._cache_size() == 1
    threshold = jax.jit(lambda scores, n_keep: select([scores], n_keep)[1])
    assert threshold(scores, jnp.array([-3])) == threshold(scores, jnp.array([0])) == jnp.inf


def test_vmap_selects_in_each_member(getkey):
    scores = jax.random.normal(getkey(), (5, 4, 9))
    counts = jnp.arange(5) * 7
    masks = jax.vmap(topk_mask)(scores, counts)
    for s, n_keep, mask in zip(scores, counts.tolist(), masks, strict=True):
        np.testing.assert_array_equal(mask, oracle(s, n_keep))


@pytest.mark.parametrize("start", (0.0, 1e-30, 0.5, 1.2, 3e38, np.inf, np.nan, -1.0))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_a_wrong_start_does_not_change_the_masks(start, dtype):
    scores = jnp.asarray(values("normal", (3, 5, 7), dtype))
    masks, _ = select([scores], [20], start=jnp.float32([start]))
    np.testing.assert_array_equal(masks[0], oracle(scores, 20))


def test_thresholds_lie_between_the_kept_and_the_dropped():
    leaves = [
        values("normal", shape, d) for shape, d in (((40,), jnp.float32), ((6, 9), jnp.bfloat16))
    ]
    masks, thresholds = select(leaves, [7, 30])
    for leaf, mask, threshold in zip(leaves, masks, np.asarray(thresholds), strict=True):
        wide, mask = np.asarray(leaf).astype(np.float32), np.asarray(mask)
        assert wide[mask].min() >= threshold > wide[~mask].max()


def test_thresholds_at_the_ends_are_infinite():
    _, thresholds = select([jnp.arange(4.0)] * 2, [4, 0])
    assert thresholds.tolist() == [-np.inf, np.inf]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_only_entries_among_the_allowed_are_kept(dtype):
    for kind in ("ties", "wild"):
        scores = values(kind, (3, 5, 7), dtype)
        among = np.random.default_rng(1).random(scores.shape) < 0.4
        order = ranking(scores)
        allowed_first = np.concatenate([order[among.ravel()[order]], order[~among.ravel()[order]]])
        for n_keep in (0, 5, int(among.sum()) - 1, int(among.sum()), scores.size):
            allowed = [jnp.asarray(among, jnp.uint8)]
            [mask], _ = select([jnp.asarray(scores)], [n_keep], among=allowed)
            want = first(n_keep, allowed_first, scores.shape) & among
            np.testing.assert_array_equal(mask, want, err_msg=f"{kind} {n_keep}")


def test_score_runs_inside_the_selection(getkey):
    w, g = jax.random.normal(getkey(), (2, 6, 7))
    [mask], _ = select([(w, g)], [10], score=lambda x: jnp.abs(x[0] * x[1]))
    np.testing.assert_array_equal(mask, oracle(jnp.abs(w * g), 10))


SCORES = {  # computed in every read, or once
    "abs": jnp.abs,
    "square": jnp.square,
    "affine": lambda x: x * 2 - 1,
    "normalized": lambda x: jnp.abs(x) / jnp.max(jnp.abs(x)),
    "by column": lambda x: jnp.abs(x) * jnp.arange(1.0, x.shape[-1] + 1),
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("shape", ((31, 33), (3, 5, 7)), ids=str)
def test_a_score_function_selects_like_its_scores(score, shape):
    leaves = [values("ties", shape, jnp.float32, key) for key in range(2)]
    n_keep = leaves[0].size // 3
    scores = [jax.jit(score)(leaf) for leaf in leaves]
    mask = topk_mask(leaves[0], n_keep, score=score)
    np.testing.assert_array_equal(mask, oracle(scores[0], n_keep))
    for pool, count in (("leaf", [n_keep, 5]), ("global", n_keep)):
        masks = topk_masks(leaves, count, pool, score=score)
        want = topk_masks(scores, count, pool)
        jax.tree.map(np.testing.assert_array_equal, masks, want)


def test_a_score_function_may_take_any_dtype():
    for w in (np.array([3, -4, 1], np.int32), np.array([3, 4j, 1], np.complex64)):
        mask = topk_mask(w, 1, score=lambda x: jnp.abs(x).astype(jnp.float32))
        assert mask.tolist() == [False, True, False]


@pytest.mark.parametrize("score", (jnp.abs, jnp.negative), ids=("magnitude", "signed"))
@pytest.mark.parametrize("shape", ((31,), (1031,), (219, 160)), ids=str)
def test_scores_in_a_pass_are_exact_for_every_kind_of_value(score, shape):
    fn = jitted_score(score)
    for kind in KINDS:
        w = values(kind, shape, jnp.float32)
        order = ranking(np.asarray(score(w)))
        for n_keep in (0, 1, w.size // 3, w.size - 1, w.size):
            want = first(n_keep, order, shape)
            np.testing.assert_array_equal(fn(w, n_keep), want, err_msg=f"{kind} {n_keep}")


@functools.cache
def jitted_score(score):
    return jax.jit(lambda w, n_keep: topk_mask(w, n_keep, score=score))


def test_no_arrays_give_no_masks():
    assert topk_masks([], []) == []


def test_the_search_holds_no_copy_of_the_scores(layout):
    scores = jnp.zeros((1000, 1000))
    compiled = layout.lower(scores, 3).compile()
    stats = compiled.memory_analysis()
    if stats is None:
        pytest.skip("this backend reports no memory")
    assert stats.temp_size_in_bytes < scores.nbytes / 10


COUNTS = {  # what no int32 holds, and what is outside of the array
    "uint32": (np.uint32, 2**32 - 1, 10),
    "int32": (np.int32, -(2**31), 0),
    "uint8": (np.uint8, 200, 10),
    "int8": (np.int8, -3, 0),
    "uint64": (np.uint64, 2**64 - 1, 10),
    "int64": (np.int64, 2**32 + 5, 10),
    "negative int64": (np.int64, -(2**33), 0),
    "small int64": (np.int64, 3, 3),
}


@pytest.mark.parametrize("dtype, count, kept", COUNTS.values(), ids=COUNTS)
def test_counts_of_any_dtype_are_clipped_to_the_size(dtype, count, kept):
    with enable_x64(True):
        scores, n_keep = jnp.arange(10, dtype=jnp.float32), jnp.asarray(dtype(count))
        assert n_keep.dtype == dtype
        assert int(topk_mask(scores, n_keep).sum()) == kept
        masks = topk_masks([scores, scores], [n_keep, 3])
        assert [int(mask.sum()) for mask in masks] == [kept, 3]
        [a, b] = topk_masks([scores, scores], n_keep, pool="global")
        assert int(a.sum()) + int(b.sum()) == (20 if kept == 10 else kept)


@pytest.mark.parametrize("part", (0.05, 0.9))
def test_the_first_cuts_of_a_sampled_array_enclose_its_threshold(part, monkeypatch):
    opened = []

    def recorded(*args):
        opened.append(first_cuts.first_cuts(*args))
        return opened[-1]

    monkeypatch.setattr(search, "first_cuts", recorded)
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # else nothing is sampled
    scores = jax.random.uniform(jax.random.key(0), (2**8, 2**7), jnp.float32)
    n_keep = int(part * scores.size)
    with jax.disable_jit():
        mask = topk_mask(scores, n_keep)
    assert int(mask.sum()) == n_keep
    [cuts] = key_value(opened[0], np.dtype(np.float32)).tolist()
    assert cuts[0] <= np.sort(np.asarray(scores).ravel())[-n_keep] <= cuts[-1]


@pytest.mark.parametrize("is_long", (True, False), ids=("all sampled", "one is short"))
def test_first_cuts_are_those_of_their_own_array(is_long, monkeypatch):
    opened = []

    def first_of_search(*args):
        opened.append(first_cuts.first_cuts(*args))
        raise StopIteration  # nothing is searched

    monkeypatch.setattr(search, "first_cuts", first_of_search)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    shapes = (2**8, 2**7), (2**9, 2**6), (2**8, 2**7), (2**7, 2**8 if is_long else 3)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = [10.0**i * jax.random.uniform(keys[i], shape) for i, shape in enumerate(shapes)]
    n_keep = [x.size // 3 for x in arrays]
    with jax.disable_jit(), pytest.raises(StopIteration):
        topk_masks(arrays, n_keep)
    cuts = key_value(opened[0], np.dtype(np.float32))
    for i in range(3 + is_long):  # those that are sampled
        threshold = np.sort(np.asarray(arrays[i]).ravel())[-n_keep[i]]
        assert cuts[i, 0] <= threshold <= cuts[i, -1]


def test_nothing_is_read_to_keep_all_or_none(monkeypatch):
    passes, counted = [], search.keys_reaching
    monkeypatch.setattr(search, "keys_reaching", lambda *args: passes.append(0) or counted(*args))
    scores = jnp.array([3.0, 1.0, 2.0])
    with jax.disable_jit():
        for n_keep in (0, 3):
            assert int(topk_mask(scores, n_keep).sum()) == n_keep
            assert not passes


def test_a_search_in_every_slice_holds_no_copy_of_the_scores(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    scores = jnp.zeros((4, 198, 3168))  # rows of 968
    mapped = jax.jit(jax.vmap(lambda *args: select(*args, score=jnp.abs)[0]))
    # Compiled quickly, as most tests are, even a program that stores a copy passes.
    stats = mapped.lower([scores], jnp.full((4, 1), 3)).compile().memory_analysis()
    assert stats.temp_size_in_bytes < scores.nbytes / 10


@pytest.mark.parametrize("score", (None, jnp.abs), ids=("scores", "magnitude"))
def test_a_short_mask_takes_one_thread(score, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    mask = jax.jit(lambda x, n_keep: topk_mask(x, n_keep, score=score))
    program = mask.lower(jnp.zeros(10_000), jnp.int32(2_000)).compile().as_text()
    # To start a second thread takes as long as the whole search. Only divided ties have one.
    assert program.count("outer_dimension_partitions") <= 1


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
def test_both_loops_of_a_search_run_one_step(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    text = jax.jit(topk_mask).lower(jnp.zeros(100), jnp.int32(7)).as_text()
    # XLA compiles one kernel for both, which takes longer to compile than any other.
    assert text.count("call @step(") == 2


def test_a_search_on_a_tpu_gathers_no_rows(short_rows, monkeypatch, getkey):
    monkeypatch.setattr(candidates, "on_tpu", lambda arrays: True)
    monkeypatch.setattr(search, "gather", lambda *x: pytest.fail("its compiler stores their keys"))
    scores = jax.random.normal(getkey(), (300, 256))
    mask = topk_mask(scores, 7000)
    np.testing.assert_array_equal(mask, scores >= jnp.sort(scores.ravel())[-7000])
