"""The figures of docs/start/choosing.md are those of the JSON files."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").exists(), reason="an installed copy has no results"
)


def results(name):
    return json.loads((ROOT / f"benchmarks/results/{name}-cpu.json").read_text())


@pytest.fixture(scope="module")
def page():
    """The page as one line, so that line breaks do not matter."""
    return " ".join((ROOT / "docs/start/choosing.md").read_text(encoding="utf-8").split())


def lines():
    return (ROOT / "docs/start/choosing.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "study, kind, network, digits",
    (
        ("paper-lstm", "sparse", "LSTM, 239,377 parameters", 2),
        ("paper-lstm-long", "ERK", "LSTM, 1,037,335 parameters, with `erk`", 2),
        ("paper-cnn-plain", "sparse", "CNN, 183,394 parameters", 1),
        ("paper-fashion-plain", "ERK", "CNN, 583,594 parameters, with `erk`", 1),
    ),
)
def test_quality_at_each_sparsity(study, kind, network, digits):
    sparse = [r for r in results(study)["summary"] if r["kind"] in ("dense", kind)]
    means = {r["sparsity"]: f"{r['mean']:.{digits}f}" for r in sparse}
    head = next(line for line in lines() if line.startswith("| network | measure | dense |"))
    row = next(line for line in lines() if line.startswith(f"| {network} |"))
    columns = [cell.strip() for cell in head.split("|")[3:-1]]
    for column, cell in zip(columns, row.split("|")[3:-1], strict=True):
        sparsity = 0.0 if column == "dense" else float(column.removesuffix(" %")) / 100
        assert cell.strip() == means.get(sparsity, ""), column


def test_what_is_said_of_small_dense_networks(page):
    from benchmarks.paper import paired, story, summary

    verdicts, means = {}, {}
    for part in story.PARTS:
        rows = results(f"paper-{part.name}")["summary"]
        means[part.name] = {row["name"]: f"{row['mean']:.2f}" for row in rows}
        for sparse, small in summary.pairs(rows, part.lower_is_better):
            verdict = summary.compare(sparse, small, part.lower_is_better)[1]
            verdicts.setdefault(sparse["sparsity"], {})[part.name] = verdict
    translation, digits = ("seq2seq-en-de", "seq2seq-de-en"), ("cnn-plain", "cnn-separable")
    assert {verdicts[0.9][name] for name in translation} == {"better"}
    assert {verdicts[0.9][name] for name in (*digits, "lstm")} == {"tie"}
    assert "uniform sparsity beat it by far in translation, and tied on digits." in page
    lstm = means["lstm"]
    assert f"128 units ({lstm['sparse-0.9']} bits) beat a narrower dense network" in page
    assert f"({lstm['small-dense-0.9']}), and tied with one of a single layer" in page
    said = f"({lstm['shallow-dense-0.9']}); [with `erk`](../paper.md#the-language-model-with-erk)"
    assert f"{said} ({lstm['erk-0.9']}) it beat both. At 97.5 %" in page
    of_lstm = results("paper-lstm")
    for small in ("small-dense", "shallow-dense"):
        won = paired.difference(of_lstm, "erk-0.9", f"{small}-0.9")
        assert won.mean < 0
        assert not won.is_tie
    at_97 = sorted(verdicts[0.975].values())
    assert at_97 == ["tie", "tie", "worse", "worse", "worse"]
    assert "At 97.5 % the small dense network won three of [five" in page
    for level in verdicts:
        assert lstm[f"shallow-dense-{level:g}"] < lstm[f"small-dense-{level:g}"]
    for name, first in zip(translation, (0.8, 0.75), strict=True):
        better = [
            level
            for level in verdicts
            if float(means[name][f"shallow-dense-{level:g}"])
            > float(means[name][f"small-dense-{level:g}"])
        ]
        assert min(better) == first
        assert set(better) == {level for level in verdicts if level >= first}
    said = "in translation from 80 % (English to German) or 75 % (German to English) on."
    assert said in page
    one_layer = results("paper-lstm-one-layer")
    levels = (0.75, 0.9, 0.95)
    gains = [-paired.against_small(one_layer, "ERK", level).mean for level in levels]
    assert f"75, 90 and 95 %, by {min(gains):.2f} to {max(gains):.2f} bits." in page
    larger = results("paper-lstm-long")
    levels = (0.8, 0.9, 0.95, 0.975)
    gains = [paired.against_small(larger, "ERK", level) for level in levels]
    assert not any(gain.is_tie for gain in gains)
    assert paired.against_small(larger, "ERK", 0.5).is_tie
    least, most = sorted(-gain.mean for gain in gains)[:: len(gains) - 1]
    assert f"so from 80 % on, by {least:.2f} to {most:.2f} bits, and tied at 50 %." in page
    demo = json.loads((ROOT / "benchmarks/results/demo.json").read_text())["summary"]
    accuracy = {row["name"]: row["accuracy_mean"] for row in demo}
    for level in (0.75, 0.9, 0.95, 0.975):
        assert accuracy[f"shallower-dense-{level}"] > accuracy[f"narrower-dense-{level}"]
    assert (
        "better than a narrower one: at every size in the LSTM, the demo and [Fashion-MNIST]"
        in page
    )


def test_the_advice_of_real_images(page):
    summary = {r["name"]: r["mean"] for r in results("paper-fashion-plain")["summary"]}
    levels = (0.8, 0.875, 0.9, 0.95, 0.975)
    gains = [summary[f"erk-{s:g}"] - summary[f"shallow-{s:g}"] for s in levels]
    assert f"from 80 to 97.5 %, by {min(gains):.1f} to {max(gains):.1f} points;" in page
    assert all(summary[f"small-{s:g}"] < summary[f"shallow-{s:g}"] for s in levels)


def test_the_table_of_schedules(page):
    rows = {r["name"]: r for r in results("paper-findings")["summary"]}
    names = {
        "gradual": "cubic, from 10 to 60 % of the steps",
        "from 0% to 30% of the steps": "cubic, from 0 to 30 % of the steps",
        "from 30% to 90% of the steps": "cubic, from 30 to 90 % of the steps",
        "from 0% to 99% of the steps": "cubic, from 0 to 99 % of the steps",
        "one-shot at 0%": "one shot at step 0",
        "one-shot at 60%": "one shot at 60 % of the steps",
        "one-shot at 90%": "one shot at 90 % of the steps",
    }
    for name, shown in names.items():
        r, gradual = rows[name], rows["gradual"]
        difference = r["mean"] - gradual["mean"]
        variance = (r["sd"] ** 2 + gradual["sd"] ** 2) / r["n"]
        verdict = "tie" if difference**2 <= 4 * variance else f"**{difference:+.3f}**"
        line = f"| {shown} | {r['mean']:.3f} ± {r['sd']:.3f} |"
        assert line + (f" {verdict} |" if difference else "") in page


def test_other_findings(page):
    rows = {r["name"]: r for r in results("paper-findings")["summary"]}
    worse = {name: r["mean"] - rows["gradual"]["mean"] for name, r in rows.items()}
    assert f"better than `uniform` by {-worse['ERK']:.3f} bits" in page
    assert f"`global_pool` was better by {-worse['global']:.3f}" in page
    assert f"half of the window, cost {worse['every 1000 steps']:.3f} bits" in page
    assert f"({rows['regrowth']['mean']:.3f} ± {rows['regrowth']['sd']:.3f})" in page


def test_the_table_of_the_demo():
    rows = json.loads((ROOT / "benchmarks/results/demo.json").read_text())["summary"]
    of = {
        (r["kind"], r["sparsity"]): f"{100 * r['accuracy_mean']:.1f} ± {100 * r['accuracy_sd']:.1f}"
        for r in rows
    }
    sparsities = [sparsity for kind, sparsity in of if kind == "ERK"]
    assert len(sparsities) == 4
    for sparsity in sparsities:
        kinds = ("ERK", "uniform", "narrower dense", "shallower dense")
        cells = " | ".join(of[kind, sparsity] for kind in kinds)
        assert f"| {100 * sparsity:g} % | {cells} |" in lines()


def test_figures_of_the_algorithms(page):
    rows = results("algorithms")["rows"]
    at_95 = {
        r["method"]: f"{100 * r['mean']:.1f} ± {100 * r['spread']:.1f}"
        for r in rows
        if r["sparsity"] == 0.95
    }
    for method, shown in {
        "magnitude, ERK": "`erk`",
        "magnitude, global": "`global_pool`",
        "magnitude, normalized global": "`normalized_pool`",
        "magnitude, uniform": "`uniform`",
    }.items():
        assert f"| {shown} | {at_95[method]} |" in page
    assert f"`movement` ({at_95['movement, ERK']})" in page
    assert f"not better ({at_95['saliency, ERK']})" in page
    assert f"SET {at_95['SET, ERK']}, RigL {at_95['RigL, ERK']}" in page
    channels, single = (at_95[f"{name}, uniform"].split()[0] for name in ("channels", "magnitude"))
    assert float(channels) < float(single) - 20
    assert f"far fewer connections are left: {channels} %" in page
    by_row = {
        (r["kind"], r["sparsity"]): r["mean"] for r in results("paper-quality-cnn")["summary"]
    }
    n_nonzero = {
        (r["kind"], r["sparsity"]): r["n_nonzero"] for r in results("paper-quality-cnn")["summary"]
    }
    fewer = n_nonzero["units", 0.9] / n_nonzero["unstructured", 0.9]
    more = n_nonzero["units", 0.95] / n_nonzero["unstructured", 0.95]
    assert round(1 / (1 - fewer)) == 8
    assert round(1 / (more - 1)) == 6
    for level, difference in ((0.9, "an eighth fewer"), (0.95, "a sixth more")):
        units, weights = by_row["units", level], by_row["unstructured", level]
        said = f"{difference} nonzeros than single weights, which have {weights:.1f} %"
        assert f"{units:.1f} %" in page[page.index(said) - 50 : page.index(said)]
    assert f"(dense {by_row['dense', 0.0]:.1f} %), whole channels have" in page


def test_the_table_of_structures():
    from benchmarks import payoff

    trained = {
        "small dense": "small dense, trained at that size",
        "small dense, one layer": "small dense of one layer, trained at that size",
    }
    shown = ("dense", "unstructured", "blocks 1x16", "N:M", "units", *trained)
    for line in payoff.wide()[2:]:
        _, _, structure, _, bits, kilobytes, speeds, _ = (c.strip() for c in line.split("|"))
        if structure in shown:
            warm = " ".join([*speeds.split(" / ")[:1], ""]).lstrip()
            name = trained.get(structure, structure)
            assert f"| {name} | {bits} | {kilobytes} | {warm}|" in lines()


def test_the_sentence_encoder(page):
    rows = results("minilm")["rows"]
    for target, shown in {"50%": "50 %", "70%": "70 %", "2:4": "2:4"}.items():
        cells = []
        for method in ("magnitude", "wanda", "sparsegpt"):
            cosines = [
                r["cosine_same_kind"]
                for r in rows
                if (r.get("target"), r.get("method")) == (target, method)
            ]
            cells.append(f"{sum(cosines) / len(cosines):.3f}")
        assert f"| {shown} | {' | '.join(cells)} |" in page
        if target == "70%":
            (tuned,) = (
                r["cosine_same_kind"]
                for r in rows
                if (r.get("target"), r.get("method")) == (target, "sparsegpt, then distilled")
            )
            assert f"200 steps raise {cells[-1]} at {shown} to {tuned:.3f};" in page
