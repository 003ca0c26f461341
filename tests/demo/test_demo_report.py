"""What the demo says about its numbers: verdicts, the table, and the sentence with the result."""

import itertools
import json
import statistics

import numpy as np
import pytest

for _extra in ("flax", "rich", "sklearn"):
    pytest.importorskip(_extra)

from jaxprune.demo.report import answer, caption, summarize, table, verdict  # noqa: E402

LEVELS = (0.5, 0.9, 0.985)


def results(accuracies):
    """Results with these accuracies: a list with one entry per seed for every network's name."""
    rows = []
    for name in accuracies:
        kind, _, sparsity = name.partition("@")
        rows.append({"name": name, "kind": kind, "sparsity": float(sparsity or 0), "n_nonzero": 7})
    n_seeds = len(next(iter(accuracies.values())))
    runs = [
        {"network": name, "seed": seed, "accuracy": accuracy}
        for name, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    config = {"n_seeds": n_seeds, "n_test": 1000, "steps": 2000}
    whole = {"networks": [row | {"n_params": 9} for row in rows], "runs": runs, "config": config}
    return whole | {"summary": summarize(whole)}


def with_gains(uniform, erk, n_seeds=4):
    """Results where sparse networks differ from the better small dense ones by these gains."""
    noise = np.resize([0.001, -0.001, 0.002, -0.002], n_seeds)
    accuracies = {"dense": (0.9 + noise).tolist()}
    for level, one, two in zip(LEVELS, uniform, erk, strict=True):
        small = 0.5 + 20 * noise  # large, but equal in both of a pair
        accuracies |= {
            f"uniform@{level}": (small + one + noise).tolist(),
            f"ERK@{level}": (small + two + noise).tolist(),
            f"narrower dense@{level}": (small - (0.3 if level == LEVELS[1] else 0)).tolist(),
            f"shallower dense@{level}": (small - (0 if level == LEVELS[1] else 0.3)).tolist(),
        }
    return results(accuracies)


def test_the_result_names_wins_ties_and_losses():
    summary = with_gains(uniform=(0.1, 0.0, -0.1), erk=(0.1, 0.1, 0.0))["summary"]
    assert answer(summary) == (
        "Result: the large network pruned, against small dense ones of as many nonzeros: with "
        "uniform sparsity it is better at 50%, ties at 90% and is worse at 98.5%; with ERK "
        "sparsity it is better at 50% and 90% and ties at 98.5%."
    )


@pytest.mark.parametrize(
    "gain, words", ((0.1, "is better at"), (0.0, "ties at"), (-0.1, "is worse at"))
)
def test_a_result_that_is_the_same_everywhere_is_said_once(gain, words):
    text = answer(with_gains([gain] * 3, [gain] * 3)["summary"])
    assert text.count(f"it {words} 50%, 90% and 98.5%") == 2
    others = {"better", "ties", "worse"} - set(words.split())
    assert not any(other in text for other in others)


@pytest.mark.parametrize("gains", tuple(itertools.product((-0.1, 0.0, 0.1), repeat=3)))
def test_every_sparsity_is_named_under_its_verdict_and_nowhere_else(gains):
    words = {"is better at": 0.1, "ties at": 0.0, "is worse at": -0.1}
    text = answer(with_gains(gains, gains[::-1])["summary"])
    for kind, of_kind in (("uniform", gains), ("ERK", gains[::-1])):
        _, _, part = text.partition(f"with {kind} sparsity it ")
        part = part.replace(".", ";").replace("98;5", "98.5").partition(";")[0]
        for phrase, gain in words.items():
            _, is_said, rest = part.partition(phrase)
            for other in words:
                rest = rest.partition(other)[0]
            named = {level for level in LEVELS if f" {100 * level:g}%" in rest}
            expected = {
                level for level, g in zip(LEVELS, of_kind, strict=True) if abs(g - gain) < 0.05
            }
            assert named == expected
            assert bool(is_said) == bool(expected)


@pytest.mark.parametrize(
    "n_seeds, words",
    ((1, "it has no verdict, with one seed, at 50%"), (2, "only 2 seeds"), (3, "only 3 seeds")),
)
def test_few_seeds_are_said_to_be_few(n_seeds, words):
    whole = with_gains([0.1] * 3, [0.1] * 3, n_seeds)
    assert words in answer(whole["summary"])
    assert "only" not in answer(with_gains([0.1] * 3, [0.1] * 3)["summary"])
    assert ("One seed." in caption(whole)) == (n_seeds == 1)


def test_differences_are_paired_by_seed():
    whole = results(
        {
            "dense": [0.9, 0.8, 0.7],
            "uniform@0.9": [0.8, 0.5, 0.7],
            "ERK@0.9": [0.75, 0.55, 0.35],
            "narrower dense@0.9": [0.7, 0.5, 0.3],
            "shallower dense@0.9": [0.6, 0.6, 0.2],
        }
    )
    dense, uniform, erk, small, worse = whole["summary"]
    assert worse["minus_small"] is None
    assert dense["minus_dense"] is dense["minus_small"] is small["minus_small"] is None
    pairs = [0.1, 0.0, 0.4]
    assert uniform["minus_small"] == pytest.approx(0.5 / 3)
    assert uniform["minus_small_se"] == pytest.approx(statistics.stdev(pairs) / 3**0.5)
    assert uniform["minus_dense"] == pytest.approx(-0.4 / 3)
    assert uniform["accuracy_sd"] == pytest.approx(statistics.stdev([0.8, 0.5, 0.7]))
    assert erk["minus_small_se"] == pytest.approx(0, abs=1e-12)  # although the spreads are 0.2
    assert [verdict(row) for row in (uniform, erk)] == ["tie", "better"]
    assert verdict(erk, "minus_dense") == "worse"


@pytest.mark.parametrize(
    "mean, se, expected",
    (
        (0.1, 0.04, "better"),
        (0.1, 0.05, "tie"),
        (-0.1, 0.05, "tie"),
        (-0.1, 0.04, "worse"),
        (0.0, 0.0, "tie"),
        (0.1, None, "one seed"),
    ),
)
def test_two_standard_errors_make_a_verdict(mean, se, expected):
    assert verdict({"minus_small": mean, "minus_small_se": se}) == expected


def test_the_table_marks_ties_and_fits_in_80_columns(capsys):
    from rich.console import Console

    whole = with_gains(uniform=(0.1, 0.0, -0.1), erk=(0.1, 0.1, 0.1))
    Console(width=80).print(table(json.loads(json.dumps(whole))))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (tie,) = [line for line in lines if "90% uniform" in line]
    assert "= +0.0 ± 0.1" in tie
    (loss,) = [line for line in lines if "98.5% uniform" in line]
    assert " -10.0 ± 0.1" in loss
