"""The study of the quality of structured pruning: units, tables and files."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("flax")
pytest.importorskip("typer")

import jaxprune
from benchmarks.paper import quality, tradeoff, units
from benchmarks.paper.study import n_params_of, shapes_of

AXES = {
    "a/kernel": ((), ("h",) * 2),
    "a/bias": (("h",) * 2,),
    "b/kernel": (("e", "h"), ("o",)),
    "b/mean": (("o",),),
}
SIZES = {"h": 5, "e": 2, "o": 3}


def toy_params():
    rng = np.random.default_rng(0)
    shapes = {"a": {"kernel": (4, 10), "bias": (10,)}, "b": {"kernel": (7, 3), "gain": (2,)}}
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s)), shapes, is_leaf=is_shape)


def alive(params):
    """Whether each unit has a nonzero weight, by loops."""
    kernel, bias, next_kernel = params["a"]["kernel"], params["a"]["bias"], params["b"]["kernel"]
    gates = lambda i: [*kernel[:, i], *kernel[:, 5 + i], bias[i], bias[5 + i]]
    return {
        "h": [any(x != 0 for x in [*gates(i), *next_kernel[2 + i]]) for i in range(5)],
        "e": [any(x != 0 for x in next_kernel[i]) for i in range(2)],
        "o": [any(x != 0 for x in next_kernel[:, i]) for i in range(3)],
    }


def test_planned_units_are_removed_with_everything_that_belongs_to_them():
    keep = {"h": 2, "e": 1, "o": 2}
    schedule = jaxprune.linear_schedule(0.5, 1, 3, every=1)
    chosen = units.Units(AXES, SIZES, keep)
    tx = units.prune_units(chosen, schedule, optax.sgd(0.1, momentum=0.9))
    params = toy_params()
    state, update = tx.init(params), jax.jit(tx.update)
    counts = []
    for step in range(5):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        expected = alive(params)
        counts.append({name: sum(x) for name, x in expected.items()})
        assert {name: x.tolist() for name, x in state.kept.items()} == expected, step
        zeros = sum(int((x == 0).sum()) for x in jax.tree.leaves(params))
        assert int(units.n_zero(chosen, state, params)) == zeros
    assert counts[0] == SIZES
    assert counts[3] == counts[4] == keep
    assert all(x["h"] >= y["h"] for x, y in itertools.pairwise(counts))


def test_the_units_of_the_smallest_norm_are_removed():
    params = toy_params()
    norms = units.scores(AXES, params, {name: jnp.zeros(n) for name, n in SIZES.items()})
    schedule = jaxprune.one_shot_schedule(0.5)
    tx = units.prune_units(
        units.Units(AXES, SIZES, {"h": 3, "e": 2, "o": 3}), schedule, optax.sgd(0.1)
    )
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    lost = np.argsort(norms["h"])[:2]
    assert np.flatnonzero(~state.kept["h"]).tolist() == sorted(lost.tolist())
    weights = [(params["a"]["kernel"], 1), (params["a"]["bias"], 0)]
    by_hand = [
        sum(float(jnp.sum(jnp.take(w, i + n, axis) ** 2)) for w, axis in weights for n in (0, 5))
        + float(jnp.sum(params["b"]["kernel"][2 + i] ** 2))
        for i in range(5)
    ]
    np.testing.assert_allclose(norms["h"] ** 2, by_hand, rtol=1e-5)


def test_dead_units_are_cut_out_of_every_collection():
    params = toy_params()
    keep = {"h": jnp.array([1, 0, 1, 0, 0], bool), "e": jnp.ones(2, bool), "o": jnp.arange(3) > 0}
    masks = units.masks_of(AXES, keep, params)
    params = jax.tree.map(lambda m, p: jnp.where(m, p, 0), masks, params)
    variables = {"params": params, "stats": {"b": {"mean": jnp.arange(3.0)}}}
    small, sizes = units.without_dead_units(AXES, SIZES, variables)
    assert sizes == {"h": 2, "e": 2, "o": 2}
    assert small["params"]["a"]["kernel"].shape == (4, 4)
    assert small["params"]["b"]["gain"].shape == (2,)
    assert small["stats"]["b"]["mean"].tolist() == [1.0, 2.0]
    kept = params["b"]["kernel"][jnp.array([0, 1, 2, 4])][:, 1:]
    assert small["params"]["b"]["kernel"].tolist() == kept.tolist()


@pytest.mark.parametrize("study", quality.studies("cpu")[:2], ids=lambda study: study.name)
def test_units_cover_the_network_and_the_rows_have_the_weights_they_say(study):
    study = dataclasses.replace(study, sparsities=(0.9,))
    shape = (1, 2) if "lstm" in study.name else (1, 8, 8, 1)
    dtype = jnp.int32 if "lstm" in study.name else jnp.float32
    inputs = (jax.ShapeDtypeStruct(shape, dtype),)
    chosen = quality._units(study, study.width)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes_of(study, study.width, inputs)):
        name = units.name_of(path[1:])
        assert name in chosen.axes or name.endswith(("softmax/bias", "logits/bias"))
        for axis, groups in enumerate(chosen.axes.get(name, ())):
            assert not groups or sum(chosen.sizes[g] for g in groups) == leaf.shape[axis]
    rows = quality.networks(study, inputs)
    kinds = set(tradeoff.KINDS) - (set() if "lstm" in study.name else {"shallow dense"})
    assert {row.kind for row in rows} == kinds | {"dense"}
    assert len({row.name for row in rows}) == len(rows) == 1 + len(kinds)
    assert rows[0].n_nonzero == n_params_of(study, study.width, inputs)
    left = {row.kind: row.n_nonzero for row in rows[1:]}
    for kind, n in left.items():  # counts of small layers and widths are rounded
        assert n == pytest.approx(left["unstructured"], rel=0.15), kind
    assert left["units"] == left["small dense"]


def test_the_units_of_a_language_model_are_those_of_its_layers(getkey):
    for n_layers in (1, 2, 3):
        module = quality._language_model(6, n_layers=n_layers)
        variables = module.init(getkey(), jnp.zeros((1, 2), jnp.int32))
        axes, sizes = quality._lstm_axes(module), quality._lstm_sizes(module)
        small, left = units.without_dead_units(axes, sizes, variables)
        assert left == sizes == {"embed": 3, **{f"lstm_{i}": 6 for i in range(n_layers)}}
        assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, variables)
        assert quality._lstm_of(sizes) == module


def test_latency_is_that_of_how_a_kind_is_run():
    row = {"task": "LSTM 2 x 650", "sparsity": 0.9, "batch": 1, "cores": 1, "x_cold": 7.0}
    latency = {"rows": [row | {"method": "packed 1x16"}, row | {"method": "x", "x_cold": 2.0}]}
    at = lambda kind: tradeoff.speedup(latency, "LSTM 2 x 650", kind, 0.9, "cold")
    assert (at("blocks 1x16"), at("N:M"), at("dense"), at("units")) == (7.0, 1.0, 1.0, None)
    assert at("shallow dense") is None  # not in these rows
    latency["rows"].append(row | {"method": "one dense layer", "x_cold": 3.0})
    assert at("shallow dense") == 3.0


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_short_study_is_written_with_the_size_of_its_files(tmp_path):
    from typer.testing import CliRunner

    from benchmarks.paper.__main__ import app

    done = CliRunner().invoke(
        app,
        [
            "quality",
            "--quick",
            "--only",
            "lstm",
            "--networks",
            "units|small",
            "--out",
            str(tmp_path),
        ],
    )
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "paper-quality-lstm-cpu.json").read_text())
    assert not result["finished"]
    units_runs = [run for run in result["runs"] if run["network"] == "units 0.9"]
    small = [run for run in result["runs"] if run["network"] == "small dense 0.9"]
    assert {run["bytes"] for run in units_runs} == {run["bytes"] for run in small}
    assert (tmp_path / "paper-quality-lstm-cpu.png").exists()
