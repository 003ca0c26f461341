"""The study on real images: its networks, the order of its runs, and its table."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("tqdm")
pytest.importorskip("typer")

from typer.testing import CliRunner

from benchmarks.paper import digits, fashion, paired, pictures, store
from benchmarks.paper.__main__ import app
from benchmarks.paper.idx import ImageSets
from benchmarks.paper.pruning import Pruning
from benchmarks.paper.study import Network, n_params_of

IMAGE = (jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32),)


def image_sets(n_train=40, n_test=20, side=8):
    """Images of which the brightest row gives the class."""
    draw = np.random.default_rng(0)
    parts = []
    for n in (n_train, n_test):
        labels = np.arange(n) % 4
        pixels = draw.integers(0, 50, (n, side, side))
        pixels[np.arange(n), 2 * labels] += 200
        parts += [pixels.astype(np.uint8), labels.astype(np.uint8)]
    return ImageSets(*parts)


@pytest.fixture
def without_files(monkeypatch):
    """The studies, with a few generated images."""
    monkeypatch.setattr(fashion, "read_image_sets", lambda *_: image_sets())


@pytest.mark.usefixtures("without_files")
@pytest.mark.parametrize("i", (0, 1), ids=("plain", "separable"))
def test_small_dense_networks_have_the_nonzeros_of_the_pruned_ones(i, tmp_path):
    levels = (0.9,)
    study = dataclasses.replace(fashion.studies("cpu", tmp_path)[i], sparsities=levels)
    rows = fashion.networks(study, IMAGE)
    assert len({row.name for row in rows}) == len(rows) == 1 + 4 * len(levels)
    for sparsity in levels:
        by_kind = {row.kind: row for row in rows if row.sparsity == sparsity}
        uniform = by_kind["sparse"].n_nonzero
        assert abs(by_kind["ERK"].n_nonzero - uniform) <= 9  # rounded once in each leaf
        for kind in ("small dense", "shallow dense"):
            small = by_kind[kind]
            assert small.n_params == small.n_nonzero
            assert abs(small.n_nonzero / uniform - 1) < 0.03
            module = study.shallow if kind == "shallow dense" else study.module
            widened = dataclasses.replace(study, module=module)
            assert n_params_of(widened, small.width, IMAGE) == small.n_params


@pytest.mark.usefixtures("without_files")
def test_the_separable_network_prunes_neither_its_first_nor_its_depthwise_convolutions(tmp_path):
    study = fashion.studies("cpu", tmp_path)[1]
    params = jax.eval_shape(study.module(64).init, jax.random.key(0), *IMAGE)["params"]
    for spread in ("uniform", "erk"):
        pruning = dataclasses.replace(Pruning.gradual(0.9, 100), spread=spread)
        for leaf in pruning.plan(params, study.exclude).leaves:
            is_pruned = leaf.path.startswith(("pointwise", "logits")) and "kernel" in leaf.path
            is_pruned &= "norm" not in leaf.path
            assert bool(leaf.n_zero) == is_pruned, leaf.path


@pytest.mark.usefixtures("without_files")
def test_the_long_studies_train_the_same_networks_for_three_times_as_many_steps(tmp_path):
    short, long = (fashion.studies(size, tmp_path) for size in ("cpu", "long"))
    for study, longer in zip(short, long, strict=True):
        differing = {name for name, x in longer.config().items() if study.config()[name] != x}
        assert differing == {"name", "steps"}
        assert (longer.name, longer.steps) == (f"{study.name}-long", 3 * study.steps)


def test_half_of_the_layers_reduce_the_images_as_much_and_end_as_wide():
    for depths in (fashion._PLAIN, fashion._PLAIN_GPU, fashion._BLOCKS, fashion._BLOCKS_GPU):
        assert 2 * len(depths.half) == len(depths.full)
        strides = [np.prod([stride for _, stride in stages]) for stages in depths]
        assert strides[0] == strides[1]
        assert depths.half[-1][0] == depths.full[-1][0]


@pytest.mark.usefixtures("without_files")
def test_the_first_runs_decide_the_question_at_90_percent():
    study = tiny_study()
    study = dataclasses.replace(study, sparsities=fashion.SPARSITIES)
    rows = fashion.networks(study, IMAGE)
    ordered = fashion.order(rows, 3)
    assert sorted((row.name, seed) for row, seed in ordered) == sorted(
        (row.name, seed) for row in rows for seed in range(3)
    )
    names = [(row.name, seed) for row, seed in ordered]
    four = ("dense", "uniform-0.9", "erk-0.9", "small-0.9")
    assert names[:12] == [(name, seed) for seed in range(3) for name in four]
    assert {name for name, _ in names[12:30]} == {
        f"{kind}-{sparsity}" for kind in ("uniform", "erk", "small") for sparsity in (0.8, 0.95)
    }
    assert {row.kind for row, _ in ordered[-21:]} == {"shallow dense"}


def test_images_are_shifted_by_at_most_two_pixels_and_half_of_them_are_mirrored(getkey):
    image = np.zeros((7, 7, 1), np.uint8)
    image[3, 3], image[3, 4] = 1, 2
    moved = np.asarray(fashion.augment(jnp.asarray(np.stack([image] * 400)), getkey()))
    assert moved.dtype == np.uint8
    places = {value: np.argwhere(moved[..., 0] == value) for value in (1, 2)}
    assert len(places[1]) == len(places[2]) == 400  # every image has both pixels
    down, right = (places[1][:, 1:] - 3).T
    assert set(down) == set(right) == {-2, -1, 0, 1, 2}
    mirrored = places[2][:, 2] < places[1][:, 2]
    assert 150 < mirrored.sum() < 250
    assert set(places[2][:, 1] - places[1][:, 1]) == {0}


def test_pixels_are_between_minus_one_and_one():
    pixels = fashion.to_floats(jnp.array([0, 255], jnp.uint8))
    assert pixels.tolist() == [-1.0, 1.0]


def test_the_measure_counts_every_test_image_once(monkeypatch):
    monkeypatch.setattr(fashion, "_TEST_BATCH", 7)  # 20 images: 7, 7 and 6
    task = fashion.make_task(image_sets(), 4)
    labels = task.data.test_labels

    class Guess:
        """Always answers class 1."""

        def apply(self, variables, images):
            return jnp.zeros((len(images), 10)).at[:, 1].set(9.0)

    measured = task.measure(Guess(), {}, task.data)
    assert measured["accuracy"] == pytest.approx(100 * float((labels == 1).mean()))
    log_sum = np.log(9 + np.exp(9))
    mean = np.mean([log_sum - 9 * (label == 1) for label in labels.tolist()])
    assert measured["test_loss"] == pytest.approx(mean, rel=1e-5)


def test_a_folder_without_the_files_is_an_error_that_says_where_they_come_from(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", "")  # the command changes it
    result = CliRunner().invoke(app, ["fashion", "--data", str(tmp_path)], terminal_width=300)
    assert result.exit_code == 2
    assert "train-images-idx3-ubyte" in result.output
    assert "dataset-fashion-mnist" in result.output


# Tables, from results made by hand


def results_with(accuracies, seeds=3):
    """Results of a study of 90% with these accuracies by network and seed."""
    kinds = {
        "dense": "dense",
        "uniform-0.9": "sparse",
        "erk-0.9": "ERK",
        "small-0.9": "small dense",
        "shallow-0.9": "shallow dense",
    }
    rows = [
        {"name": name, "kind": kind, "sparsity": 0.0 if kind == "dense" else 0.9, "n_nonzero": 1000}
        for name, kind in kinds.items()
    ]
    runs = [
        {"network": name, "seed": seed, "accuracy": value, "accuracy_over_steps": [0, 1, value]}
        for name, values in accuracies.items()
        for seed, value in values.items()
    ]
    config = {"measure": "accuracy", "seeds": seeds, "sparsities": [0.5, 0.9]}
    return {"networks": rows, "runs": runs, "config": config}


COMPLETE = {
    "dense": {0: 90.0, 1: 91.0, 2: 92.0},
    "uniform-0.9": {0: 80.0, 1: 84.0, 2: 88.0},
    "erk-0.9": {0: 81.0, 1: 85.0, 2: 89.5},
    "small-0.9": {0: 80.0, 1: 84.0, 2: 88.0},
}


def test_differences_are_paired_by_seed():
    difference = paired.difference(results_with(COMPLETE), "erk-0.9", "small-0.9")
    assert difference is not None
    # The differences are 1, 1 and 1.5: mean 3.5 / 3, standard deviation 0.5 / sqrt(3).
    assert difference.mean == pytest.approx(3.5 / 3)
    assert difference.error == pytest.approx(0.5 / 3)
    assert not difference.is_tie
    same = paired.difference(results_with(COMPLETE), "uniform-0.9", "small-0.9")
    assert same is not None
    assert (same.mean, same.error, same.is_tie) == (0.0, 0.0, True)


def test_the_table_of_a_complete_study():
    lines = list(paired.markdown(results_with(COMPLETE)))
    assert lines[2] == "| dense | 1,000 | 91.00 ± 1.00 |  |  |  |  |  |"
    assert "| 90 % | 1,000 | 84.00 ± 4.00 | 85.17 ± 4.25 | 84.00 ± 4.00 | missing |" in lines[3]
    assert lines[3].endswith("| +0.00 ± 0.00, tie | **+1.17 ± 0.17** |")
    assert len(lines) == 4  # nothing of 50% was trained


def test_the_comparison_is_with_the_better_small_dense_network():
    shallow = {0: 81.0, 1: 84.0, 2: 88.0}
    results = results_with(COMPLETE | {"shallow-0.9": shallow})
    assert list(paired.markdown(results))[3].endswith("| -0.33 ± 0.33, tie | +0.83 ± 0.44, tie |")
    worse = {seed: value - 2 for seed, value in shallow.items()}
    results = results_with(COMPLETE | {"shallow-0.9": worse})
    assert list(paired.markdown(results))[3].endswith("| +0.00 ± 0.00, tie | **+1.17 ± 0.17** |")
    results["config"]["measure"] = "bits_per_byte"  # less is better
    results["runs"] = [run | {"bits_per_byte": run["accuracy"]} for run in results["runs"]]
    assert paired.small_network(results, 0.9)["name"] == "shallow-0.9"


def test_a_partial_table_says_what_is_missing():
    partial = COMPLETE | {"uniform-0.9": {}, "erk-0.9": {1: 85.0}, "small-0.9": {0: 80.0, 1: 84.0}}
    results = results_with(partial)
    line = list(paired.markdown(results))[3]
    assert "| missing | 85.00 (1 of 3 seeds) | 82.00 ± 2.83 (2 of 3 seeds) |" in line
    assert line.endswith("| missing | +1.00, one seed |")
    assert paired.missing(results) == [
        "uniform-0.9 (seed 0, 1, 2)",
        "erk-0.9 (seed 0, 2)",
        "small-0.9 (seed 2)",
        "shallow-0.9 (seed 0, 1, 2)",
    ]


def test_a_study_without_a_kind_of_networks_has_no_column_for_it():
    results = results_with(COMPLETE)
    results["networks"] = [
        row for row in results["networks"] if row["kind"] not in ("ERK", "shallow dense")
    ]
    lines = list(paired.markdown(results))
    assert lines[0] == (
        "| zeros | nonzero parameters | uniform | small dense, narrower | uniform - narrower |"
    )
    assert lines[3] == "| 90 % | 1,000 | 84.00 ± 4.00 | 84.00 ± 4.00 | +0.00 ± 0.00, tie |"


def test_the_gain_is_that_over_the_last_third():
    assert paired.gain(results_with(COMPLETE), "dense") == pytest.approx(90.0)  # 91 - 1


# Training


def tiny_study():
    [study, _] = fashion.studies("quick", None)
    stages = ((1, 2), (2, 1))
    return dataclasses.replace(
        study,
        task=lambda: fashion.make_task(image_sets(), 4),
        module=lambda width: digits.PlainNet(width, stages=stages),
        shallow=lambda width: digits.PlainNet(width, stages=stages[:1]),
        width=6,
        steps=12,
        chunk=4,
        seeds=2,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("without_files")
def test_a_toy_study_trains_is_interrupted_and_resumes_to_the_same_results(tmp_path):
    study = tiny_study()
    options = {"networks": fashion.networks, "order": fashion.order}
    everything = store.run(study, tmp_path / "a", **options, jobs=2)
    planned = {row["name"]: row["n_nonzero"] for row in everything["networks"]}
    assert everything["finished"]
    assert len(everything["runs"]) == 10
    assert all(run["n_nonzero"] == planned[run["network"]] for run in everything["runs"])
    assert all(np.isfinite(run["losses"]).all() for run in everything["runs"])
    assert all(len(run["accuracy_over_steps"]) == 3 for run in everything["runs"])

    part = store.run(study, tmp_path / "b", **options, only="dense|erk")
    assert not part["finished"]
    assert paired.missing(part)
    path = store.results_file(study, tmp_path / "b")
    assert all(file.exists() for file in pictures.draw(part, path))
    assert paired.table(part, study).row_count == 2
    rest = store.run(study, tmp_path / "b", **options, resume=True)

    def untimed(results):
        return [{**run, "seconds": 0} for run in results["runs"]]

    assert untimed(rest) == untimed(everything) == untimed(json.loads(path.read_text()))


def test_the_module_of_a_shallow_network_is_the_shallow_one(without_files):
    study = tiny_study()
    for kind, n_convolutions in (("dense", 2), ("small dense", 2), ("shallow dense", 1)):
        module = study.module_of(Network("a", kind, 3, None, 0.0, 1, 1))
        assert len(module.stages) == n_convolutions
