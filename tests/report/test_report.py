"""`plan` predicts what training does, `summarize` and `metrics` count, `check` detects damage."""

import functools
import io
from fractions import Fraction

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune
from helpers import assert_says, by_path, n_dropped, ones, random_params, says, stepper

STEPS = dict(begin_step=1, end_step=4, every=3)
SCHEDULE = jaxprune.cubic_schedule(0.75, **STEPS, initial_sparsity=0.25)  # fires at 1 and 4
KERNELS = ("fc/kernel", "head/kernel")


@functools.cache
def make_params():
    """Leaves that are pruned (one of ties, one bf16, one empty) and leaves that are not."""
    return {
        "empty": ones(0, 3),
        "fc": random_params({"kernel": (7, 5), "bias": (5,)}),
        "head": random_params({"kernel": (5, 2)}, jnp.bfloat16, seed=1),
        "scale": jnp.float32(2.0),
        "table": jnp.arange(6, dtype=jnp.int32).reshape(2, 3),
        "ties": ones(3, 3),
    }


def trainable():
    """The leaves of inexact dtype; optimizers take no integers."""
    return {k: v for k, v in make_params().items() if k != "table"}


def small():
    return {k: v for k, v in make_params().items() if k in ("fc", "head", "scale")}


def n_zeros(tree):
    return {path: int(np.sum(leaf == 0)) for path, leaf in by_path(tree).items()}


def rows(report):
    return {leaf.path: leaf for leaf in report.leaves}


def train(tx, params, n_steps):
    """Params and states after each of the first updates."""

    @jax.jit
    def step(params, state, t):
        grads = jax.tree.map(lambda p: jnp.sin(p + t.astype(p.dtype)), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, trace = tx.init(params), []
    for t in range(n_steps):
        params, state = step(params, state, jnp.int32(t))
        trace.append((params, state))
    return trace


# --- plan

RULES = {
    "default": {},
    "exclude": dict(exclude=".*head.*"),
    "include": dict(include=("fc/bias", "ties")),
    "override": dict(overrides={"fc/.*": 0.5, ".*": 0.9}),
    "all": dict(include=".*", exclude=("scale", "empty"), overrides={"fc/bias": 0.2}),
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_plan_agrees_exactly_with_what_training_reaches(rules):
    params = trainable()
    plan = jaxprune.plan(params, SCHEDULE, **rules)
    tx = optax.chain(optax.sgd(0.01), jaxprune.prune(SCHEDULE, **rules))
    trained, state = train(tx, params, STEPS["end_step"] + 1)[-1]
    planned = {leaf.path: leaf.n_zero for leaf in plan.leaves}
    assert planned == n_dropped(jaxprune.get_masks(state))
    assert planned == n_zeros(trained)
    assert sum(planned.values()) == plan.n_zero > 0


def test_plan_gives_each_leaf_its_exact_budget_and_says_why_not():
    report = jaxprune.plan(make_params(), SCHEDULE, exclude="ties", overrides={"head/.*": 0.5})
    table = {leaf.path: (leaf.shape, leaf.dtype, leaf.size, leaf.n_zero) for leaf in report.leaves}
    assert table == {
        "empty": ((0, 3), "float32", 0, 0),
        "fc/bias": ((5,), "float32", 5, 0),
        "fc/kernel": ((7, 5), "float32", 35, 26),  # 26.25
        "head/kernel": ((5, 2), "bfloat16", 10, 5),
        "scale": ((), "float32", 1, 0),
        "table": ((2, 3), "int32", 6, 0),
        "ties": ((3, 3), "float32", 9, 0),
    }
    assert {leaf.path: leaf.note for leaf in report.leaves} == {
        "empty": "",
        "fc/bias": "1-D",
        "fc/kernel": "",
        "head/kernel": "override 'head/.*'",
        "scale": "0-D",
        "table": "dtype int32",
        "ties": "excluded by 'ties'",
    }
    assert (report.size, report.n_zero, report.notes) == (66, 31, ())
    assert report.sparsity == 31 / 66


def no_leaf(path, spec):
    return False


def test_plan_prints_as_a_table():
    params = {"fc": {"kernel": ones(60, 50), "bias": ones(50)}, "name": "mlp"}
    report = jaxprune.plan(params, SCHEDULE, exclude=no_leaf, overrides={"fc/kernel": 0.9})
    assert str(report).splitlines() == [
        "plan: 0.75 at steps 1 to 4, 2 fires",
        "leaf       shape  dtype    weights  nonzero  sparsity  note",
        "fc/bias    50     float32       50       50     0.00%  1-D",
        "fc/kernel  60x50  float32    3,000      300    90.00%  override 'fc/kernel'",
        "name              str            0        0     0.00%  not an array",
        "total                        3,050      350    88.52%",
        "unused: exclude: no_leaf matches no leaf",
    ]


@pytest.mark.parametrize(
    "schedule, when",
    [
        (0.25, "0.25 at step 0, 1 fire"),
        (jaxprune.one_shot_schedule(0.5, 7), "0.5 at step 7, 1 fire"),
        (jaxprune.linear_schedule(Fraction(1, 3), 5, 26, 10), "0.3333 at steps 5 to 26, 4 fires"),
    ],
)
def test_plan_is_headed_by_what_the_schedule_reaches_and_when(schedule, when):
    assert jaxprune.plan(make_params(), schedule).title == f"plan: {when}"


def test_plan_of_a_number_is_the_plan_of_one_shot():
    number = jaxprune.plan(make_params(), 0.6)
    assert number == jaxprune.plan(make_params(), jaxprune.one_shot_schedule(0.6))
    _, masks = jaxprune.prune_params(make_params(), 0.6)
    assert {leaf.path: leaf.n_zero for leaf in number.leaves} == n_zeros(masks)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_plan_needs_no_arrays(rules):
    params = trainable()
    shapes = jax.eval_shape(lambda: params)
    assert jaxprune.plan(shapes, SCHEDULE, **rules) == jaxprune.plan(params, SCHEDULE, **rules)


def by_size(path, spec):
    return spec.size > 20


UNUSED = {
    "all_used": (dict(include="fc/.*", exclude="fc/bias", overrides={"fc/kernel": 0.5}), ()),
    "exclude_what_is_not_pruned": (dict(exclude="fc/bias"), ()),
    "override_to_zero_of_what_is_not_pruned": (
        dict(overrides={"fc/bias": 0}),
        ("overrides: 'fc/bias'",),
    ),
    "override_of_what_is_excluded": (
        dict(exclude="ties", overrides={"ties": 0.5}),
        ("overrides: 'ties'",),
    ),
    "two_includes_of_one_leaf": (dict(include=("fc/.*", "fc/kernel")), ()),
    "two_excludes_of_one_leaf": (dict(exclude=("ti.*", "ties")), ()),
    "override_behind_another": (
        dict(overrides={"fc/.*": 0.5, "fc/kernel": 0.6}),
        ("overrides: 'fc/kernel'",),
    ),
    "function": (
        dict(include=("ties", by_size), exclude=lambda path, spec: spec.ndim > 7),
        ("exclude: <lambda>",),
    ),
    "structure_of_what_is_not_included": (
        dict(include="ties", structure={"fc/.*": jaxprune.Channel()}),
        ("structure: 'fc/.*'",),
    ),
}


@pytest.mark.parametrize("rules, unused", UNUSED.values(), ids=UNUSED)
def test_plan_names_unused_rules(rules, unused):
    notes = jaxprune.plan(make_params(), SCHEDULE, **rules).notes
    assert len(notes) == len(unused)
    for note, rule in zip(notes, unused, strict=True):
        assert note.startswith(f"unused: {rule} ")


CALLS = {
    "prune": lambda p, **rules: jaxprune.prune(SCHEDULE, **rules).init(p),
    "prune_params": lambda p, **rules: jaxprune.prune_params(p, 0.75, **rules),
}


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize("rules, unused", UNUSED.values(), ids=UNUSED)
def test_rules_that_other_rules_make_useless_are_allowed(function, rules, unused):
    del unused
    CALLS[function](make_params(), **rules)  # warnings are errors here


BAD = {
    "emptied": ({"w": ones(1, 2), "v": ones(9, 9), "b": ones(2)}, {}),
    "integers": (make_params(), dict(include="table")),
    "nothing": (make_params(), dict(include="kernel")),
}


@pytest.mark.parametrize("params, rules", BAD.values(), ids=BAD)
def test_plan_raises_what_init_would(params, rules):
    with pytest.raises(ValueError, match=r"exclude=|include=") as by_init:
        jaxprune.prune(SCHEDULE, **rules).init(params)
    with pytest.raises(ValueError, match=r"exclude=|include=") as by_plan:
        jaxprune.plan(params, SCHEDULE, **rules)
    assert str(by_plan.value) == str(by_init.value)


# --- summarize


def damaged():
    """Params, masks, and per leaf how many dropped weights are nonzero and kept ones zero."""
    params, masks = jaxprune.prune_params(make_params(), 0.5)
    fc = np.array(params["fc"]["kernel"])
    dropped = np.argwhere(~np.asarray(masks["fc"]["kernel"]))
    kept = np.argwhere(np.asarray(masks["fc"]["kernel"]))
    fc[tuple(dropped[:3].T)] = (1e-45, -2.0, np.inf)  # the first is subnormal
    fc[tuple(kept[:2].T)] = (0.0, -0.0)
    bias = np.array(params["fc"]["bias"])
    bias[1] = 0
    params["fc"] = {"kernel": jnp.asarray(fc), "bias": jnp.asarray(bias)}
    return params, masks


def test_summarize_counts_zeros_by_their_bits():
    params, _ = damaged()
    report = jaxprune.summarize(params)
    counted = {leaf.path: leaf.n_zero for leaf in report.leaves}
    assert counted == n_zeros(params) == {**counted, "fc/kernel": 18 - 3 + 2, "fc/bias": 1}
    assert report.n_zero == sum(counted.values())
    assert report.size == sum(leaf.size for leaf in by_path(params).values())
    assert all(leaf.note == "" for leaf in report.leaves)


@pytest.mark.parametrize("form", ("bool", "uint8", "state"))
def test_summarize_with_masks_counts_them_and_notes_what_differs(form):
    params, masks = damaged()
    if form == "uint8":
        masks = jax.tree.map(lambda m: m.astype(jnp.uint8), masks)
    expected = n_zeros(masks)
    if form == "state":
        state = optax.chain(optax.sgd(0.1), jaxprune.prune(SCHEDULE)).init(params)
        masks = optax.tree.set(state, masks=masks)
    report = jaxprune.summarize(params, masks)
    assert {leaf.path: leaf.n_zero for leaf in report.leaves} == expected
    assert {leaf.path: leaf.note for leaf in report.leaves if leaf.note} == {
        "fc/bias": "1 kept but zero",
        "fc/kernel": "3 dropped but nonzero; 2 kept but zero",
        "table": "1 kept but zero",
    }


def test_summarize_takes_whatever_a_tree_may_hold():
    tree = {
        "array": np.eye(2, dtype=np.float32),
        "bool": jnp.array([True, False]),
        "complex": jnp.array([[0j, 1j]], jnp.complex64),
        "empty": jnp.zeros((2, 0, 3), jnp.bfloat16),
        "float": 2.5,
        "key": jax.random.key(0),
        "keys": jax.random.split(jax.random.key(0), 2),
        "name": "mlp",
        "none": None,
        "scalar": jnp.zeros((), jnp.float16),
        "tiny": jnp.asarray(np.float32([[0, 1e-45]])),
    }
    table = {
        leaf.path: (leaf.shape, leaf.dtype, leaf.size, leaf.n_zero)
        for leaf in jaxprune.summarize(tree).leaves
    }
    assert table == {
        "array": ((2, 2), "float32", 4, 2),
        "bool": ((2,), "bool", 2, 1),
        "complex": ((1, 2), "complex64", 2, 1),
        "empty": ((2, 0, 3), "bfloat16", 0, 0),
        "float": ((), "float", 1, 0),
        "key": ((), "key<fry>", 1, 0),
        "keys": ((2,), "key<fry>", 2, 0),
        "name": ((), "str", 0, 0),
        "scalar": ((), "float16", 1, 1),
        "tiny": ((1, 2), "float32", 2, 1),
    }


@pytest.mark.parametrize("tree", ({}, None, [], {"a": {}}), ids=repr)
def test_an_empty_tree_has_an_empty_report(tree):
    planned = jaxprune.plan(tree, 0.5)
    [note] = planned.notes
    assert_says(note, "no leaves", "nothing to prune", "wrt=nnx.Param")
    for report in (jaxprune.summarize(tree), planned):
        assert (report.leaves, report.size, report.n_zero, report.sparsity) == ((), 0, 0, 0.0)
        assert str(report).splitlines()[1:3] == [
            "leaf   shape  dtype  weights  nonzero  sparsity  note",
            "total                      0        0     0.00%",
        ]


def test_a_leaf_at_the_root_is_called_root():
    report = jaxprune.summarize(jnp.eye(4, dtype=jnp.float32))
    assert str(report).splitlines() == [
        "summary",
        "leaf    shape  dtype    weights  nonzero  sparsity  note",
        "(root)  4x4    float32       16        4    75.00%",
        "total                        16        4    75.00%",
    ]


def test_rich_prints_every_cell_of_the_text_and_takes_no_path_for_markup():
    console = pytest.importorskip("rich.console")
    params = {"[bold]": ones(3, 4), "[/]": ones(4), "s": "x"}
    report = jaxprune.plan(params, 0.5, exclude=no_leaf)
    text = io.StringIO()
    console.Console(width=200, file=text).print(report)
    text = text.getvalue()
    for line in str(report).splitlines():
        cells = [cell for cell in line.split("  ") if cell.strip()]
        assert all(cell.strip() in text for cell in cells), line
    assert text.count("float32") == 2


# --- metrics


METRICS = ("step", "sparsity", "sparsity_all", "target", "n_zero", "fires_left")
METRICS = tuple(f"prune/{name}" for name in (*METRICS, "emptied_leaves", "violations"))


def test_metrics_count_what_the_masks_and_thresholds_hold():
    tx = optax.chain(optax.sgd(0.01), jaxprune.prune(SCHEDULE))
    planned = {leaf.path: leaf.n_zero for leaf in jaxprune.plan(trainable(), SCHEDULE).leaves}
    for t, (_, state) in enumerate(train(tx, trainable(), 6)):
        masks, metrics = by_path(jaxprune.get_masks(state)), jaxprune.metrics(state, per_leaf=True)
        dropped = {path: int(np.sum(~m)) for path, m in masks.items()}
        pruned = [path for path, mask in masks.items() if mask.ndim > 1]
        size = sum(masks[path].size for path in pruned)
        thresholds = dict(zip(masks, np.asarray(jaxprune.get_state(state).thresholds), strict=True))
        n_zero = np.float32(sum(dropped.values()))
        expected = {
            "prune/step": t + 1,
            "prune/n_zero": n_zero,
            "prune/sparsity": n_zero / np.float32(size),
            "prune/sparsity_all": n_zero / np.float32(sum(m.size for m in masks.values())),
            "prune/target": np.float32(sum(planned.values())) / np.float32(size),
            "prune/fires_left": sum(step > t for step in SCHEDULE.fire_steps),
            "prune/emptied_leaves": 0,
            "prune/violations": 0,
        }
        for path in pruned:
            mask = masks[path]
            expected[f"prune/sparsity/{path}"] = np.float32(dropped[path]) / max(mask.size, 1)
            expected[f"prune/threshold/{path}"] = thresholds[path]
        assert set(metrics) == set(expected)
        for name, value in metrics.items():
            assert value.shape == (), name
            assert value.dtype in (jnp.float32, jnp.int32), name
            # A quotient of floats that XLA may multiply by the reciprocal: one rounding apart.
            np.testing.assert_allclose(value, expected[name], rtol=2**-22, err_msg=name)
        assert tuple(jaxprune.metrics(state)) == METRICS


def test_a_target_of_nine_tenths_shows_as_nine_tenths_beside_biases():
    params = {"kernel": ones(20, 10), "bias": ones(10)}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.9))
    _, state = tx.update(params, tx.init(params), params)
    metrics = {name: float(value) for name, value in jaxprune.metrics(state).items()}
    assert metrics["prune/sparsity"] == metrics["prune/target"] == np.float32(0.9)
    assert metrics["prune/sparsity_all"] == np.float32(180) / np.float32(210)


def test_metrics_of_a_dense_baseline_are_zeros_if_asked_for():
    state = optax.adam(0.1).init(trainable())
    with pytest.raises(ValueError, match="no prune state"):
        jaxprune.metrics(state)
    metrics = jaxprune.metrics(state, missing_ok=True, per_leaf=True)
    assert {name: float(x) for name, x in metrics.items()} == dict.fromkeys(METRICS, 0.0)
    pruned = jaxprune.metrics(jaxprune.prune(SCHEDULE).init(trainable()))
    chex.assert_trees_all_equal_shapes_and_dtypes(metrics, pruned)


def test_metrics_of_several_states_add_up():
    params = {"a": ones(10, 10), "b": ones(5, 20), "bias": ones(7)}
    once = lambda sparsity, step: jaxprune.prune(jaxprune.one_shot_schedule(sparsity, step))
    labels = {"a": "first", "b": "second", "bias": "second"}
    tx = optax.partition({"first": once(0.5, 0), "second": once(0.8, 3)}, labels)
    _, state = tx.update(params, tx.init(params), params)
    metrics = jaxprune.metrics(state, per_leaf=True)
    assert metrics["prune/n_zero"] == 50
    assert metrics["prune/sparsity"] == 0.25
    assert metrics["prune/sparsity_all"] == np.float32(50 / 207)
    np.testing.assert_allclose(metrics["prune/target"], 0.65, rtol=1e-6)
    assert metrics["prune/fires_left"] == 1
    assert metrics["prune/step"] == 1
    assert metrics["prune/sparsity/a"] == 0.5
    assert metrics["prune/sparsity/b"] == 0
    assert "prune/sparsity/bias" not in metrics


ONCE = functools.cache(jaxprune.one_shot_schedule)
TRIANGLE = {"a": np.tril(np.ones((8, 8), bool))}  # 36 of 64 weights


def updated(params, *transformations):
    """The state of a chain after one update."""
    tx = optax.chain(*transformations)
    return tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[1]


@pytest.mark.parametrize("other", ({"include": "b"}, {}), ids=("another leaf", "all leaves"))
@pytest.mark.parametrize("order", (1, -1))
def test_metrics_count_the_weights_that_exist_if_one_of_the_states_knows_them(other, order):
    params = random_params({"a": (8, 8), "b": (4, 6), "bias": (6,)})
    both = (
        jaxprune.prune(ONCE(0.5), include="a", structural=TRIANGLE),
        jaxprune.prune(ONCE(0.5), **other),
    )
    state = updated(params, *both[::order])
    metrics = jaxprune.metrics(state, per_leaf=True)
    assert metrics["prune/n_zero"] == 18 + 12
    assert metrics["prune/sparsity"] == metrics["prune/target"] == 0.5
    assert metrics["prune/sparsity_all"] == np.float32(30) / np.float32(36 + 24 + 6)
    assert metrics["prune/sparsity/a"] == metrics["prune/sparsity/b"] == 0.5


@pytest.mark.parametrize(
    "options", ({}, {"structure": jaxprune.Channel()}), ids=("weights", "units")
)
@pytest.mark.parametrize("order", (1, -1))
def test_a_leaf_of_two_states_counts_as_in_the_one_that_keeps_least(order, options):
    params = random_params({"a": (4, 5), "b": (6, 5), "bias": (5,)})
    most = jaxprune.prune(ONCE(0.8), **options)
    both = most, jaxprune.prune(ONCE(0.5), include="a")
    state = updated(params, *both[::order])
    metrics = jaxprune.metrics(state, per_leaf=True)
    alone = jaxprune.metrics(updated(params, most), per_leaf=True)
    assert set(metrics) == set(alone)
    for name in metrics:
        assert metrics[name] == alone[name], name
    assert metrics["prune/sparsity"] == metrics["prune/sparsity/a"] == np.float32(0.8)


def test_the_target_of_a_leaf_of_two_states_is_the_larger_one():
    params = random_params({"a": (4, 5), "b": (6, 5), "c": (8, 5), "bias": (5,)})
    pool = jaxprune.prune(ONCE(0.5), include=("a", "b"), distribution=jaxprune.global_pool)
    blocks = jaxprune.prune(ONCE(0.25), include=("b", "c"), structure={"c": jaxprune.Block((2, 1))})
    state = updated(params, pool, blocks)
    # The pool drops 25 of 50, on average 10 of a and 15 of b; of c, 5 of 20 blocks are due.
    assert jaxprune.metrics(state)["prune/target"] == np.float32(10 + 15 + 10) / np.float32(90)


def test_metrics_inside_jit_name_the_leaves_that_several_branches_trace():
    params = random_params({"a": (4, 5), "b": (6, 5), "bias": (5,)})
    first, second = (jaxprune.prune(ONCE(0.5), include=path) for path in ("a", "b"))
    for chain in (
        (first, optax.MultiSteps(second, 2).gradient_transformation()),
        (first, second, first),
    ):
        tx = optax.chain(*chain)

        @jax.jit
        def step(params, state, tx=tx):
            state = tx.update(params, state, params)[1]
            return state, jaxprune.metrics(state, per_leaf=True)

        state, inside = step(params, tx.init(params))
        outside = jaxprune.metrics(state, per_leaf=True)
        assert set(inside) == set(outside)
        assert {"prune/sparsity/a", "prune/sparsity/b"} < set(inside)
        assert "prune/sparsity/bias" not in inside


@pytest.mark.parametrize("packed", (False, True))
def test_metrics_of_a_vmapped_state_have_its_leading_axis(packed):
    tx = jaxprune.prune(SCHEDULE, packed=packed)
    params = {"kernel": jnp.arange(60.0).reshape(5, 12), "bias": ones(12)}
    states = [tx.init(params)]
    for _ in range(2):
        states.append(tx.update(params, states[-1], params)[1])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    metrics = jaxprune.metrics(stacked, per_leaf=True)
    for i, state in enumerate(states):
        for name, value in jaxprune.metrics(state, per_leaf=True).items():
            assert metrics[name].shape == (3,)
            np.testing.assert_array_equal(metrics[name][i], value)


def test_metrics_count_the_leaves_that_lost_everything():
    params = {"large": 10 * ones(8, 8), "small": ones(4, 4)}
    schedule = jaxprune.one_shot_schedule(0.5)
    tx = jaxprune.prune(schedule, distribution=jaxprune.global_pool)
    updates, state = tx.update(params, tx.init(params), params)
    assert jaxprune.metrics(state)["prune/emptied_leaves"] == 1
    with pytest.warns(UserWarning, match="small: every weight of this leaf is dropped"):
        jaxprune.check(optax.apply_updates(params, updates), state, done=True)


def test_thresholds_in_metrics_separate_the_kept_from_the_dropped():
    params = trainable()
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    metrics = jaxprune.metrics(state, per_leaf=True)
    masks = by_path(jaxprune.get_masks(state))
    for path, leaf in by_path(params).items():
        threshold = float(metrics.get(f"prune/threshold/{path}", 0))
        scores = np.abs(leaf.astype(np.float32))
        if masks[path].all():
            assert threshold == 0
        else:
            assert scores[masks[path]].min() >= threshold >= scores[~masks[path]].max()


def test_metrics_are_the_same_inside_jit():
    _, state = runs(True, "inner")[-1]
    outside = jaxprune.metrics(state, per_leaf=True)
    inside = jax.jit(functools.partial(jaxprune.metrics, per_leaf=True))(state)
    assert set(inside) == set(outside)
    for name in inside:
        assert inside[name].dtype == outside[name].dtype
        np.testing.assert_allclose(inside[name], outside[name], rtol=2**-22, err_msg=name)


def test_metrics_of_an_empty_tree_are_zero():
    metrics = jaxprune.metrics(jaxprune.prune(SCHEDULE).init({}), per_leaf=True)
    assert {name: float(value) for name, value in metrics.items()} == dict.fromkeys(
        METRICS, 0.0
    ) | {"prune/fires_left": len(SCHEDULE.fire_steps)}


# --- check

MISPLACED = ("prune(schedule, inner=optimizer)", "jaxprune.apply_masks(params, opt_state)")


def prune(**more):
    return jaxprune.prune(SCHEDULE, **more)


RIGHT = {
    "last": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2), prune()),
    "momentum": lambda: optax.chain(optax.sgd(0.1, momentum=0.9), prune()),
    "inner": lambda: prune(inner=optax.adamw(1e-2)),
    "nested": lambda: optax.chain(optax.chain(optax.sgd(0.1), prune()), optax.identity()),
    "masked": lambda: optax.chain(
        optax.sgd(0.1), optax.masked(prune(), {"fc": True, "head": False, "scale": True})
    ),
    "accumulated": lambda: optax.MultiSteps(prune(inner=optax.adam(1e-2)), 2),
}
WRONG = {
    "adam": lambda: optax.chain(prune(), optax.adam(1e-2)),
    "momentum": lambda: optax.chain(prune(), optax.trace(0.9)),
    "scale": lambda: optax.chain(optax.sgd(1.0), prune(), optax.scale(0.5)),
    "clip": lambda: optax.chain(optax.sgd(0.1), prune(), optax.clip(1e-3)),
    "clip_by_global_norm": lambda: optax.chain(prune(), optax.clip_by_global_norm(1e-2)),
    "decay": lambda: optax.chain(optax.sgd(0.1), prune(), optax.add_decayed_weights(-0.1)),
    "ema": lambda: optax.chain(optax.sgd(0.1), prune(), optax.ema(0.9)),
    "inside_a_chain": lambda: optax.chain(optax.chain(optax.sgd(0.1), prune()), optax.scale(2.0)),
}


@functools.cache
def runs(right, name):
    with jax.numpy_dtype_promotion("standard"):  # some optimizers of optax need it
        return train((RIGHT if right else WRONG)[name](), small(), 8)


@pytest.mark.parametrize("name", RIGHT)
def test_check_passes_at_every_step_in_the_right_order(name):
    for params, state in runs(True, name):
        jaxprune.check(params, state)
        assert int(jaxprune.get_state(state).violations) == 0
    assert jaxprune.summarize(params, state).n_zero > 0


@pytest.mark.parametrize("name", WRONG)
def test_check_names_the_leaves_that_a_wrong_order_brings_back(name):
    for params, state in runs(False, name):
        counts = {}
        masks = by_path(jaxprune.get_masks(state))
        for path, leaf in by_path(params).items():
            n_moved = int(np.sum((leaf != 0) & ~masks[path]))
            if n_moved:
                counts[path] = f"{path}: {n_moved} of {np.sum(~masks[path])}"
        if counts:
            with pytest.raises(ValueError, match=says(*counts.values(), *MISPLACED)) as caught:
                jaxprune.check(params, state)
            assert all(f"{path}:" not in str(caught.value) for path in masks.keys() - counts)
            assert set(KERNELS) <= counts.keys()
    assert counts  # after both fires


@pytest.mark.parametrize("name", WRONG)
def test_violations_detect_a_wrong_order_from_the_next_fire_on(name):
    counts = [int(jaxprune.get_state(state).violations) for _, state in runs(False, name)]
    begin, end = STEPS["begin_step"], STEPS["end_step"]
    assert counts[: begin + 1] == [0] * (begin + 1)
    assert all(count == counts[end] > 0 for count in counts[end:])


def test_violations_stay_at_the_worst_that_any_fire_found():
    tx = jaxprune.prune(jaxprune.linear_schedule(0.75, 0, 4, every=1, initial_sparsity=0.25))
    params, violations = small(), []
    state, still = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for n_moved in (0, 1, 2, 1, 0):
        masks = jaxprune.get_masks(state)["fc"]["kernel"]
        fc = np.array(params["fc"]["kernel"])
        fc[tuple(np.argwhere(~np.asarray(masks))[:n_moved].T)] = 1.0
        params["fc"] = {**params["fc"], "kernel": jnp.asarray(fc)}
        _, state, params = stepper(tx)(still, state, params)
        violations.append(int(state.violations))
    assert violations == [0, 1, 2, 2, 2]
    assert jaxprune.metrics(state)["prune/violations"] == 2


@pytest.mark.parametrize("name", WRONG)
def test_check_raises_after_the_damage_is_gone(name):
    params, state = runs(False, name)[-1]
    n_moved = int(jaxprune.get_state(state).violations)
    with pytest.raises(ValueError, match=says("zero now", str(n_moved), *MISPLACED)):
        jaxprune.check(jaxprune.apply_masks(params, state), state)


def test_check_accepts_minus_zero_and_ignores_kept_weights():
    params, state = runs(True, "last")[-1]
    masks = jaxprune.get_masks(state)
    with jax.debug_nans(False):
        wild = jax.tree.map(lambda p, m: jnp.where(m, jnp.nan, -0.0).astype(p.dtype), params, masks)
        jaxprune.check(wild, state)


def test_check_looks_at_every_member_of_a_vmapped_state():
    params = {"ties": ones(2, 3, 3), "bias": ones(2, 3)}
    tx = optax.chain(optax.sgd(0.1), prune())
    state, step = jax.vmap(tx.init)(params), jax.jit(jax.vmap(tx.update))
    for _ in range(2):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
    jaxprune.check(params, state)
    second = state[1]._replace(violations=jnp.array([0, 4], jnp.int32))
    with pytest.raises(ValueError, match=says("zero now", "4")):
        jaxprune.check(params, (state[0], second))
    params["ties"] = params["ties"].at[1].set(1.0)
    with pytest.raises(ValueError, match=r"^ties: 2 of 4 "):
        jaxprune.check(params, state)


def test_check_reads_restored_numpy_arrays():
    params, state = runs(True, "inner")[-1]
    jaxprune.check(*jax.tree.map(np.asarray, (params, state)))
    params = jax.tree.map(np.array, params)
    params["head"]["kernel"][...] = 1
    with pytest.raises(ValueError, match=r"^head/kernel: 8 of 8 "):
        jaxprune.check(params, jax.tree.map(np.asarray, state))


def test_the_step_of_several_states_is_the_largest():
    state = jaxprune.prune(jaxprune.one_shot_schedule(0.5)).init({"w": jnp.ones((2, 2))})
    later = state._replace(prune_step=jnp.asarray(7, jnp.int32))
    for states in ((state, later), (later, state)):
        assert jaxprune.metrics(states)["prune/step"] == 7


ADAM = optax.adam(0.1)


def deleted(tree):
    """A tree whose arrays are as after a donation."""
    tree = jax.tree.map(jnp.copy, tree)
    jax.tree.map(lambda x: x.delete(), tree)
    return tree


@pytest.mark.skip_in("debug_nans", "disable_jit", reason="nothing is donated")
@pytest.mark.parametrize(
    "function",
    (
        *("check", "metrics", "summarize", "save", "get_masks", "apply_masks", "prune_params"),
        *("masks_from_params", "keep_zeros", "set_masks", "upgrade_state", "pack_masks"),
        *("unpack_masks", "choose_schedule", "straight_through", "splice", "to_csr", "to_bcoo"),
        *("to_bcsr", "save_csr", "save_safetensors"),
    ),
)
def test_donated_arrays_are_named(function, tmp_path):
    tx = jaxprune.prune(SCHEDULE, inner=optax.sgd(0.1))
    step = jax.jit(tx.update, donate_argnums=(1, 2))
    given = jax.tree.map(jnp.copy, small())
    params, state = jax.tree.map(jnp.copy, small()), tx.init(given)
    step(given, state, params)
    new, two = tx.init(small()), jaxprune.prune([SCHEDULE, SCHEDULE])
    masks = jaxprune.get_masks(new)
    calls = {
        "check": lambda: jaxprune.check(given, state),
        "metrics": lambda: jaxprune.metrics(state),
        "summarize": lambda: jaxprune.summarize(params),
        "save": lambda: jaxprune.save(tmp_path / "model.zst", given, state),
        "get_masks": lambda: jaxprune.get_masks(state),
        "apply_masks": lambda: jaxprune.apply_masks(given, state),
        "prune_params": lambda: jaxprune.prune_params(params, 0.5),
        "masks_from_params": lambda: jaxprune.masks_from_params(params),
        "keep_zeros": lambda: jaxprune.keep_zeros(optax.sgd(0.1)).init(params),
        "set_masks": lambda: jaxprune.set_masks(state, masks),
        "upgrade_state": lambda: jaxprune.upgrade_state(tx, small(), state),
        "pack_masks": lambda: jaxprune.pack_masks(state),
        "unpack_masks": lambda: jaxprune.unpack_masks(deleted(jaxprune.pack_masks(new))),
        "choose_schedule": lambda: jaxprune.choose_schedule(deleted(two.init(small())), 1),
        "straight_through": lambda: jaxprune.straight_through(params, masks),
        "splice": lambda: jaxprune.splice(
            optax.chain(ADAM, tx), small(), deleted(ADAM.init(small()))
        ),
        "to_csr": lambda: jaxprune.to_csr(params),
        "to_bcoo": lambda: jaxprune.to_bcoo(params),
        "to_bcsr": lambda: jaxprune.to_bcsr(params),
        "save_csr": lambda: jaxprune.save_csr(tmp_path / "csr", params),
        "save_safetensors": lambda: jaxprune.save_safetensors(tmp_path / "a.safetensors", params),
    }
    with pytest.raises(ValueError, match=rf"{function}: .*/.* donated .* Pass those") as raised:
        calls[function]()
    assert "fc/kernel" in str(raised.value)


def linear(params, x):
    return x @ params["kernel"] @ params["out"]


READS_VALUES = {
    "plan: params: kernel": lambda p: jaxprune.plan(p, jaxprune.keep_zeros(ADAM)),
    "sensitivity: params: kernel": lambda p: jaxprune.sensitivity(
        lambda q: jnp.sum(q["kernel"]), p, (0.5,)
    ),
    "shrink: variables: kernel": lambda p: jaxprune.shrink(linear, p, np.ones((2, 4))),
    "shrink: along: kernel": lambda p: jaxprune.shrink(
        linear, {"kernel": jnp.ones((4, 4)), "out": jnp.ones((4, 2))}, np.ones((2, 4)), along=p
    ),
    "topk_mask: scores": lambda p: jaxprune.topk_mask(p["kernel"], 3),
    "topk_masks: scores/0": lambda p: jaxprune.topk_masks([p["kernel"]], 3),
    "pack_matrix: w": lambda p: jaxprune.pack_matrix(p["kernel"]),
    "pack_matrix: mask": lambda p: jaxprune.pack_matrix(np.ones((4, 4)), mask=p["kernel"]),
    "weight_histogram: after: kernel": lambda p: jaxprune.plots.weight_histogram(
        {"kernel": np.ones((4, 4))}, {"kernel": p["kernel"]}
    ),
    "mask_image: mask": lambda p: jaxprune.plots.mask_image(p["mask"]),
    r"sparsity_curve: history\[1\]: prune/step": lambda p: jaxprune.plots.sparsity_curve(
        [{"prune/step": 1}, {"prune/step": p["step"]}]
    ),
}


@pytest.mark.skip_in("debug_nans", "disable_jit", reason="nothing is donated")
@pytest.mark.parametrize("where", READS_VALUES)
def test_donated_arguments_of_functions_that_read_values_are_named(where):
    params = {"kernel": jnp.ones((4, 4)), "out": jnp.ones((4, 2)), "step": jnp.zeros(())}
    params["mask"] = jnp.ones((4, 4), bool)
    with pytest.raises(ValueError, match=rf"^{where}.* donated .* Pass those"):
        READS_VALUES[where](deleted(params))


SHAPES_FOR = {
    "keep_zeros: params": lambda shapes, masks: jaxprune.keep_zeros(ADAM).init(shapes),
    "rigl, .*: params": lambda shapes, masks: jaxprune.rigl(0.5, 9, inner=ADAM).init(shapes),
    "static_sparse: params": lambda shapes, masks: jaxprune.static_sparse(0.5, inner=ADAM).init(
        shapes
    ),
    "straight_through: params": jaxprune.straight_through,
    "straight_through: masks": lambda shapes, masks: jaxprune.straight_through(
        small(), jax.eval_shape(lambda: masks)
    ),
    "apply_masks: params": jaxprune.apply_masks,
    "apply_masks: masks_or_opt_state": lambda shapes, masks: jaxprune.apply_masks(
        small(), jax.eval_shape(lambda: masks)
    ),
    "set_masks: masks": lambda shapes, masks: jaxprune.set_masks(
        jaxprune.prune(SCHEDULE).init(small()), jax.eval_shape(lambda: masks)
    ),
}


@pytest.mark.parametrize("where", SHAPES_FOR)
def test_shapes_in_place_of_arrays_are_named(where):
    masks = jaxprune.get_masks(jaxprune.prune(SCHEDULE).init(small()))
    needs = r"[\w/]+: needs numbers, got ShapeDtypeStruct.* which is only a shape. Pass arrays"
    with pytest.raises(TypeError, match=f"{where}: {needs}"):
        SHAPES_FOR[where](jax.eval_shape(small), masks)


def test_summarize_of_a_train_state_asks_for_its_params():
    """Its total counted moments and masks as if they were weights."""
    tx = jaxprune.prune(SCHEDULE, inner=optax.adam(0.1))
    state = TrainState.create(apply_fn=None, params=small(), tx=tx)
    without_state = TrainState.create(apply_fn=None, params=small(), tx=optax.sgd(0.1))
    kinds = {"training, TrainState": (state, without_state, {"q1": without_state})}
    kinds |= {"an optimizer, PruneState": (state.opt_state, tx.init(small()))}
    for kind, wrong in ((kind, wrong) for kind, all_wrong in kinds.items() for wrong in all_wrong):
        for call in (jaxprune.summarize, lambda params: jaxprune.plan(params, 0.5)):
            with pytest.raises(TypeError, match=rf"the state of {kind}.*state\.params"):
                call(wrong)
    assert jaxprune.summarize(state.params).n_zero == jaxprune.summarize(small()).n_zero


def test_check_finds_an_optimizer_that_was_made_for_no_params():
    """With a `wrt` that matches nothing, NNX trains nothing, and `check` had nothing to check."""
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    tx = jaxprune.prune(SCHEDULE, inner=optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.BatchStat)
    with pytest.raises(ValueError, match=says("check:", "bias, kernel", "wrt=nnx.Param")):
        jaxprune.check(nnx.state(model, nnx.Param), optimizer)
    jaxprune.check({}, tx.init({}))


def test_check_says_that_a_finished_run_had_nothing_to_prune():
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    tx = jaxprune.prune(SCHEDULE, inner=optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    lora = nnx.state(model, nnx.LoRAParam)
    jaxprune.check(lora, optimizer)
    with pytest.raises(ValueError, match=says("check:", "no leaves", "wrt=nnx.Param")):
        jaxprune.check(lora, optimizer, done=True)


def test_check_passes_for_an_empty_group_of_a_partition():
    groups = {name: jaxprune.prune(jaxprune.one_shot_schedule(0.5)) for name in ("some", "none")}
    tx = optax.chain(optax.sgd(0.1), optax.partition(groups, {"w": "some"}))
    params = {"w": ones(2, 4)}
    updates, state = tx.update(params, tx.init(params), params)
    jaxprune.check(optax.apply_updates(params, updates), state, done=True)
    assert jaxprune.plan(params, tx).notes == ()


@pytest.mark.parametrize("wrong", (jaxprune.one_shot_schedule(0.5), nn.Dense(3)), ids=type)
def test_summarize_of_something_else_than_params_raises(wrong):
    with pytest.raises(TypeError, match=r"params must be a tree of arrays.*variables\['params'\]"):
        jaxprune.summarize(wrong)


@pytest.mark.parametrize("wrong", ({"kernel": "a"}, 3, [0.5], {"f": len}), ids=repr)
def test_a_tree_without_arrays_has_no_weights_to_summarize(wrong):
    with pytest.raises(TypeError, match=says("params must be a tree of arrays", "got")):
        jaxprune.summarize(wrong)


# Several networks


def test_check_says_that_states_of_several_networks_were_merged():
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.sgd(0.1))
    params = {"q1": {"w": jnp.array([[1.0, 2.0]])}, "q2": {"w": jnp.array([[2.0, 1.0]])}}
    states = {name: tx.init(net) for name, net in params.items()}
    for name, net in params.items():
        updates, states[name] = tx.update(jax.tree.map(jnp.zeros_like, net), states[name], net)
        params[name] = optax.apply_updates(net, updates)
        jaxprune.check(params[name], states[name], done=True)
    for done in (False, True):
        with pytest.raises(ValueError, match="2 prune states in this optimizer state prune w") as e:
            jaxprune.check(params["q1"], states, done=done)
        assert_says(str(e.value), "w: 1 of 2 dropped weights", 'opt_state["q1"]')
    wrong = {"w": jnp.ones((1, 2))}
    with pytest.raises(ValueError, match="w: 1 of 1 dropped weight ") as e:
        jaxprune.check(wrong, states["q1"])
    assert "different networks" not in str(e.value)


def test_a_state_without_leaves_is_no_other_network():
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
    params = {"w": jnp.array([[1.0, 2.0]])}
    _, state = tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="w: 1 of 1 dropped weight is not zero") as error:
        jaxprune.check(params, {"pruned": state, "empty": tx.init({"w": optax.MaskedNode()})})
    assert "prune states in this optimizer state" not in str(error.value)


def test_metrics_of_several_networks_are_refused_where_shapes_tell():
    """They were a mixture that belongs to no network."""
    generator, judge = {"fc": ones(4, 4), "bias": ones(4)}, {"fc": ones(8, 2), "bias": ones(2)}
    tx = jaxprune.prune(SCHEDULE)
    states = {"g": tx.init(generator), "d": tx.init(judge)}
    with pytest.raises(ValueError, match=says("bias: ", "(4,)", "(2,)", 'states["q1"]')):
        jaxprune.metrics(states)
    assert jaxprune.metrics(states["d"])["prune/step"] == 0
    both = optax.chain(tx, jaxprune.prune(SCHEDULE, packed=True))
    assert jaxprune.metrics(both.init(generator))["prune/n_zero"] == 0


def test_a_state_that_mixes_two_models_is_named():
    """As `nnx.update` makes it with the checkpoint of a model that had fewer layers."""
    tx = jaxprune.prune(SCHEDULE)
    small, large = (
        {"a": ones(4, 4), "bias": ones(4)},
        {"a": ones(4, 4), "bias": ones(4), "b": ones(4)},
    )
    old, new = tx.init(small), tx.init(large)
    mixed = old._replace(masks=new.masks)
    for call in (jaxprune.metrics, lambda state: jaxprune.check(large, state)):
        with pytest.raises(
            ValueError, match=says("3 masks", "2 leaves", "masks_from_params(params)")
        ):
            call(mixed)
