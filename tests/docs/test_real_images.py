"""What docs/paper.md says of the study on real images is what its code and its results say."""

import pathlib

import jax
import pytest

pytest.importorskip("flax")
pytest.importorskip("rich")

from benchmarks.paper import fashion, idx, story
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


def test_the_setting_is_that_of_the_code(studies):
    plain, separable = studies
    assert f"eight convolutions ({n_params_of(plain, plain.width, IMAGE):,} parameters" in WORDS
    assert f"({n_params_of(separable, separable.width, IMAGE):,} parameters)" in WORDS
    assert len(plain.module(plain.width).stages) == 8
    assert f"Training takes {plain.steps:,} steps with batches of 64 images" in WORDS
    assert f"{plain.steps * 64 / 60_000:.1f} passes over the data" in WORDS
    pruning = Pruning.gradual(0.9, plain.steps)
    assert f"prunes from step {pruning.begin:,} to {pruning.end:,}" in WORDS
    large = fashion.studies("gpu", ROOT)[0]
    assert large.width == 2 * plain.width
    assert f"`--large` is for a GPU: full resolution, twice the width, {large.steps:,}" in WORDS
    assert all(f"`{name}`" in WORDS for name in idx.FILES)
