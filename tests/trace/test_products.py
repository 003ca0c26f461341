"""The products of a program: a law over generated programs, and cases worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxprune._trace.leaf_views import coordinates
from jaxprune._trace.products import products_of
from jaxprune._trace.program import jaxpr_of
from jaxprune._trace.use_roles import use_of


def traced(function, params, *inputs):
    jaxpr = jaxpr_of(function, params, *inputs)
    return products_of(jaxpr, len(jax.tree.leaves(params)))


def products(function, params, *inputs):
    return [p for found in traced(function, params, *inputs).products.values() for p in found]


# The law: the coordinates that a view gives are those of an array of indices that goes the same way
# through the program, in NumPy. -1 is no entry of the leaf. An op is of the module (jax.numpy or
# NumPy) and an array.


def transposed(draw, shape):
    order = draw(st.permutations(range(len(shape))))
    return lambda xp, x: xp.transpose(x, order)


def reshaped(draw, shape):
    size = int(np.prod(shape))
    new = []
    while size > 1 and len(new) < 3:
        new.append(draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])))
        size //= new[-1]
    new = draw(st.permutations([*new, size]))
    return lambda xp, x: xp.reshape(x, new)


def flattened(draw, shape):
    axis = draw(st.integers(0, len(shape) - 1))
    return lambda xp, x: xp.reshape(x, (*shape[:axis], -1))


def indexed(draw, shape):
    axis = draw(st.integers(0, len(shape) - 1))
    before, n = (slice(None),) * axis, shape[axis]
    start = draw(st.integers(0, n - 1))
    stop = draw(st.integers(start + 1, n))
    step = draw(st.sampled_from((1, 2)))
    order = np.array(draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3)))

    def dynamic(xp, x):
        if xp is np:
            return x[(*before, slice(start, stop))]
        return jax.lax.dynamic_slice_in_dim(x, jnp.array(start), stop - start, axis)

    kinds = (
        lambda xp, x: x[(*before, slice(start, stop, step))],
        lambda xp, x: xp.flip(x, axis),
        lambda xp, x: x[(*before, start)],
        lambda xp, x: x[(*before, order)],
        lambda xp, x: xp.take(x, order, axis),
        dynamic,
    )
    return draw(st.sampled_from(kinds))


def joined(draw, shape):
    axis = draw(st.integers(0, len(shape) - 1))
    low, high = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    widths = [(low, high) if k == axis else (0, 0) for k in range(len(shape))]
    no_entry = lambda xp, x: xp.full(x.shape, -1, x.dtype)
    kinds = (
        lambda xp, x: xp.split(x, [shape[axis] // 2], axis)[1],
        lambda xp, x: xp.concatenate([x, no_entry(xp, x)], axis),
        lambda xp, x: xp.concatenate([no_entry(xp, x), x], axis),
        lambda xp, x: xp.pad(x, widths, constant_values=-1),
        lambda xp, x: xp.broadcast_to(x[None], (2, *shape)),
        lambda xp, x: xp.stack([no_entry(xp, x), x, no_entry(xp, x)], axis),
        lambda xp, x: list(x)[-1],
        lambda xp, x: xp.tile(x, (1,) * (len(shape) - 1) + (2,)),
        lambda xp, x: xp.tile(x, (2,) + (1,) * len(shape)),
    )
    return draw(st.sampled_from(kinds))


def unchanged(draw, shape):
    kinds = (
        lambda x: x.astype(jnp.float16),
        lambda x: x * np.ones(shape, np.float32) / jnp.linalg.norm(x),
        jax.jit(lambda x: x + 0.0),
        jax.checkpoint(lambda x: x * 1.0),
        lambda x: x[None].sum(0),
        lambda x: jax.lax.cond(True, jnp.tanh, lambda x: x, x),
        lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x / 2, x),
    )
    function = draw(st.sampled_from(kinds))
    return lambda xp, x: x if xp is np else function(x)


@st.composite
def programs(draw):
    """The shape of a leaf, ops that move its entries, and a role for each axis of the result."""
    shape = tuple(draw(st.lists(st.sampled_from((1, 2, 3, 4, 6, 8)), min_size=1, max_size=3)))
    x, ops = np.arange(np.prod(shape)).reshape(shape), []
    for _ in range(draw(st.integers(2, 6))):
        kinds = (transposed, reshaped, reshaped, flattened, indexed, indexed, joined, unchanged)
        op = draw(st.sampled_from(kinds if x.ndim else (reshaped,)))(draw, x.shape)
        after = op(np, x)
        if 0 < after.size <= 300 and after.ndim <= 5:
            x, ops = after, [*ops, op]
    roles = draw(st.tuples(*[st.sampled_from(("in", "out", "stack"))] * x.ndim))
    return shape, ops, roles


def leaf_coordinates(flat, leaf_shape):
    """The coordinates of entries along each leaf axis, and which entries are of the leaf."""
    present = flat >= 0
    return np.array(np.unravel_index(np.where(present, flat, 0), leaf_shape)), present


def view_coordinates(view, shape):
    """The same, by a view."""
    total = np.zeros((len(view.start), *shape), int)
    total += np.array(view.start, int).reshape(-1, *[1] * len(shape))
    present = np.ones(shape, bool)
    for k in range(len(shape)):
        digit = coordinates(view, [k])
        along = [-1 if i == k else 1 for i in range(len(shape))]
        present &= digit.mask().reshape(along)
        for axis, step in digit.steps.items():
            total[axis] += step.reshape(along)
    return total, present


def is_sum(flat, leaf_shape):
    """Whether a view can say it: coordinates are sums over the axes, and presence a product."""
    total, present = leaf_coordinates(flat, leaf_shape)
    if not present.any():
        return True
    first = tuple(np.argwhere(present)[0])
    product, differences = np.ones(flat.shape, bool), np.zeros_like(total)
    for k in range(flat.ndim):
        line = (*first[:k], slice(None), *first[k + 1 :])
        along = [-1 if i == k else 1 for i in range(flat.ndim)]
        product = product & present[line].reshape(along)
        steps = total[(slice(None), *line)] - total[(slice(None), *first)][:, None]
        differences += steps.reshape(len(leaf_shape), *along)
    expected = total[(slice(None), *first)].reshape(-1, *[1] * flat.ndim) + differences
    return bool((product == present).all() and (expected == total)[:, present].all())


def varies(coordinates, present, axis):
    """Whether two entries that differ only in the index along one axis differ in a coordinate."""
    lines, inside = np.moveaxis(coordinates, axis, 0), np.moveaxis(present, axis, 0)
    return any(
        (inside[i] & inside[j] & (lines[i] != lines[j])).any()
        for i in range(len(lines))
        for j in range(i)
    )


def assert_roles(use, coordinates, present, roles):
    """Compares the roles of leaf axes with what their coordinates vary along in the operand."""
    names = [
        {role for k, role in enumerate(roles) if varies(along, present, k)} for along in coordinates
    ]
    if not any("in" in some for some in names):
        # Axes of length 1 may be summed over, or the leaf is in no sum: not for this oracle.
        assert use is None or not use.reason
    elif any({"in", "out"} <= some for some in names):
        assert "partly" in use.reason
    else:
        for role, some in zip(use.roles, names, strict=True):
            if some:  # else there is a single index
                assert role == ("in" if "in" in some else "out" if "out" in some else "stack")


def assert_law(leaf_shape, ops, roles):
    """Compares what is traced with where the entries of the leaf really are."""
    flat = np.arange(np.prod(leaf_shape)).reshape(leaf_shape)
    stages = [flat := op(np, flat) for op in ops]
    summed, stacked = ([k for k, role in enumerate(roles) if role == r] for r in ("in", "stack"))
    x = jnp.ones([flat.shape[k] for k in (*stacked, *summed)] + [2])
    n = len(stacked)
    of_x = list(range(n, n + len(summed))), list(range(n))

    def function(w, x):
        for op in ops:
            w = op(jnp, w)
        return jax.lax.dot_general(w, x.astype(w.dtype), ((summed, of_x[0]), (stacked, of_x[1])))

    tracer = traced(function, jnp.ones(leaf_shape), x)
    if tracer.unclear:
        assert not all(is_sum(stage, leaf_shape) for stage in stages)
        return
    expected, present = leaf_coordinates(flat, leaf_shape)
    found = [product for found in tracer.products.values() for product in found]
    assert len(found) == present.any()
    for product in found:
        assert (product.view.leaf, product.operand, product.roles) == (0, 0, roles)
        assert product.by_data
        got, in_leaf = view_coordinates(product.view, flat.shape)
        np.testing.assert_array_equal(in_leaf, present)
        np.testing.assert_array_equal(got[:, present], expected[:, present])
        assert_roles(use_of(product, leaf_shape), expected, present, roles)


@given(programs())
@settings(max_examples=4 * settings.default.max_examples)  # each is quick
def test_views_and_roles_are_those_of_the_entries(program):
    assert_law(*program)


@pytest.mark.parametrize(
    "leaf_shape, ops, roles",
    (
        ((8,), [lambda x: x[2:], lambda x: x.reshape(2, 3)], ("in", "out")),
        ((8,), [lambda x: x[5::-1], lambda x: x.reshape(2, 3)], ("stack", "in")),
        ((8,), [lambda x: x[5::-1], lambda x: x.reshape(2, 3)], ("stack", "out")),
        ((2, 3), [lambda x: x.reshape(6), lambda x: x[1:4]], ("in",)),
        ((2, 6), [lambda x: x.reshape(12)[4:10], lambda x: x.reshape(3, 2)], ("in", "stack")),
        ((4, 6), [lambda x: x.reshape(24)[6:18], lambda x: x.reshape(2, 2, 3)], ("in",) * 3),
        ((2, 3, 4), [lambda x: x.reshape(6, 4)[::-1], lambda x: x.reshape(3, 8)], ("in", "out")),
        ((6, 4), [lambda x: x.reshape(4, 6), lambda x: x.T.reshape(3, 8)], ("in", "out")),
    ),
)
def test_the_law_holds_where_axes_are_cut_at_other_places(leaf_shape, ops, roles):
    assert_law(leaf_shape, [lambda xp, x, op=op: op(x) for op in ops], roles)


# Cases worked out by hand. W holds 3 layers of 4 x 4.

W, X = jnp.ones((3, 4, 4)), jnp.ones((2, 4))


def test_a_product_of_a_slice_knows_where_the_slice_is():
    first, second = products(lambda w, x: x @ w[0] @ w[2].T, W, X)
    assert first.view.start == (0, 0, 0)
    assert second.view.start == (2, 0, 0)
    [out], [into] = second.view.axes[1], second.view.axes[0]
    assert (list(into.steps), list(out.steps)) == ([2], [1])
    assert second.roles == ("in", "out")


def test_a_scan_notes_which_slice_each_iteration_has():
    step = lambda x, w: (x @ w, None)
    function = lambda w, x: jax.lax.scan(step, x, w.swapaxes(0, 1)[1:])[0]
    [product] = products(function, jnp.ones((4, 3, 4)), X)
    [(path, [digit])] = product.view.loops
    assert (path, list(digit.steps)) == ((2,), [1])
    np.testing.assert_array_equal(digit.steps[1], np.arange(1, 3))
    assert product.view.start == (0, 0, 0)


def test_results_of_a_scan_over_layers_are_views_again():
    def scaled(w, x):
        halves = jax.lax.scan(lambda _, w: (None, w / 2), None, w)[1]
        return x @ halves[1]

    [product] = products(scaled, W, X)
    assert product.view.loops == ()
    assert product.view.start == (1, 0, 0)


def written(array, update, row):
    start = (jnp.int32(row), jnp.int32(0))
    return jax.lax.dynamic_update_slice(array, update, start, allow_negative_indices=False)


def test_a_leaf_that_is_written_into_another_has_its_place_in_it():
    leaves = [W[0], W[0, :2]]
    found = products(lambda p, x: x @ written(*p, row=1), leaves, X)
    assert [(p.view.leaf, p.roles) for p in found] == [(0, ("in", "out")), (1, ("in", "out"))]
    coordinate, present = view_coordinates(found[1].view, (4, 4))
    assert present.any(1).tolist() == [False, True, True, False]
    assert coordinate[0, 1:3].tolist() == [[0] * 4, [1] * 4]
    assert view_coordinates(found[0].view, (4, 4))[1].all()


def test_a_leaf_that_is_written_into_data_becomes_data():
    leaves = [W[0], W[0, :1]]
    [product] = products(lambda p, x: written(x, p[1], row=1) @ p[0], leaves, X)
    assert (product.view.leaf, product.roles) == (0, ("in", "out"))


def test_positions_that_the_program_computes_are_not_known():
    by_counter = lambda w, x: jax.lax.fori_loop(0, 3, lambda i, x: x @ w[i], x)
    [product] = products(by_counter, W, X)
    [(axis, path)] = product.view.indexed
    assert (axis, path[:3], product.view.looked_up) == (0, (0, "jaxpr", 0), False)
    [product] = products(lambda w, x, i: jnp.einsum("bi,bio->bo", x, w[i]), W, X, np.array([2, 1]))
    assert (product.view.indexed[0][0], product.view.looked_up) == (0, True)
    assert product.roles == ("stack", "in", "out")


def test_positions_that_are_constants_along_one_axis_are_known():
    columns, rows = np.array([[2, 0]]), np.array([[1], [3], [0]])
    function = lambda w, x: jnp.einsum("bi,ioz->boz", x[:, :3], w[rows, columns])
    [product] = products(function, jnp.ones((4, 3, 2)), X)
    steps = [[digit.steps for digit in axis] for axis in product.view.axes]
    np.testing.assert_array_equal(steps[0][0][0], [1, 3, 0])
    np.testing.assert_array_equal(steps[1][0][1], [2, 0])


def test_a_table_that_is_looked_up_becomes_data():
    tracer = traced(lambda p, x: p[0][x] @ p[1], [X, W[0]], np.array([1, 0, 1]))
    [product] = [product for found in tracer.products.values() for product in found]
    assert product.view.leaf == 1
    assert [v.leaf for views in tracer.mixed.values() for v in views] == [0]


def test_both_factors_of_lora_are_in_the_product_with_data():
    lora = [jnp.ones((4, 4)), jnp.ones((4, 1)), jnp.ones((1, 4))]
    found = products(lambda p, x: x @ (p[0] + p[1] @ p[2]), lora, X)
    [w], [a], [b] = ([p.view for p in found if p.by_data and p.view.leaf == i] for i in range(3))
    assert w.inner == ()
    assert [[digit.size for digit in axis] for axis in a.axes] == [[4], [4]]
    assert [list(axis[0].steps) for axis in a.axes] == [[0], []]
    assert [list(axis[0].steps) for axis in b.axes] == [[], [1]]
    [(path, [rank])] = a.inner
    assert (path, list(rank.steps)) == ((0,), [1])


def test_learned_queries_are_data_because_they_are_added_to_data():
    def attend(p, x):
        scores = (p["queries"] @ p["wq"]) @ (x @ p["wk"]).T
        return p["queries"] + jax.nn.softmax(scores) @ x

    params = {"queries": jnp.ones((3, 4)), "wk": W[0], "wq": W[0]}
    found = products(attend, params, X)
    assert [(p.view.leaf, p.roles) for p in found] == [(2, ("in", "out")), (1, ("in", "out"))]
    projected = lambda p, x: (p["queries"] @ p["wq"]) + x.sum()
    found = products(projected, params, X)  # here it is the product that is added
    assert [(p.view.leaf, p.roles) for p in found] == [(0, ("out", "in")), (2, ("in", "out"))]


def test_a_state_that_becomes_data_in_a_loop_is_data_in_its_products():
    rnn = lambda p, x: jax.lax.scan(lambda h, x: (jnp.tanh(x + h @ p[1]), None), p[0], x)[0]
    [product] = products(rnn, [jnp.ones(4), W[0]], X)
    assert (product.view.leaf, product.roles) == (1, ("in", "out"))


def test_a_state_that_starts_as_a_constant_is_data_too():
    step = lambda p: lambda h, x: (jnp.tanh(x + h @ p), None)
    [product] = products(lambda p, x: jax.lax.scan(step(p), jnp.zeros(4), x)[0], W[0], X)
    assert product.by_data


def test_primitives_without_a_rule_end_a_view_and_say_so():
    tracer = traced(lambda w, x: x @ jnp.linalg.cholesky(w), W[0], X)
    assert not tracer.products
    reasons = [reason for _, reason in tracer.unclear.values()]
    assert reasons == ["it passes through cholesky, which has no rule in jaxprune"]


def test_a_branch_of_data_makes_the_params_of_other_branches_data():
    chosen = lambda p, x: jax.lax.cond(True, lambda: p[0], lambda: x) @ p[1] + (p[0] @ p[1])
    found = products(chosen, [X, W[0]], X)
    assert [(p.view.leaf, p.by_data) for p in found] == [(1, True)] * 2
    by_input = lambda p, x: x @ jax.lax.switch(x[0, 0].astype(int), [lambda: p[0], lambda: p[1]])
    found = products(by_input, [W[0], W[1]], X)
    assert [(p.view.leaf, p.view.looked_up) for p in found] == [(0, True), (1, True)]


def test_a_learned_image_is_no_kernel():
    def generate(p, x):
        image = jax.lax.conv_general_dilated(p["image"], p["kernel"], (1,), "SAME")
        return image * x.sum()

    found = products(generate, {"image": jnp.ones((1, 4, 5)), "kernel": W}, X)
    assert [(p.view.leaf, p.roles) for p in found] == [(1, ("out", "in", "window"))]


def test_an_array_of_very_many_parts_is_not_followed():
    parts = lambda p, x: x @ jnp.concatenate([w[None] for w in p[0]] * 150)[:4] @ p[1]
    tracer = traced(parts, [jnp.ones((4, 4)), jnp.ones((4, 4))], X)
    [[product]] = tracer.products.values()
    assert product.view.leaf == 1
    [unclear] = tracer.unclear.values()
    assert unclear.reason == "it is a part of an array of more than 512 parts"
