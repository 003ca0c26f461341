"""What docs/paper.md says in sentences about its studies is what their results say."""

import pathlib

import pytest

pytest.importorskip("flax")
pytest.importorskip("rich")

from benchmarks.paper import paired, story, summary

ROOT = pathlib.Path(__file__).parents[2]
WORDS = " ".join((ROOT / "docs/paper.md").read_text(encoding="utf-8").split())
RESULTS = story.load(ROOT / "benchmarks/results")
PARTS = {part.name: part for part in story.PARTS}


def rows_of(name):
    return {row["name"]: row for row in RESULTS[name]["summary"]}


def differences(name, small_kinds=summary.SMALL_KINDS):
    """By sparsity in percent: how much better large-sparse is than small-dense, and the verdict.

    The small dense network is the better of those of these kinds.
    """
    sign = -1 if PARTS[name].lower_is_better else 1
    rows = [r for r in RESULTS[name]["summary"] if r["kind"] in ("sparse", *small_kinds)]
    compared = {
        100 * sparse["sparsity"]: summary.compare(sparse, small, PARTS[name].lower_is_better)
        for sparse, small in summary.pairs(rows, PARTS[name].lower_is_better)
    }
    return {level: (sign * mean, verdict) for level, (mean, verdict) in compared.items()}


def levels(name, verdict, small_kinds=summary.SMALL_KINDS):
    """The sparsities in percent with this verdict on large-sparse."""
    return [level for level, (_, v) in differences(name, small_kinds).items() if v == verdict]


def lost(name, row):
    """How much worse a network is than the dense one."""
    rows = rows_of(name)
    return abs(rows[row]["mean"] - rows["dense"]["mean"])


def test_what_is_said_of_the_language_model():
    narrower, shallow = ("small dense",), ("shallow dense",)
    assert levels("lstm", "better", narrower) == [75, 80, 85, 90]
    assert levels("lstm", "tie", narrower) == [50, 95]
    assert levels("lstm", "worse", narrower) == [97.5]
    assert "**Language model: held from 75 to 90 % against narrower networks, but not" in WORDS
    compared = differences("lstm", narrower)
    gains = [gain for gain, verdict in compared.values() if verdict == "better"]
    assert f"Large-sparse is {min(gains):.2f} to {max(gains):.2f} bits better than a" in WORDS
    worse = -compared[97.5][0]
    assert f"at 50 and 95 %, and is worse by {worse:.2f} at 97.5 %." in WORDS
    assert levels("lstm", "tie", shallow) == levels("lstm", "tie") == [75, 80, 85, 90]
    assert levels("lstm", "worse", shallow) == [50, 95, 97.5]
    losses = [-differences("lstm", shallow)[level][0] for level in (50, 95, 97.5)]
    text = "from 75 to 90 %, and is worse by {:.2f}, {:.2f} and {:.2f} bits at 50, 95 and 97.5 %."
    assert text.format(*losses) in WORDS
    means = {row["name"]: row["mean"] for row in RESULTS["lstm"]["summary"]}
    gaps = [
        means[f"small-dense-{level / 100:g}"] - means[f"shallow-dense-{level / 100:g}"]
        for level in compared
    ]
    text = "better than the narrower one at every size, by {:.2f} to {:.2f} bits."
    assert text.format(min(gaps), max(gaps)) in WORDS
    assert f"Pruning half of the LSTM costs {lost('lstm', 'sparse-0.5'):.2f} bits;" in WORDS


def test_what_is_said_of_the_language_model_with_erk():
    results = RESULTS["lstm"]
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8").splitlines()
    assert all(line in page for line in paired.markdown(results))
    done = (0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975)

    def differences_from(other):
        return [paired.difference(results, f"erk-{s:g}", f"{other}-{s:g}") for s in done]

    assert {paired.small_network(results, s)["kind"] for s in done} == {"shallow dense"}
    shallow = dict(zip(done, differences_from("shallow-dense"), strict=True))
    verdicts = {s: 0 if x.is_tie else -1 if x.mean > 0 else 1 for s, x in shallow.items()}
    assert verdicts == {0.5: -1, 0.75: 0, 0.8: 1, 0.85: 0, 0.9: 1, 0.95: 1, 0.975: -1}
    text = "network at 80, 90 and 95 %**, by {:.2f}, {:.2f} and {:.2f} bits. It ties at 75 and 85 %"
    assert text.format(*(-shallow[s].mean for s in (0.8, 0.9, 0.95))) in WORDS
    text = "and is worse at 50 and 97.5 %, by {:.2f} and {:.2f}."
    assert text.format(*(shallow[s].mean for s in (0.5, 0.975))) in WORDS
    half, *others = differences_from("small-dense")
    assert half.is_tie
    assert not any(x.is_tie for x in others)
    gains = [-x.mean for x in others]
    text = "than a narrower network by {:.2f} to {:.2f} bits from 75 to 97.5 %, and ties with it at"
    assert text.format(min(gains), max(gains)) in WORDS
    uniform = differences_from("sparse")
    assert all(x.mean < 0 and not x.is_tie for x in uniform)
    text = "by {:.2f} bits at 50 %, {:.2f} at 90 % and {:.2f} at 97.5 %."
    assert text.format(*(-uniform[k].mean for k in (0, 4, 6))) in WORDS


def test_what_is_said_of_translation():
    names = ("seq2seq-en-de", "seq2seq-de-en")
    for name in names:
        assert levels(name, "better") == [75, 80, 85, 90, 95]
        assert levels(name, "tie") == [50, 97.5]
    assert "held from 75 to 95 %**, in both directions; at 50 and 97.5 % it is a tie." in WORDS
    both = [rows_of(name) for name in names]
    means = {row: [rows[row]["mean"] for rows in both] for row in both[0]}
    [sparse] = {rows["sparse-0.9"]["n_nonzero"] for rows in both}
    text = (
        "At 90 %, with {:,} nonzeros, the sparse network has {:.1f} BLEU from English to German and"
    )
    assert f"{text} {{:.1f}} from German".format(sparse, *means["sparse-0.9"]) in WORDS
    text = (
        "have {:.1f} and {:.1f} with half the layers, and {:.1f} and {:.1f} if they are narrower."
    )
    assert text.format(*means["shallow-dense-0.9"], *means["small-dense-0.9"]) in WORDS
    larger = ("small-dense-0.75", "shallow-dense-0.75")
    assert {round(rows[row]["n_nonzero"], -3) for rows in both for row in larger} == {40_000}
    best = [max(rows[row]["mean"] for row in larger) for rows in both]
    text = "networks of 40,000 weights are worse, too ({:.1f} and {:.1f})."
    assert text.format(*best) in WORDS
    for rows in both:
        for row in larger:
            assert summary.compare(rows["sparse-0.9"], rows[row], False)[1] == "better"
    dense = [score for name in names for score in scores_of(name, "dense")]
    assert len(dense) == 10
    assert f"learn them, to between {min(dense):.1f} and {max(dense):.1f} BLEU." in WORDS
    half = scores_of(names[1], "small-dense-0.5")
    assert (
        f"narrower ones of half the size end between {min(half):.1f} and {max(half):.1f}, so"
        in WORDS
    )
    text = "holds for translation**, where it is {:.1f} and {:.1f} BLEU."
    assert text.format(*(lost(name, "sparse-0.5") for name in names)) in WORDS


def scores_of(name, row):
    """BLEU of all runs of a network."""
    return [run["bleu"] for run in RESULTS[name]["runs"] if run["network"] == row]


def test_what_is_said_of_the_digits():
    for name in ("cnn-plain", "cnn-separable"):
        assert levels(name, "tie") == [50, 75, 80, 85, 90, 95]
        assert levels(name, "worse") == [97.5]
    lost_at_90 = [
        lost(name, row)
        for row in ("sparse-0.9", "small-dense-0.9")
        for name in ("cnn-plain", "cnn-separable")
    ]
    of_plain, of_separable = (
        "At 90 %, the plain network loses {:.1f} points if it is pruned and {:.1f} if it is made "
        "small,",
        "and the separable one {:.1f} and {:.1f}.",
    )
    plain, separable = lost_at_90[::2], lost_at_90[1::2]
    assert f"{of_plain.format(*plain)} {of_separable.format(*separable)}" in WORDS
    plain, separable = (-differences(name)[97.5][0] for name in ("cnn-plain", "cnn-separable"))
    said = f"is better, by {plain:.0f} points (plain) and {separable:.0f} points (separable)."
    assert said in WORDS
    sparse = rows_of("cnn-separable")["sparse-0.975"]
    n_pruned = round((sparse["n_params"] - sparse["n_nonzero"]) / 0.975)
    never_pruned = sparse["n_params"] - n_pruned
    assert (
        f"of the {sparse['n_nonzero']:,} nonzeros of the separable network, {never_pruned:,}"
        in WORDS
    )
    assert f"only {sparse['n_nonzero'] - never_pruned:,} connect its channels." in WORDS


def test_what_is_said_of_the_other_findings():
    rows = rows_of("findings")
    change, verdict = {}, {}
    for name, row in rows.items():
        change[name], verdict[name] = summary.compare(row, rows["gradual"], lower_is_better=True)
    intervals = [f"every {n} steps" for n in (10, 100, 250, 500)]
    assert {verdict[name] for name in intervals} == {"tie"}
    means = [rows[name]["mean"] for name in intervals]
    assert means == sorted(means)
    assert f"half of the window, costs {change['every 1000 steps']:.2f} bits" in WORDS
    early = "from 0% to 30% of the steps"
    late = [change["from 0% to 99% of the steps"], change["from 30% to 90% of the steps"]]
    assert verdict[early] == "tie"
    assert f"cost {late[0]:.1f} to {late[1]:.2f}." in WORDS
    shots = [change[f"one-shot at {when}%"] for when in (0, 60, 90)]
    text = "by {:.1f} at step 0, by {:.1f} at 60 % of the steps, and by {:.1f} at 90 %, too late"
    assert text.format(*shots) in WORDS
    assert verdict["regrowth"] == "tie"
    better = -change["ERK"], -change["global"]
    assert "ERK is better by {:.2f} and a global pool by {:.2f}.".format(*better) in WORDS
