"""Weights of the published networks, at full size, as the paper and Distiller print them."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("flax")
pytest.importorskip("rich")
pytest.importorskip("typer")

from typer.testing import CliRunner

from benchmarks.paper import sizes, story
from benchmarks.paper.__main__ import app
from benchmarks.paper.published import QUALITY, SIZES
from benchmarks.paper.storage import overhead_of
from jaxprune._report.table import LeafReport

ROW_NAMES = [f"{size.network} {size.sparsity}" for size in SIZES]


@pytest.mark.parametrize("size", SIZES, ids=ROW_NAMES)
def test_our_count_prints_as_the_published_digits_or_the_difference_is_explained(size):
    counts = sizes.count(size)
    if size.printed is not None:
        assert sizes.agrees(size, counts) == (not size.why)
    else:
        assert counts.nonzero == counts.weights - counts.report.n_zero


def test_only_two_published_digits_differ_from_ours():
    differ = [(s.network, s.sparsity) for s in SIZES if sizes.agrees(s, sizes.count(s)) is False]
    assert differ == [("InceptionV3", 0.875), ("WikiText-2 LSTM small", 0.0)]
    printed = [s for s in SIZES if s.printed is not None]
    assert len(printed) == 26


def dense(name):
    return sizes.count(next(s for s in SIZES if s.network == name and not s.sparsity))


def test_exact_counts_follow_from_the_papers_architectures():
    mobilenet = dense("MobileNet v1")
    assert mobilenet.weights == 4_209_088
    pruned = sizes.count(next(s for s in SIZES if s.network == "MobileNet v1" and s.sparsity))
    assert pruned.never_pruned == 45_504 == 27 * 32 + 9 * 4960
    for hidden, name in ((200, "small"), (650, "medium"), (1500, "large")):
        lstm = 2 * (2 * hidden) * (4 * hidden)
        assert dense(f"PTB LSTM {name}").weights == 2 * 10_000 * hidden + lstm
        assert dense(f"WikiText-2 LSTM {name}").weights == 33_278 * hidden + lstm
    gnmt = sizes.count(next(s for s in SIZES if s.network == "GNMT" and s.sparsity))
    assert gnmt.never_pruned == 2 * 1024 * 1024
    narrow, wide = 4 * 2048 * 4096, 5 * 3072 * 4096  # kernels of 4 and of 5 LSTM layers
    assert gnmt.weights == 3 * 36_548 * 1024 + narrow + wide + gnmt.never_pruned


def test_the_explanation_of_the_inception_digit_is_arithmetic():
    n = dense("InceptionV3").weights
    assert sizes.in_digits_of(round(n * 0.125), "3.3M") == "3.4M"
    assert sizes.in_digits_of(round(n * (1 - 0.877)), "3.3M") == "3.3M"
    at_75 = {m for m in range(26_000, 28_000) if sizes.in_digits_of(250 * m, "6.8M") == "6.8M"}
    at_87 = {m for m in range(26_000, 28_000) if sizes.in_digits_of(125 * m, "3.3M") == "3.3M"}
    assert min(at_75) == 27_000  # thousands of weights
    assert max(at_87) < 26_800


def test_the_explanation_of_the_small_language_model_is_one_matrix():
    printed = next(s.printed for s in SIZES if s.network == "WikiText-2 LSTM small")
    assert printed == "7,135,600"
    assert dense("WikiText-2 LSTM small").weights - 7_135_600 == 200 * 800


def test_the_command_prints_every_network_and_every_reported_quality():
    result = CliRunner().invoke(app, ["sizes"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for name in {size.network for size in SIZES}:
        assert name in result.output
    for value in {q.value for q in QUALITY}:
        assert value in result.output


ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs/paper.md"


@pytest.mark.parametrize("size", SIZES, ids=ROW_NAMES)
def test_the_page_has_our_count_where_one_was_printed(size):
    if size.printed is not None:
        assert f"{sizes.count(size).nonzero:,}" in PAGE.read_text(encoding="utf-8")


def test_the_tables_of_the_page_are_what_the_results_say():
    page = PAGE.read_text(encoding="utf-8").splitlines()
    results = story.load(ROOT / "benchmarks/results")
    assert results.keys() == {*(part.name for part in story.PARTS), "findings"}
    for line in (*story.comparison(results), *story.variants(results)):
        assert line in page, line


def test_results_of_the_page_are_of_finished_studies_with_three_seeds_at_least():
    for name, results in story.load(ROOT / "benchmarks/results").items():
        assert results["finished"], name
        counts = {row["name"]: row["n_nonzero"] for row in results["networks"]}
        assert {row["n"] for row in results["summary"]} == {results["config"]["seeds"]}
        assert results["config"]["seeds"] >= 3
        assert all(run["n_nonzero"] == counts[run["network"]] for run in results["runs"])


def leaf(shape, n_zero):
    size = int(jnp.prod(jnp.array(shape)))
    return LeafReport("kernel", shape, "float32", size, n_zero)


def test_a_bit_mask_costs_a_bit_per_weight_and_csr_a_column_per_nonzero_and_a_pointer_per_row():
    over = overhead_of([leaf((10, 16), 150), leaf((7, 7), 0)])
    assert over.bit_mask == 160
    assert over.csr == 10 * 4 + 11 * 32
    assert overhead_of([leaf((7, 7), 0)]) == (0, 0, 0.0, 0)


@pytest.mark.parametrize("sparsity", (0.5, 0.9, 0.975))
def test_expected_run_lengths_are_those_of_random_masks(sparsity):
    n = 400_000
    n_zero = round(n * sparsity)
    overhead = overhead_of([leaf((n, 1), n_zero)])
    positions = jax.random.permutation(jax.random.key(0), n)[n_zero:].sort()
    runs = jnp.diff(positions, prepend=-1) - 1
    splits = int((runs >> overhead.run_bits).sum())
    bits = (n - n_zero) * overhead.run_bits + splits * (overhead.run_bits + 32)
    assert overhead.run_length == pytest.approx(bits, rel=0.02)  # one draw of at least 10,000 runs
