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


def cost_in_percent(results, name="sparse-0.9"):
    """How much worse a pruned network is than the dense one."""
    means = {row["name"]: row["mean"] for row in results["summary"]}
    return 100 * (means[name] / means["dense"] - 1)


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
    kinds, levels = ("sparse", "erk", "small-dense", "shallow-dense"), (0.5, 0.8, 0.9, 0.95, 0.975)
    names = ("dense", *(f"{kind}-{level}" for kind in kinds for level in levels))
    assert runs == {(name, seed) for name in names for seed in range(3)}
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8").splitlines()
    assert all(line in page for line in paired.markdown(RESULTS))

    def gain(first, second):
        found = paired.difference(RESULTS, first, second)
        return f"{-found.mean:.2f} ± {found.error:.2f}"

    for level in levels:
        assert paired.small_network(RESULTS, level)["name"] == f"shallow-dense-{level}"
        assert paired.against_small(RESULTS, "ERK", level).is_tie == (level == 0.5)
    ties = [paired.against_small(RESULTS, "sparse", level).is_tie for level in levels]
    assert ties == [True, True, False, True, False]
    assert "At 50 % both tie." in WORDS
    erk = [gain(f"erk-{level}", f"shallow-dense-{level}") for level in levels[1:]]
    said = "from 80 % on: by {} bits at 80 %, {} at 90 %, {} at 95 % and {} at 97.5 %."
    assert said.format(*erk) in WORDS
    uniform = gain("sparse-0.9", "shallow-dense-0.9")
    worse = gain("shallow-dense-0.975", "sparse-0.975")
    said = f"better by {uniform} at 90 %, ties at 80 and 95 %, and is worse by {worse} at 97.5 %."
    assert f"With uniform sparsity it is {said}" in WORDS
    narrower = [gain(f"erk-{level}", f"small-dense-{level}") for level in levels]
    assert "ERK is better at every size, by {}, {}, {}, {} and {},".format(*narrower) in WORDS
    narrower = [gain(f"sparse-{level}", f"small-dense-{level}") for level in levels[:4]]
    worse = gain("small-dense-0.975", "sparse-0.975")
    said = "uniform sparsity by {}, {}, {} and {} up to 95 %; at 97.5 % it is worse by {}."
    assert said.format(*narrower, worse) in WORDS
    means = {row["name"]: row["mean"] for row in RESULTS["summary"]}
    twice = f"({means['erk-0.95']:.2f} and {means['shallow-dense-0.9']:.2f})"
    assert f"as good as the better small dense one of twice its size {twice}." in WORDS
    assert means["erk-0.95"] < means["shallow-dense-0.9"]
    little = [cost_in_percent(RESULTS, name) for name in ("sparse-0.5", "erk-0.5")]
    assert f"costs {means['sparse-0.5'] - means['dense']:.2f} bits, {little[0]:.1f} % of" in WORDS
    fifth = [cost_in_percent(RESULTS, name) for name in ("sparse-0.8", "erk-0.8")]
    said = "a fifth of the weights costs {:.1f} %, and {:.1f} % with ERK. It does not hold at 90 %"
    said = f"the dense network's, and {little[1]:.1f} % with ERK. At 80 %, {said.format(*fifth)}"
    assert said in WORDS
    assert max(little) < 2 < min(fifth)
    costs = [cost_in_percent(RESULTS, name) for name in ("sparse-0.9", "erk-0.9")]
    bits = [means[name] - means["dense"] for name in ("sparse-0.9", "erk-0.9")]
    assert (
        f"90 %, which costs {bits[0]:.2f} bits, {costs[0]:.0f} % of the dense network's, and"
        in WORDS
    )
    assert f"and with ERK {bits[1]:.2f} bits, {costs[1]:.0f} %." in WORDS
    assert f"uniform sparsity costs {cost_in_percent(SHORT):.0f} %" in WORDS
    assert 2 < costs[1] < costs[0] < cost_in_percent(SHORT)
    assert f"still gain {-paired.gain(RESULTS, 'dense'):.2f} bits over the last third of" in WORDS
    dense = [run["bits_per_byte"] for run in RESULTS["runs"] if run["network"] == "dense"]
    assert max(dense) < 1.8


def test_the_readme_has_the_numbers_of_the_results():
    mean = {row["name"]: f"{row['mean']:.2f}" for row in RESULTS["summary"]}
    small = min((mean[f"{kind}-dense-0.9"] for kind in ("small", "shallow")), key=float)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    task = "LSTM language model, a million weights: bits per byte (lower is better)"
    assert f"| {task} | {mean['dense']} | {mean['erk-0.9']} | {small} |" in readme
    assert round(n_params_of(text.long_study("cpu"), 272, INPUTS), -5) == 1_000_000
