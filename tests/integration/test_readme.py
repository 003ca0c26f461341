"""The numbers in the README are those of the JSON files.

Other pages have tests of their own: test_figures.py, test_choosing.py and test_payoff.py.
"""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
needs_results = pytest.mark.skipif(
    not (ROOT / "benchmarks").exists(), reason="an installed copy has no results"
)


def lines_of(page):
    return (ROOT / page).read_text(encoding="utf-8").splitlines()


def words_of(page):
    """A page as one line, so that line breaks do not matter."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@needs_results
def test_the_table_of_the_readme_is_what_the_benchmarks_wrote():
    from benchmarks import payoff

    measured = {}
    for line in payoff.wide()[2:]:
        _, _, structure, _, bits, kilobytes, speeds, _ = (c.strip() for c in line.split("|"))
        warm = speeds.split(" / ")[0] or "about the same"  # see test_payoff.py
        measured[structure] = f"| {bits} | {kilobytes} | {warm} |"
    names = {
        "dense": "dense",
        "unstructured": "90 % of the weights pruned",
        "units": "90 % pruned as whole units, removed",
        "small dense": "small dense network of the same size",
        "small dense, one layer": "small dense network of the same size, one layer",
    }
    for structure, name in names.items():
        assert f"| {name} {measured[structure]}" in lines_of("README.md")


@needs_results
def test_the_three_figures_of_the_readme_are_what_the_benchmarks_wrote():
    from benchmarks import payoff
    from benchmarks.paper import summary

    readme = words_of("README.md")
    smaller = next(line for line in payoff.files() if line.startswith("| jaxprune.save |"))
    times = smaller.split("|")[3].strip()
    assert f"writes ten million weights {times} times smaller than dense" in readme
    rows = {row["kind"]: row for row in payoff.read("paper-quality-wide")["summary"]}
    loss = {kind: row["mean"] - rows["dense"]["mean"] for kind, row in rows.items()}
    assert f"is {loss['units']:.2f} bits per byte worse" in readme
    said = "beats a dense network of that size with two layers, and ties with one of a single wider"
    assert said in readme
    verdicts = [
        summary.compare(rows["units"], rows[f"{kind} dense"], True)[1]
        for kind in ("small", "shallow")
    ]
    assert verdicts == ["better", "tie"]
    config = payoff.read("paper-quality-wide")["config"]
    assert config["seeds"] == 3
    assert f"units, {config['steps']} steps, three seeds |" in readme
    units = next(line for line in payoff.wide() if "| units |" in line)
    assert f"runs {units.split('|')[-2].split('/')[0].strip()} times faster on one core" in readme


@needs_results
def test_the_figures_of_translation_are_what_the_study_wrote():
    readme, figures = words_of("README.md"), {}
    for way in ("en-de", "de-en"):
        study = json.loads((ROOT / f"benchmarks/results/paper-seq2seq-{way}-cpu.json").read_text())
        bleu = {row["name"]: f"{row['mean']:.1f}" for row in study["summary"]}
        small = max((bleu[f"{kind}-dense-0.9"] for kind in ("small", "shallow")), key=float)
        figures[way] = [bleu["dense"], bleu["sparse-0.9"], small]
        assert study["config"]["seeds"] == 5
    task = "translation of number words, dates and money, en-de / de-en: BLEU"
    pairs = map(" / ".join, zip(figures["en-de"], figures["de-en"], strict=True))
    assert f"| {task} | {' | '.join(pairs)} |" in readme


@needs_results
def test_the_figures_of_the_demo_are_what_it_wrote():
    rows = json.loads((ROOT / "benchmarks/results/demo.json").read_text())["summary"]
    percent = {(r["kind"], r["sparsity"]): f"{100 * r['accuracy_mean']:.1f}" for r in rows}
    small = max(percent[f"{kind} dense", 0.9] for kind in ("narrower", "shallower"))
    figures = f"| {percent['dense', 0.0]} | {percent['ERK', 0.9]} | {small} |"
    task = (
        "three-digit numbers, CNN of the demo ([JSON](benchmarks/results/demo.json)): accuracy, %"
    )
    assert f"| {task} {figures}" in words_of("README.md")


def test_the_readme_is_one_screen_and_has_the_two_commands():
    lines = lines_of("README.md")
    assert len(lines) <= 120
    for command in (
        "pip install -e '.[demo]' && python -m jaxprune demo",
        "pip install -e '.[test]' && pytest",
    ):
        i = lines.index(command)
        assert (lines[i - 1], lines[i + 1]) == ("```bash", "```")  # nothing else in its block
