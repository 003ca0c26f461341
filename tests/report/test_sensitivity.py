"""`sensitivity` prunes each group alone, and `sparsities_for` reaches a total at the least cost."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, strategies as st

import jaxprune
from bad_input import assert_error, case
from helpers import by_path, on_device, ones, says
from jaxprune import NM, Block, Sensitivity, sensitivity, sparsities_for


def make_params(seed=0):
    """Three leaves that are pruned, and two that are not."""
    rng = np.random.default_rng(seed)
    leaf = lambda *shape: on_device(rng.standard_normal(shape))
    layers = {f"layer{i}": {"kernel": leaf(4, 8), "bias": leaf(8)} for i in range(2)}
    return {**layers, "head": leaf(8, 2), "n": jnp.arange(3)}


def loss(params):
    floats = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(jnp.sum(jnp.sin(x)) for x in floats)


# The table


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"structure": Block((2, 2))},
        {"structure": {"layer0/.*": NM(2, 4, axis=-2), "head": Block((2, 1))}},
        {"exclude": "head", "score": jaxprune.random_score},
    ],
    ids=["magnitude", "blocks", "structures by leaf", "random"],
)
def test_each_leaf_is_pruned_alone(options):
    params = make_params()
    sparsities = (0.5,) if "structure" in options else (0.25, 0.5, 0.75)
    table = sensitivity(loss, params, sparsities, **options)
    expected = ["layer0/kernel", "layer1/kernel"]
    assert list(table.rules) == (expected if "exclude" in options else ["head", *expected])
    assert table.dense_loss == float(jax.jit(loss)(params))
    structure = options.pop("structure", jaxprune.Unstructured())
    options.pop("exclude", None)
    for i, rule in enumerate(table.rules):
        own = structure
        if isinstance(structure, dict):
            own = {"layer0/kernel": NM(2, 4, axis=-2), "head": Block((2, 1))}.get(rule)
            own = own or jaxprune.Unstructured()
        for j, sparsity in enumerate(sparsities):
            pruned, masks = jaxprune.prune_params(
                params, sparsity, include=rule, structure=own, **options
            )
            if options:  # a random score depends on the position of the leaf in its tree
                assert table.n_zero[i, j] == round(sparsity * by_path(params)[rule].size)
            else:
                assert table.losses[i, j] == float(jax.jit(loss)(pruned))
                assert table.n_zero[i, j] == int(jnp.sum(~by_path(masks)[rule]))


def test_roles_say_along_which_axis_groups_lie():
    params = make_params()
    roles = {"layer0/kernel": ("out", "in"), "(layer1/kernel|head)": ("in", "out")}
    table = sensitivity(loss, params, [0.5], structure=NM(2, 4), roles=roles)
    for i, (rule, axis) in enumerate({"head": 0, "layer0/kernel": 1, "layer1/kernel": 0}.items()):
        pruned, _ = jaxprune.prune_params(params, 0.5, include=rule, structure=NM(2, 4, axis=axis))
        assert table.rules[i] == rule
        assert table.losses[i, 0] == float(jax.jit(loss)(pruned))


def test_groups_are_pruned_together_and_the_first_match_counts():
    params = make_params()
    table = sensitivity(loss, params, [0.5], groups=["layer0/.*", ".*kernel"])
    together, _ = jaxprune.prune_params(params, 0.5, include="layer0/kernel")
    rest, _ = jaxprune.prune_params(params, 0.5, include="layer1/kernel")
    assert table.rules == ("layer0/.*", ".*kernel")
    assert table.losses[:, 0].tolist() == [float(jax.jit(loss)(p)) for p in (together, rest)]
    assert table.sizes.tolist() == [32, 32]
    title, header, *_ = str(table).splitlines()
    assert "loss with one group pruned" in title
    assert header.split()[0] == "group"


@pytest.mark.skip_in("disable_jit", reason="nothing is compiled")
def test_the_loss_is_compiled_once():
    n_traces = 0

    def counted(params):
        nonlocal n_traces
        n_traces += 1
        return loss(params)

    sensitivity(counted, make_params(), [0.25, 0.5])
    assert n_traces <= 2  # once for its shape


def test_gradients_reach_the_score():
    params = {k: v for k, v in make_params().items() if k != "n"}
    grads = jax.grad(loss)(params)
    table = sensitivity(loss, params, [0.5], score=jaxprune.saliency, grads=grads)
    pruned, _ = jaxprune.prune_params(
        params, 0.5, include="head", score=jaxprune.saliency, grads=grads
    )
    assert table.losses[0, 0] == float(jax.jit(loss)(pruned))


def test_the_state_of_an_nnx_model():
    state = nnx.state(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Param)
    assert sensitivity(loss, state, [0.5]).rules == ("kernel",)


def test_sparsities_are_sorted():
    assert sensitivity(loss, make_params(), [0.5, 0.25, 0.5]).sparsities == (0.25, 0.5)


# Dividing a total


@st.composite
def tables(draw):
    """Tables with random losses; leaves of one size and of several."""
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    sparsities = sorted(draw(st.sets(st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9]), min_size=m)))
    sizes = np.array(draw(st.lists(st.integers(1, 50), min_size=n, max_size=n)))
    n_zero = np.array([[int(s * size) for s in sparsities] for size in sizes], np.int64)
    shape = (n, len(sparsities))
    floats = st.floats(-10, 10, allow_nan=False)
    losses = np.array(draw(st.lists(floats, min_size=n_zero.size, max_size=n_zero.size)))
    rules = tuple(f"leaf{i}" for i in range(n))
    return Sensitivity(rules, tuple(sparsities), losses.reshape(shape), 1.0, sizes, n_zero)


@given(tables(), st.fractions(0, 1).filter(lambda f: f < 1))
def test_overrides_reach_the_total_exactly(table, share):
    total = int(table.sizes.sum())
    target = float(share) * int(table.n_zero[:, -1].sum()) / total
    overrides = sparsities_for(table, target)
    shapes = {
        rule: jax.ShapeDtypeStruct((1, int(size)), jnp.float32)
        for rule, size in zip(table.rules, table.sizes, strict=True)
    }
    n_zero = [leaf.n_zero for leaf in jaxprune.plan(shapes, 0.5, overrides=overrides).leaves]
    assert sum(n_zero) == int(target * total + 0.5)
    assert all(n <= most for n, most in zip(n_zero, table.n_zero[:, -1], strict=True))


def cost_of(table, n_zero):
    """The loss above that of the dense params, with curves as straight lines between points."""
    cost = 0.0
    for i, n in enumerate(n_zero):
        points = np.concatenate([[0], table.n_zero[i]])
        losses = np.concatenate([[table.dense_loss], table.losses[i]])
        cost += np.interp(n, points, losses) - table.dense_loss
    return cost


@given(st.integers(0, 10**6), st.integers(0, 12))
def test_no_division_costs_less_where_losses_are_convex(seed, n_total):
    """An oracle that tries every division of the zeros among three leaves of six weights."""
    rng = np.random.default_rng(seed)
    sizes, n_zero = np.full(3, 6), np.tile([1, 2, 4], (3, 1))
    slopes = np.sort(rng.integers(0, 9, (3, 3)), 1)  # rising: convex
    losses = 1.0 + np.cumsum(slopes * [1, 1, 2], 1)
    table = Sensitivity(("a", "b", "c"), (1 / 6, 2 / 6, 4 / 6), losses, 1.0, sizes, n_zero)
    overrides = sparsities_for(table, n_total / 18)
    chosen = [round(overrides[rule] * 6) for rule in table.rules]
    divisions = (d for d in itertools.product(range(5), repeat=3) if sum(d) == n_total)
    assert sum(chosen) == n_total
    assert cost_of(table, chosen) == pytest.approx(min(cost_of(table, d) for d in divisions))


def test_a_bad_first_step_does_not_hide_a_good_second():
    losses = np.array([[5.0, 1.0], [2.0, 4.0]])
    table = Sensitivity(
        ("a", "b"), (0.25, 0.5), losses, 1.0, np.array([8, 8]), np.array([[2, 4]] * 2)
    )
    assert sparsities_for(table, 0.25) == {"a": 0.5, "b": 0.0}


def test_losses_that_are_not_finite_are_avoided():
    losses = np.array([[np.nan, np.inf], [2.0, 4.0]])
    table = Sensitivity(
        ("a", "b"), (0.25, 0.5), losses, 1.0, np.array([8, 8]), np.array([[2, 4]] * 2)
    )
    assert sparsities_for(table, 0.25) == {"a": 0.0, "b": 0.5}
    assert_error(
        lambda: sparsities_for(table, 0.5),
        ValueError,
        ("sparsities_for: ", ("'a'", "not finite"), "lower target"),
    )


def test_a_table_prints_the_losses():
    table = sensitivity(loss, make_params(), [0.5, 0.75])
    lines = repr(table).splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["leaf", "weights", "50.0%", "75.0%"]
    assert lines[2].split() == ["head", "16", *(f"{x:.4g}" for x in table.losses[0])]


TABLE = Sensitivity(("a",), (0.5,), np.ones((1, 1)), 1.0, np.array([8]), np.array([[4]]))
BAD = [
    case(
        "loss_of_a_vector",
        lambda: sensitivity(lambda p: p["head"], make_params(), [0.5]),
        TypeError,
        ("sensitivity: loss_fn", None, "Return only the loss"),
    ),
    case(
        "loss_that_fails",
        lambda: sensitivity(lambda p: p["no"], make_params(), [0.5]),
        TypeError,
        ("sensitivity: loss_fn", "KeyError", "loss_fn(params)"),
    ),
    case(
        "shapes_for_params",
        lambda: sensitivity(loss, jax.eval_shape(make_params), [0.5]),
        TypeError,
        ("sensitivity: params: ", "ShapeDtypeStruct", "Pass arrays"),
    ),
    case(
        "params_before_the_loss",
        lambda: sensitivity({"w": 1.0}, loss, [0.5]),
        TypeError,
        ("sensitivity: loss_fn", "{'w': 1.0}", "Pass it first: sensitivity(lambda params"),
    ),
    case(
        "no_sparsities",
        lambda: sensitivity(loss, make_params(), []),
        TypeError,
        ("sensitivity: sparsities", "[]", "(0.5, 0.8, 0.9)"),
    ),
    case(
        "one_sparsity",
        lambda: sensitivity(loss, make_params(), 0.5),
        TypeError,
        ("sensitivity: sparsities", "0.5", "(0.5, 0.8, 0.9)"),
    ),
    case(
        "percent",
        lambda: sensitivity(loss, make_params(), [50]),
        ValueError,
        ("sensitivity: sparsities", "50", "Did you mean 0.5?"),
    ),
    case(
        "a_group_of_no_leaf",
        lambda: sensitivity(loss, make_params(), [0.5], groups=["layer9/.*"]),
        ValueError,
        ("sensitivity: groups", "'layer9/.*'", "layer0/kernel"),
    ),
    case(
        "a_group_by_function",
        lambda: sensitivity(loss, make_params(), [0.5], groups=[lambda path, leaf: True]),
        TypeError,
        ("sensitivity: groups", None, "'.*/kernel'"),
    ),
    case(
        "too_much",
        lambda: sparsities_for(TABLE, 0.75),
        ValueError,
        ("sparsities_for: target", ("0.75", "4 of 8"), "Add larger sparsities"),
    ),
    case(
        "a_report_for_a_table",
        lambda: sparsities_for({"a": 0.5}, 0.75),
        TypeError,
        ("sparsities_for: sensitivity", "{'a': 0.5}", "jaxprune.sensitivity"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", BAD)
def test_bad_input(call, kind, parts):
    assert_error(call, kind, parts)


def test_a_table_with_nm_leaves_no_choice_of_sparsities():
    """The sparsities were refused by `prune_params`: a 2:4 leaf can't end at 0.1."""
    params = {"a": ones(8, 8), "b": ones(8, 8), "c": ones(8)}
    loss = lambda p: -jnp.sum(p["a"]) - 0.5 * jnp.sum(p["b"])
    table = jaxprune.sensitivity(loss, params, (0.5,), structure={"a": jaxprune.NM(2, 4)})
    with pytest.raises(ValueError, match=says("such as NM", "exclude=")):
        jaxprune.sparsities_for(table, 0.3)
    free = jaxprune.sensitivity(loss, params, (0.5,), structure=jaxprune.Block((4, 4)))
    overrides = jaxprune.sparsities_for(free, 0.375)
    assert overrides == {"a": 0.25, "b": 0.5}
    rules = dict(overrides=overrides, structure=jaxprune.Block((4, 4)))
    masks = jaxprune.prune_params(params, 0.375, **rules)[1]
    assert sum(int(jnp.sum(~mask)) for mask in jax.tree.leaves(masks)) == 48
