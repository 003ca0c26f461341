"""What docs/paper.md says of the study on real images is what its code and its results say."""

import pathlib

import jax
import pytest

pytest.importorskip("flax")
pytest.importorskip("rich")

from benchmarks.paper import fashion, idx, paired, story
from benchmarks.paper.pruning import Pruning
from benchmarks.paper.study import Study, n_params_of

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())
RESULTS = story.load_paired(ROOT / "benchmarks/results")
IMAGE = (jax.ShapeDtypeStruct((1, 28, 28, 1), jax.numpy.float32),)


@pytest.fixture
def studies(monkeypatch) -> list[Study]:
    """The studies, without their images."""
    monkeypatch.setattr(fashion, "read_image_sets", lambda *_: None)
    return fashion.studies("cpu", ROOT)


def test_the_setting_is_that_of_the_code(studies, monkeypatch):
    plain, separable = studies
    assert f"eight convolutions ({n_params_of(plain, plain.width, IMAGE):,} parameters" in WORDS
    assert f"({n_params_of(separable, separable.width, IMAGE):,} parameters)" in WORDS
    assert len(plain.module(plain.width).stages) == 8
    monkeypatch.setattr(fashion, "make_task", lambda sets, batch: batch)
    batch = plain.task()
    assert f"Training takes {plain.steps:,} steps with batches of {batch} images" in WORDS
    assert f"{plain.steps * batch / 60_000:.1f} passes over the data" in WORDS
    pruning = Pruning.gradual(0.9, plain.steps)
    assert f"prunes from step {pruning.begin:,} to {pruning.end:,}" in WORDS
    large = fashion.studies("gpu", ROOT)[0]
    assert large.width == 2 * plain.width
    assert f"`--large` is for a GPU: full resolution, twice the width, {large.steps:,}" in WORDS
    assert all(f"`{name}`" in WORDS for name in idx.FILES)


def test_the_runs_are_counted(studies):
    plain = studies[0]
    n_runs = plain.seeds * (1 + len(paired.KINDS) * len(plain.sparsities))
    assert f"The plain study, with {n_runs} runs" in WORDS
    assert "first twelve answer the question at 90 % for the plain network" in WORDS
    assert plain.seeds * (1 + len(("uniform", "ERK", "narrower"))) == 12


def test_the_page_has_the_tables_of_the_results_or_says_that_there_are_none():
    assert ("The results are not in yet." in WORDS) == (not RESULTS)
    lines = PAGE.splitlines()
    for results in RESULTS.values():
        for line in paired.markdown(results):
            assert line in lines, f"docs/paper.md needs the line {line}"


def test_what_is_said_of_the_results_is_in_them():
    results = RESULTS["fashion-plain"]
    done = (0.5, 0.75, 0.8, 0.875, 0.9, 0.95, 0.975)
    kinds = ("uniform", "erk", "small", "shallow")
    names = ["dense", *(f"{kind}-{s:g}" for kind in kinds for s in done)]
    runs = {(run["network"], run["seed"]) for run in results["runs"]}
    assert runs == {(name, seed) for name in names for seed in range(3)}

    def differences(first, second, sparsities=done):
        return [paired.difference(results, f"{first}-{s:g}", f"{second}-{s:g}") for s in sparsities]

    def listed(values):
        *others, last = (f"{abs(value):.2f}" for value in values)
        return f"{', '.join(others)} and {last}"

    assert [paired.small_network(results, s)["kind"] for s in done] == ["shallow dense"] * len(done)
    of_erk = differences("erk", "shallow")
    ties, won = of_erk[:2], of_erk[2:]
    assert all(x.is_tie for x in ties)
    assert all(x.mean > 0 and not x.is_tie for x in won)
    gains = listed(x.mean for x in won)
    assert f"beats small-dense from 80 to 97.5 %**, by {gains} points over the better" in WORDS
    assert "and ties with it at 50 and 75 %" in WORDS
    tie, *lost = differences("uniform", "shallow")
    assert tie.is_tie
    assert "and 50 % is a tie" in WORDS
    assert all(x.mean < 0 and not x.is_tie for x in lost)
    losses = listed(x.mean for x in lost)
    assert f"small-dense is better from 75 to 97.5 %**, by {losses} points" in WORDS

    mean = {row["name"]: row["mean"] for row in results["summary"]}
    n = {row["name"]: row["n_nonzero"] for row in results["summary"]}
    assert n["erk-0.975"] == n["uniform-0.975"] + 1
    nonzeros = f"with {n['erk-0.975']:,} nonzeros (one more than uniform)"
    assert f"{nonzeros}, it has {mean['erk-0.975']:.2f} %, about" in WORDS
    small = f"network of {n['shallow-0.95']:,} parameters ({mean['shallow-0.95']:.2f})"
    assert f"as much as the small dense {small}" in WORDS
    assert abs(mean["erk-0.975"] - mean["shallow-0.95"]) < 0.2

    better = differences("shallow", "small")
    assert not any(x.is_tie for x in better)
    least, most = min(x.mean for x in better), max(x.mean for x in better)
    assert f"better than narrower ones at every size, by {least:.2f} to {most:.2f} points" in WORDS
    wins = [x.mean for x in differences("erk", "small")]
    assert f"ERK would win by {min(wins):.2f} to {max(wins):.2f} points" in WORDS
    verdicts = ["tie" if x.is_tie else x.mean > 0 for x in differences("uniform", "small")]
    assert verdicts == [True, True, "tie", True, "tie", "tie", False]
    assert "uniform sparsity would win at 50, 75 and 87.5 %, and lose at 97.5 % only" in WORDS

    half, three_quarters, *costs = (paired.difference(results, f"erk-{s:g}", "dense") for s in done)
    assert half.is_tie
    assert three_quarters.is_tie
    gains = f"{half.mean:.2f} and {three_quarters.mean:.2f} points, ties"
    assert f"50 and 75 % cost nothing (they gain {gains})" in WORDS
    said = "80 % costs {:.2f} points, 87.5 % {:.2f}, 90 % {:.2f}, 95 % {:.2f} and 97.5 % {:.2f}"
    assert said.format(*(-x.mean for x in costs)) in WORDS
    gain = paired.gain(results, "dense")
    assert f"The dense network still gains {gain:.2f} points over the last third" in WORDS


def test_what_is_said_of_longer_training_is_in_its_results(studies):
    results, shorter = RESULTS["fashion-plain-long"], RESULTS["fashion-plain"]
    steps = results["config"]["steps"]
    assert steps == 3 * studies[0].steps
    assert f"for {steps:,} steps, {steps * 128 / 60_000:.1f} passes over the data" in WORDS
    names = ("dense", "uniform-0.9", "erk-0.9")
    both = [[paired.values_of(r, name)[0] for name in names] for r in (results, shorter)]
    assert {(run["network"], run["seed"]) for run in results["runs"]} == {
        (name, 0) for name in (*names, "small-0.9")
    }
    more = [long - short for long, short in zip(*both, strict=True)]
    said = "by {:.2f} points, and those with 90 % zeros by {:.2f} (uniform) and {:.2f} (ERK)"
    assert said.format(*more) in WORDS
    gain = paired.gain(results, "dense")
    assert f"The dense network gains {gain:.2f} points over the last third of these" in WORDS


def test_what_is_said_of_the_separable_network_is_in_its_results():
    results, plain = RESULTS["fashion-separable"], RESULTS["fashion-plain"]
    done, kinds = (0.5, 0.75, 0.8, 0.875, 0.9, 0.95, 0.975), ("uniform", "erk", "small", "shallow")
    names = ["dense", *(f"{kind}-{s:g}" for kind in kinds for s in done)]
    runs = {(run["network"], run["seed"]) for run in results["runs"]}
    assert runs == {(name, seed) for name in names for seed in range(3)}

    def differences(first, second, of=results):
        pairs = ((f"{first}-{s:g}", f"{second}-{s:g}" if second in kinds else second) for s in done)
        return [paired.difference(of, a, b) for a, b in pairs]

    def listed(values):
        *others, last = (f"{abs(x.mean):.2f}" for x in values)
        return f"{', '.join(others)} and {last}"

    assert [paired.small_network(results, s)["kind"] for s in done] == ["shallow dense"] * len(done)
    uniform, erk = differences("uniform", "shallow"), differences("erk", "shallow")
    assert [x.is_tie for x in erk] == [True, False, False, False, True, False, False]
    assert [x.is_tie for x in uniform] == [False, False, False, False, True, True, False]
    assert all(x.mean > 0 for x in (*erk, *uniform[:-1]))
    assert uniform[-1].mean < 0
    gains = listed(x for x in erk if not x.is_tie)
    said = "With ERK, large-sparse beats the better of the small dense networks at 75, 80, 87.5,"
    assert f"{said} 95 and 97.5 %**, by {gains} points; at 50 and 90 % its mean" in WORDS
    said = f"uniform sparsity it wins from 50 to 87.5 %**, by {listed(uniform[:4])} points, ties"
    assert f"{said} at 90 and 95 %, and loses at 97.5 %, by {-uniform[-1].mean:.2f}." in WORDS
    tie, *lost = differences("uniform", "shallow", plain)
    assert tie.is_tie
    assert all(x.mean < 0 and not x.is_tie for x in lost)
    uniform, erk = differences("uniform", "small"), differences("erk", "small")
    assert not any(x.is_tie for x in (*uniform, *erk))
    assert [x.mean > 0 for x in uniform] == [True] * 6 + [False]
    assert all(x.mean > 0 for x in erk)
    said = f"wins up to 95 %, by {listed(uniform[:-1])} points with uniform sparsity, which loses"
    assert f"{said} at 97.5 %, by {-uniform[-1].mean:.2f}." in WORDS
    assert f"With ERK it wins at every size, by {listed(erk)}." in WORDS
    tie, *more = differences("erk", "uniform")
    assert tie.is_tie
    assert not any(x.is_tie for x in more)
    of_plain = differences("erk", "uniform", plain)[done.index(0.9)]
    said = f"by {listed(more)} points; in the plain network at 90 % by {of_plain.mean:.2f}"
    assert f"uniform sparsity at 50 %, and is better from 75 % on, {said}" in WORDS
    uniform, erk = differences("uniform", "dense"), differences("erk", "dense")
    assert all(x.mean < 0 for x in (*uniform, *erk))
    said = f"cost {listed(uniform)} points with uniform sparsity, and {listed(erk)} with ERK"
    assert f"50, 75, 80, 87.5, 90, 95 and 97.5 % zeros {said}" in WORDS


def test_the_readme_has_the_numbers_of_the_results():
    mean = {row["name"]: row["mean"] for row in RESULTS["fashion-plain"]["summary"]}
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    names = ("erk-0.9", "dense", "shallow-0.9")
    sparse, dense, small = (f"{mean[name]:.1f}" for name in names)
    assert "The LSTM and the CNNs are pruned with `distribution=jaxprune.erk`:" in readme
    assert f"| Fashion-MNIST, CNN: accuracy, % | {dense} | {sparse} | {small} |" in readme


def lost(name, kind):
    """The sparsities at which a pruned network is worse than the better small dense one."""
    results = RESULTS[name]
    against = {s: paired.against_small(results, kind, s) for s in results["config"]["sparsities"]}
    return sorted(s for s, x in against.items() if x and x.mean < 0 and not x.is_tie)


def test_the_advice_on_the_distribution_is_that_of_the_results():
    page = " ".join((ROOT / "docs/start/choosing.md").read_text(encoding="utf-8").split())
    assert lost("fashion-plain", "sparse") == [0.75, 0.8, 0.875, 0.9, 0.95, 0.975]
    assert "with `uniform` it lost to them from 75 % on" in page
    assert lost("fashion-separable", "sparse") == [0.975]
    assert lost("fashion-separable", "ERK") == []
    assert "`uniform` lost at 97.5 % only, and `erk` never" in page
