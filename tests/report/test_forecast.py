"""`plan` of leaves that compete in one pool: totals are exact, shares are only told if known."""

import dataclasses
import json
import re
import warnings

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxprune
from helpers import assert_says, by_path, on_device, ones, says
from jaxprune import Block, Channel, global_pool, min_density, normalized_pool
from jaxprune._recipe.coupled import Coupled
from jaxprune._report.table import PoolReport

HALF = jaxprune.one_shot_schedule(0.5)


def unequal():
    """Leaves whose weights differ in scale by a factor of a thousand."""
    rng = np.random.default_rng(0)
    leaf = lambda scale, *shape: on_device(scale * rng.uniform(1, 2, shape))
    return {"big": leaf(1, 32, 32), "small": leaf(1e-3, 32, 32), "bias": ones(32)}


def counts(report):
    return {leaf.path: leaf.n_zero for leaf in report.leaves}


def pruned(params, sparsity, **arguments):
    """The number of zeros in each mask; leaves may be emptied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _, masks = jaxprune.prune_params(params, sparsity, **arguments)
    return {path: int(np.sum(~np.asarray(mask))) for path, mask in by_path(masks).items()}


def test_the_shares_of_a_global_pool_are_not_told_but_its_total_is():
    report = jaxprune.plan(unequal(), 0.6, distribution=global_pool)
    assert counts(report) == {"bias": 0, "big": None, "small": None}
    assert [leaf.sparsity for leaf in report.leaves] == [0, None, None]
    assert report.pools == (PoolReport(("big", "small"), 2048, 1229),)
    assert report.n_zero == 1229  # 1228.8
    assert report.sparsity == 1229 / 2080
    assert str(report).splitlines() == [
        "plan: 0.6 at step 0, 1 fire",
        "leaf   shape  dtype    weights  nonzero  sparsity  note",
        "bias   32     float32       32       32     0.00%  1-D",
        "big    32x32  float32    1,024        ?         ?  in one pool (global_pool)",
        "small  32x32  float32    1,024        ?         ?  in one pool (global_pool)",
        "total                    2,080      851    59.09%",
        "pool: 2 leaves compete in global_pool: 1,229 of their 2,048 weights are dropped",
        "  in total (60.01%); the share of each leaf is not known in advance",
    ]
    assert pruned(unequal(), 0.6, distribution=global_pool) == dict(bias=0, big=205, small=1024)


def test_a_report_with_unknown_shares_is_valid_json():
    report = jaxprune.plan(unequal(), 0.6, distribution=global_pool)
    text = json.dumps(dataclasses.asdict(report), allow_nan=False)
    assert [leaf["n_zero"] for leaf in json.loads(text)["leaves"]] == [0, None, None]


def test_rich_prints_unknown_shares():
    console = pytest.importorskip("rich.console").Console(width=200)
    with console.capture() as captured:
        console.print(jaxprune.plan(unequal(), 0.6, distribution=global_pool))
    assert captured.get().count("?") == 4
    assert "851" in captured.get()


# Few trees, since each is compiled: one leaf, leaves that can lose nothing, four that can.
TREES = (
    ((5, 6),),
    ((1, 1), (6, 2)),
    ((2, 1), (3, 4), (1, 1)),
    ((6, 6), (1, 5), (4, 3), (2, 2)),
)
DISTRIBUTIONS = (global_pool, normalized_pool, min_density(0.2, global_pool), min_density(0.6))


@given(
    shapes=st.sampled_from(TREES),
    sparsity=st.sampled_from((0.0, 0.25, 0.5, 0.75, 0.9)),
    distribution=st.sampled_from(DISTRIBUTIONS),
    override=st.none() | st.sampled_from((0.0, 0.3)),
    seed=st.integers(0, 9),
)
def test_what_plan_tells_is_what_pruning_does(shapes, sparsity, distribution, override, seed):
    rng = np.random.default_rng(seed)
    params = {
        str(i): np.float32(rng.uniform(1, 2, shape) * 4.0**i) for i, shape in enumerate(shapes)
    }
    rules = dict(distribution=distribution)
    if override is not None and sparsity:
        rules["overrides"] = {"0": override}
    try:
        report = jaxprune.plan(params, sparsity, **rules)
    except ValueError:  # a leaf would lose all of its weights
        with pytest.raises(ValueError, match="would lose all"):
            pruned(params, sparsity, **rules)
        return
    zeros = pruned(params, sparsity, **rules)
    assert report.n_zero == sum(zeros.values())
    pooled = [path for pool in report.pools for path in pool.paths]
    for path, n_zero in counts(report).items():
        assert n_zero == (None if path in pooled else zeros[path])
    for pool in report.pools:
        assert pool.n_zero == sum(zeros[path] for path in pool.paths)
        assert len(pool.paths) > 1


KNOWN = {
    "nothing is dropped": (0.0, global_pool),
    "every leaf is at its floor": (0.95, min_density(0.2, global_pool)),
}


@pytest.mark.parametrize("sparsity, distribution", KNOWN.values(), ids=KNOWN)
def test_shares_are_told_where_they_are_known(sparsity, distribution):
    report = jaxprune.plan(unequal(), sparsity, distribution=distribution)
    assert report.pools == ()
    assert counts(report) == pruned(unequal(), sparsity, distribution=distribution)


def test_the_only_leaf_that_can_lose_weights_is_known():
    params = {"w": ones(10, 10), "dot": ones(1, 1), "b": ones(3)}
    report = jaxprune.plan(params, 0.5, distribution=min_density(0.1, global_pool))
    assert counts(report) == {"b": 0, "dot": 0, "w": 51}  # 50.5
    zeros = pruned(params, 0.5, distribution=min_density(0.1, global_pool))
    assert zeros == counts(report)


def test_an_override_leaves_the_pool():
    report = jaxprune.plan(
        unequal() | {"c": ones(4, 4)}, 0.5, distribution=global_pool, overrides={"c": 0.25}
    )
    assert counts(report) == {"bias": 0, "big": None, "c": 4, "small": None}
    assert report.pools[0].paths == ("big", "small")


def test_units_of_different_sizes_give_an_average_that_is_marked():
    params = {"a": ones(4, 4), "b": ones(6, 4)}
    report = jaxprune.plan(params, 0.5, distribution=global_pool, structure=Channel())
    assert "2 leaves compete in global_pool: 4 of their 8 units" in report.notes[0]
    assert report.pools == (PoolReport(("a", "b"), 40, 20, is_exact=False),)
    assert str(report).split("total")[1].split()[:3] == ["40", "~20", "~50.00%"]
    report = jaxprune.plan(params, 0.5, distribution=global_pool, structure=Block((2, 2)))
    assert "2 leaves compete in global_pool: 20 of their 40 weights" in report.notes[0]
    assert report.pools == (PoolReport(("a", "b"), 40, 20),)


def test_the_plan_of_unequal_channels_counts_units():
    """It gave 5,005 nonzero weights as if that were known; these weights keep 8,222."""
    rng = np.random.default_rng(0)
    params = {
        "a": on_device(0.01 * rng.normal(size=(2, 64))),
        "b": ones(4),
        "c": on_device(rng.normal(size=(128, 64))),
    }
    rules = dict(distribution=global_pool, structure=Channel())
    report = jaxprune.plan(params, 0.4, **rules)
    assert pruned(params, 0.4, **rules) == {"a": 2 * 51, "b": 0, "c": 0}
    assert not report.is_exact
    assert "51 of their 128 units are dropped" in report.notes[0]
    assert str(report).split("total")[1].split()[1] == "~5,009"
    assert report.to_dict()["exact"] is False


def n_units_dropped(structure, mask):
    """How many units of a leaf are dropped, from its mask."""
    return int(np.sum(~np.asarray(structure.unit_mask(jax.numpy.asarray(mask)))))


SHAPES_OF_BLOCKS = (((4, 6), (2, 2)), ((5, 6), (3, 3)), ((5, 7), (1, 4), (3, 3, 5)))
UNITS = (Block((2, 2)), Block((1, 4)), Block((3, 2), balanced=True), Channel(-1))


@given(
    shapes=st.sampled_from(SHAPES_OF_BLOCKS),
    structure=st.sampled_from(UNITS),
    sparsity=st.sampled_from((0.0, 0.25, 0.5)),
    distribution=st.sampled_from((jaxprune.uniform, *DISTRIBUTIONS)),
    seed=st.integers(0, 9),
)
def test_what_plan_calls_exact_is_what_pruning_does(
    shapes, structure, sparsity, distribution, seed
):
    rng = np.random.default_rng(seed)
    params = {"free": ones(3)}
    params |= {str(i): np.float32(rng.normal(size=shape)) for i, shape in enumerate(shapes)}
    rules = dict(distribution=distribution, structure=structure)
    try:
        report = jaxprune.plan(params, sparsity, **rules)
    except ValueError:  # a leaf would lose all of its weights, or columns can't share a pool
        with pytest.raises(ValueError, match=r"would lose all|cannot compete"):
            pruned(params, sparsity, **rules)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # leaves may be emptied
        _, masks = jaxprune.prune_params(params, sparsity, **rules)
    zeros = {path: int(np.sum(~np.asarray(mask))) for path, mask in masks.items()}
    units = {path: n_units_dropped(structure, masks[path]) for path in masks if path != "free"}
    for leaf in report.leaves:
        if leaf.n_zero is not None and leaf.is_exact:
            assert leaf.n_zero == zeros[leaf.path]
    notes = [note for note in report.notes if note.startswith("pool:")]
    for pool, note in zip(report.pools, notes, strict=True):
        if pool.is_exact:
            assert pool.n_zero == sum(zeros[path] for path in pool.paths)
        else:
            assert f" {sum(units[path] for path in pool.paths)} of their " in note
    if report.is_exact:
        assert report.n_zero == sum(zeros.values())
    else:
        assert "~" in str(report)


@pytest.mark.parametrize("block, n_zero", (((0, 0), 16), ((0, 1), 4), ((1, 0), 4), ((1, 1), 1)))
def test_the_zeros_of_uneven_blocks_depend_on_which_is_dropped(block, n_zero):
    w = np.ones((5, 5), np.float32)
    rows, columns = ((slice(4), slice(4, 5))[k] for k in block)
    w[rows, columns] = 0.5
    params, rules = {"b": ones(3), "w": w}, dict(structure=Block((4, 4)))
    report = jaxprune.plan(params, 0.25, **rules)
    assert counts(report) == {"b": 0, "w": 6}  # 25 weights / 4
    assert [leaf.is_exact for leaf in report.leaves] == [True, False]
    assert_says(report.notes[0], "some units of w have fewer weights than others", "~ marks")
    assert pruned(params, 0.25, **rules) == {"b": 0, "w": n_zero}


def test_weights_of_no_unit_are_not_counted_as_zeros():
    """Two rows of `b` read something else than the channels of `a`."""
    structure = {
        "a": Coupled("g", 1, (0, 1, 2, 3), 4),
        "b": Coupled("g", 0, (0, -1, 1, 2, -1, 3), 4),
        "c": Coupled("h", 1, (0, 0, 1, -1), 2),
    }
    params = {"a": ones(3, 4), "b": ones(6, 2), "c": ones(2, 4), "free": ones(3)}
    report = jaxprune.plan(params, 0.5, structure=structure)
    assert counts(report) == {"a": 6, "b": 4, "c": 3, "free": 0}
    assert [leaf.is_exact for leaf in report.leaves] == [True, True, False, True]
    zeros = pruned(params, 0.5, structure=structure)
    assert zeros == {"a": 6, "b": 4, "c": 2, "free": 0}  # the channel of one index has the last


def test_coupled_leaves_are_decided_as_one_and_need_no_share():
    structure = {
        path: Coupled("g", axis, tuple(range(4)), 4) for path, axis in (("a", 1), ("b", 0))
    }
    params = {"a": ones(3, 4), "b": ones(4)}
    rules = dict(structure=structure, include=("a", "b"), distribution=global_pool)
    report = jaxprune.plan(params, 0.5, **rules)
    assert counts(report) == {"a": 6, "b": 2} == pruned(params, 0.5, **rules)


# --- the density floor


def test_plan_says_that_a_density_floor_prevents_the_target():
    for distribution in (
        min_density(0.2, global_pool),
        min_density(0.2),
        min_density(0.2, jaxprune.erk),
    ):
        report = jaxprune.plan(
            {"w": ones(10, 10), "v": ones(10, 10)}, 0.95, distribution=distribution
        )
        assert report.title == "plan: 0.95 (the density floor allows 0.8) at step 0, 1 fire"
        assert report.notes == (
            f"floor: {distribution} prevents the target: 0.8 of the units in pruned leaves are "
            "dropped in the end, not 0.95 (30 units fewer)",
        )
        assert report.sparsity == 0.8


@pytest.mark.parametrize("n_columns, kept", ((50, "5 units"), (10, "1 unit")))
def test_beside_overrides_the_title_counts_what_a_density_floor_keeps(n_columns, kept):
    """The title gave the sparsity of all leaves, as if 0.9 were missed by far."""
    params = {"w": ones(10, n_columns), "v": ones(10, 10)}
    rules = dict(overrides={"v": 0.5}, distribution=min_density(0.11, global_pool))
    report = jaxprune.plan(params, 0.9, **rules)
    assert report.title == f"plan: 0.9 (the density floor keeps {kept} more) at step 0, 1 fire"


# --- gradual schedules that drop everything at once


def plan_notes(every, **steps):
    return jaxprune.plan(
        {"w": ones(10, 10)}, jaxprune.cubic_schedule(0.9, every=every, **steps)
    ).notes


def test_plan_says_that_a_gradual_schedule_fires_too_rarely():
    (note,) = plan_notes(100, begin_step=0, end_step=60)
    assert_says(note, "every=100 is not shorter than", "in one step, 60", "pass every=3")
    (note,) = plan_notes(5, begin_step=2, end_step=7)
    assert_says(note, "from step 2 to step 7", "pass every=1")


def test_plan_says_that_alternating_phases_are_all_sparse():
    plan = lambda *steps: jaxprune.plan(
        {"w": ones(10, 10)}, jaxprune.acdc_schedule(0.9, *steps), regrow="zero"
    )
    (note,) = plan(0, 500).notes
    assert_says(note, "every=1000 is not shorter than", "so no phase is dense", "pass every=50")
    assert plan(0, 500, 100).notes == ()


def test_other_schedules_have_no_such_note():
    assert plan_notes(59, begin_step=0, end_step=60) == ()
    assert plan_notes(100, begin_step=60, end_step=60) == ()  # one shot
    assert plan_notes(1, begin_step=0, end_step=1) == ()  # no step between
    assert plan_notes(100, begin_step=0, end_step=60, initial_sparsity=0.5) == ()
    shot = jaxprune.from_optax_schedule(lambda step: 0.9, 0, 60, 100)
    assert jaxprune.plan({"w": ones(10, 10)}, shot).notes == ()


def test_a_floor_that_does_not_bind_is_not_mentioned():
    params = {"w": ones(10, 10), "v": ones(2, 2)}
    for distribution in (
        min_density(0.2, jaxprune.erk),
        min_density(0.2),
        min_density(0.2, global_pool),
    ):
        report = jaxprune.plan(params, 0.5, distribution=distribution)
        assert "floor" not in str(report)


# --- leaves that are emptied


@pytest.mark.parametrize(
    "distribution", (global_pool, jaxprune.Distribution("mine", global_pool.assign))
)
def test_prune_params_warns_where_a_pool_empties_a_leaf(distribution):
    expected = says(
        "prune_params: small:", str(distribution), "min_density(0.05", "exclude='small'"
    )
    with pytest.warns(UserWarning, match=expected) as caught:
        jaxprune.prune_params(unequal(), 0.6, distribution=distribution)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    fix = re.search(
        r"with distribution=(jaxprune\.min_density\(.*?\)) \(or", str(caught[0].message)
    )
    assert isinstance(eval(fix[1], {"jaxprune": jaxprune}), jaxprune.Distribution)


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
def test_no_warning_where_no_leaf_is_emptied():
    jaxprune.prune_params(unequal(), 0.49, distribution=global_pool)
    jaxprune.prune_params(unequal(), 0.6, distribution=normalized_pool)
    jaxprune.prune_params(unequal(), 0.6, distribution=min_density(0.01, global_pool))
    jaxprune.prune_params({"w": ones(4, 4), "empty": ones(0, 4)}, 0.5, distribution=global_pool)
    jax.jit(lambda p: jaxprune.prune_params(p, 0.6, distribution=global_pool))(unequal())


# --- parts of leaves


def test_axis_name_accepts_any_distribution_that_only_counts_units():
    mine = jaxprune.Distribution("mine", jaxprune.uniform.assign, needs_whole_leaves=False)
    for distribution in (mine, jaxprune.uniform, global_pool):
        jaxprune.prune(HALF, distribution=distribution, axis_name="data")
    for distribution in (
        jaxprune.Distribution("mine", jaxprune.uniform.assign),
        min_density(0.1, mine),
        jaxprune.per_slice(".*", mine),
        normalized_pool,
        jaxprune.erk,
    ):
        with pytest.raises(ValueError, match=r"axis_name: .* whole leaves"):
            jaxprune.prune(HALF, distribution=distribution, axis_name="data")


def test_a_floor_of_blocks_is_told_in_weights():
    distribution = min_density(0.5, jaxprune.global_pool)
    params = {"a": np.ones((4, 8), np.float32), "b": np.ones((2, 8), np.float32)}
    report = jaxprune.plan(params, 0.9, distribution=distribution, structure=Block((1, 4)))
    assert [leaf.n_zero for leaf in report.leaves] == [16, 8]
