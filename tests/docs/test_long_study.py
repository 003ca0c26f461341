"""What docs/paper.md says of the language models of one layer and of a million weights is true."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("flax")
pytest.importorskip("rich")

from benchmarks.paper import paired, story, text
from benchmarks.paper.study import n_params_of, networks_of

ROOT = pathlib.Path(__file__).parents[2]
WORDS = " ".join((ROOT / "docs/paper.md").read_text(encoding="utf-8").split())
RESULTS = story.load_paired(ROOT / "benchmarks/results")["lstm-long"]
SHORT = story.load(ROOT / "benchmarks/results")["lstm"]
INPUTS = (jax.ShapeDtypeStruct((1, 2), jnp.int32),)


def cost_in_percent(results):
    """How much worse the network with 90 % zeros is than the dense one."""
    means = {row["name"]: row["mean"] for row in results["summary"]}
    return 100 * (means["sparse-0.9"] / means["dense"] - 1)


def test_the_setting_is_that_of_the_code(monkeypatch):
    study = text.long_study("cpu")
    n_params = n_params_of(study, study.width, INPUTS)
    assert f"with {n_params:,} parameters ({study.width} wide)" in WORDS
    monkeypatch.setattr(text, "make_task", lambda batch, time, *_: (batch, time))
    batch, time = study.task()
    assert (
        f"which read {study.steps * batch * time / 1e6:.1f} million bytes of the same text" in WORDS
    )
    assert f"and {study.steps:,} steps" in WORDS
    assert f"Batches have {batch} windows of {time} bytes." in WORDS
    short_batch, short_time = text.study("cpu").task()
    n_bytes = text.study("cpu").steps * short_batch * short_time
    assert round(study.steps * batch * time / n_bytes) == 3
    assert (study.learning_rate, study.small_learning_rate) == (1e-2, 2e-2)
    assert "1e-2 at width 272, for the dense and the pruned networks, and 2e-2 at width 79" in WORDS


def test_what_is_said_of_one_layer_is_in_its_results():
    one = story.load_paired(ROOT / "benchmarks/results")["lstm-one-layer"]
    levels = (0.75, 0.9, 0.95)
    names = ("dense", *(f"{kind}-{x:g}" for kind in ("uniform", "erk", "small") for x in levels))
    runs = {(run["network"], run["seed"]) for run in one["runs"]}
    assert runs == {(name, seed) for name in names for seed in range(3)}
    study = text.one_layer_study("cpu")
    assert f"This one is {study.width} wide" in WORDS
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8").splitlines()
    assert all(line in page for line in paired.markdown(one))
    uniform, erk = (
        [paired.against_small(one, kind, level) for level in levels] for kind in ("sparse", "ERK")
    )
    assert not any(x.is_tie for x in (*uniform, *erk))
    gains = [f"{-x.mean:.2f}" for x in (*erk, *uniform)]
    assert "every size**, by {}, {} and {} bits.".format(*gains[:3]) in WORDS
    assert "better at 75 and 90 %, by {} and {} bits, and worse".format(*gains[3:5]) in WORDS
    assert f"worse at 95 %, by {uniform[2].mean:.2f}." in WORDS
    means = {row["name"]: row["mean"] for row in one["summary"]}
    two = {row["name"]: row["mean"] for row in SHORT["summary"]}
    assert all(means[f"erk-{x:g}"] < two[f"sparse-{x:g}"] for x in levels)
    assert means["small-0.9"] < two["small-dense-0.9"]
    of_two = [f"{two[f'sparse-{x:g}']:.2f}" for x in levels]
    assert "layers pruned uniformly ({}, {}, {}).".format(*of_two) in WORDS


def test_the_order_of_the_runs_begins_with_90_percent():
    rows = networks_of(text.long_study("cpu"), INPUTS)
    first = [row.name for row, _ in text.order(rows, 3)[:12]]
    assert first == ["dense", "sparse-0.9", "small-dense-0.9", "erk-0.9"] * 3
    assert [row.kind for row, _ in text.order(rows, 3)[-21:]] == ["shallow dense"] * 21


def test_what_is_said_of_the_results_is_in_them():
    runs = {(run["network"], run["seed"]) for run in RESULTS["runs"]}
    names = ("dense", "sparse-0.9", "small-dense-0.9", "shallow-dense-0.9")
    assert runs == {(name, seed) for name in names for seed in range(3)}
    narrower = paired.difference(RESULTS, "sparse-0.9", "small-dense-0.9")
    better = paired.against_small(RESULTS, "sparse", 0.9)
    assert better == paired.difference(RESULTS, "sparse-0.9", "shallow-dense-0.9")
    assert not better.is_tie
    text = "better by {:.2f} ± {:.2f} bits than the narrower network, and by {:.2f} ± {:.2f} than"
    numbers = (-narrower.mean, narrower.error, -better.mean, better.error)
    assert text.format(*numbers) in WORDS
    cost = paired.difference(RESULTS, "sparse-0.9", "dense").mean
    assert f"90 % costs {cost:.2f} bits, {cost_in_percent(RESULTS):.0f} % of the dense" in WORDS
    assert f"In the smaller network above it costs {cost_in_percent(SHORT):.0f} %" in WORDS
    assert 2 < cost_in_percent(RESULTS) < cost_in_percent(SHORT)
    gain = -paired.gain(RESULTS, "dense")
    assert f"still gain {gain:.2f} bits over the last third of their steps" in WORDS
    dense = [run["bits_per_byte"] for run in RESULTS["runs"] if run["network"] == "dense"]
    assert max(dense) < 1.8
