"""The numbers in the README, and on pages that have its longer tables, are those of the JSON files.

What to choose and what pruning gains have tests of their own: test_choosing.py and test_payoff.py.
"""

import json
import math
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
        warm, _ = speeds.split(" / ")
        measured[structure] = f"| {bits} | {kilobytes} | {warm} |"
    names = {
        "dense": "dense",
        "unstructured": "90 % of the weights pruned",
        "units": "90 % pruned as whole units, removed",
        "small dense": "small dense network of the same size",
    }
    for structure, name in names.items():
        assert f"| {name} {measured[structure]}" in lines_of("README.md")


@needs_results
def test_the_three_figures_of_the_readme_are_what_the_benchmarks_wrote():
    from benchmarks import payoff

    readme = words_of("README.md")
    smaller = next(line for line in payoff.files() if line.startswith("| jaxprune.save |"))
    assert f"files {smaller.split('|')[3].strip()} times smaller" in readme
    rows = {row["kind"]: row["mean"] for row in payoff.read("paper-quality-wide")["summary"]}
    assert f"worse by {rows['units'] - rows['dense']:.2f} bits per byte" in readme
    assert f"worse by {rows['small dense'] - rows['dense']:.2f} (" in readme
    units = next(line for line in payoff.wide() if "| units |" in line)
    assert f"runs {units.split('|')[-2].split('/')[0].strip()} times faster on one core" in readme


def demo_rows():
    """The lines of the demo's table, from the results of `python -m jaxprune demo`."""
    rows = json.loads((ROOT / "benchmarks/results/demo.json").read_text())["summary"]

    def accuracy(row):
        return f"{100 * row['accuracy_mean']:.2f} ± {100 * row['accuracy_sd']:.2f} %"

    dense, *others = rows
    yield f"| {dense['n_nonzero']:,} | dense | {accuracy(dense)} | | |"
    for sparse, small in zip(others[::2], others[1::2], strict=True):
        difference = 100 * (sparse["accuracy_mean"] - small["accuracy_mean"])
        variance = (sparse["accuracy_sd"] ** 2 + small["accuracy_sd"] ** 2) / sparse["n_seeds"]
        tie = abs(difference) <= 200 * math.sqrt(variance)
        verdict = f"{difference:+.2f}, a tie" if tie else f"**{difference:+.2f}**"
        yield (
            f"| {sparse['n_nonzero']:,} | {100 * sparse['sparsity']:g} % | {accuracy(sparse)} "
            f"| {accuracy(small)} | {verdict} |"
        )


def speed_rows():
    """The lines of the speed table, from the results of `python -m benchmarks select`."""
    results = json.loads((ROOT / "benchmarks/results/select-cpu.json").read_text())
    rows = [row for row in results["rows"] if row["case"] == "size" and row["keep"] == 0.2]

    def ratio(x):
        return f"{x:.0f}" if x >= 10 else f"{x:.1f}"

    others = ("argsort", "sort", "top_k", "np.partition", "torch.kthvalue", "torch.topk")
    for n in (10**4, 10**5, 10**6, 10**7):
        ms = {row["method"]: row["median_ms"] for row in rows if row["n"] == n}
        ours = ms["jaxprune"]
        times = " | ".join(ratio(ms[other] / ours) for other in others)
        yield f"| 1e{len(str(n)) - 1} | {ratio(ours / ms['read'])} | {times} |"


def step_rows():
    """The lines of the step table, from the results of `python -m benchmarks step`."""
    results = json.loads((ROOT / "benchmarks/results/step-cpu.json").read_text())
    rows = [row for row in results["rows"] if row["case"] == "step" and not row["seeds"]]
    for task in ("update 1e+07", "mlp", "transformer", "lstm"):
        for dtype in ("float32", "bfloat16"):
            mine = {r["method"]: r for r in rows if r["task"] == task and r["dtype"] == dtype}
            quiet = " | ".join(f"{mine[m]['x_adamw']:.2f}" for m in ("chain", "inner", "packed"))
            name = "update alone, 1e7 weights" if task.startswith("update") else task
            yield f"| {name} | {dtype} | {quiet} | {mine['chain']['x_amortised']:.2f} |"


@needs_results
def test_the_step_table_is_what_the_benchmark_wrote():
    page = lines_of("docs/performance.md")
    for line in step_rows():
        assert line in page, line


@needs_results
def test_what_is_said_of_tpus_is_what_the_benchmark_wrote():
    page = words_of("docs/performance.md")
    results = json.loads((ROOT / "benchmarks/results/tpu-cpu.json").read_text())["rows"]
    rows = [row for row in results if row["case"] == "mask"]
    of = lambda shape: {r["method"]: r for r in rows if (r["shape"], r["dtype"]) == shape}
    one, many = of(([4096, 4096], "float32")), of(([8192, 28_672], "bfloat16"))
    held = {name: r["temp_bytes_per_weight"] for name, r in one.items()}
    assert f"they hold {held.pop('jaxprune'):.2f} bytes a weight" in page
    assert {round(x) for x in held.values()} == {8}
    assert "`lax.top_k` hold 8." in page
    sent = {name: r["bytes"] for name, r in many.items()}
    assert f"{sent.pop('jaxprune')} bytes cross between chips a pass" in page
    assert {f"gather {x / 1e6:.0f} MB on each" in page for x in sent.values()} == {True}


def algorithm_rows():
    """The lines of the table of algorithms, from the results of its benchmark."""
    rows = json.loads((ROOT / "benchmarks/results/algorithms-cpu.json").read_text())["rows"]
    cells = {
        (r["method"], r["sparsity"]): f"{100 * r['mean']:.1f} ± {100 * r['spread']:.1f}"
        for r in rows
    }
    last = {r["method"]: r["mean"] for r in rows if r["sparsity"] == 0.95}
    for name in sorted(last, key=last.__getitem__, reverse=True):
        columns = " | ".join(cells[name, sparsity] for sparsity in (0.8, 0.9, 0.95))
        yield f"| {name} | {columns} |"
    yield f"| dense | {cells['dense', 0.0]} | | |"


@needs_results
def test_the_algorithm_table_is_what_the_benchmark_wrote():
    page = lines_of("docs/performance.md")
    for line in algorithm_rows():
        assert line in page, line


@needs_results
def test_the_demo_table_is_what_the_demo_wrote():
    page = lines_of("docs/paper.md")
    for line in demo_rows():
        assert line in page, line


@needs_results
def test_the_speed_table_is_what_the_benchmark_wrote():
    page = lines_of("docs/performance.md")
    for line in speed_rows():
        assert line in page, line


@needs_results
def test_the_table_of_files_is_what_the_benchmark_wrote():
    rows = json.loads((ROOT / "benchmarks/results/files-cpu.json").read_text())["rows"]
    of = {
        (r["method"], r["sparsity"]): r
        for r in rows
        if (r["case"], r.get("n"), r.get("dtype")) == ("file", 10**7, "float32")
    }
    page = lines_of("docs/performance.md")
    for sparsity in (0.8, 0.9, 0.95):
        ours, npz = of["jaxprune.save", sparsity], of["np.savez_compressed", sparsity]
        line = f"| {100 * sparsity:g} % | {ours['smaller']:.1f} times | {npz['smaller']:.1f} times "
        assert line + f"| {ours['x_npz_load']:.1f} times as fast |" in page


def minilm_rows():
    """The lines of the guide's table, from the results of `python -m benchmarks minilm`."""
    results = json.loads((ROOT / "benchmarks/results/minilm-cpu.json").read_text())["rows"]
    for target in ("50%", "60%", "70%", "2:4"):
        for kind in ("same", "other"):
            cells = []
            for method in ("magnitude", "wanda", "sparsegpt"):
                cosines = [
                    row[f"cosine_{kind}_kind"]
                    for row in results
                    if (row.get("target"), row.get("method")) == (target, method)
                ]
                assert len(cosines) == (1 if method == "magnitude" else 3)
                assert max(cosines) - min(cosines) < 0.01
                cells.append(f"{sum(cosines) / len(cosines):.3f}")
            assert cells == sorted(cells)
            yield f"| {target} | {kind} kind | {' | '.join(cells)} |"


@needs_results
def test_the_table_of_the_sentence_encoder_is_what_the_benchmark_wrote():
    guide = lines_of("docs/guide.md")
    for line in minilm_rows():
        assert line in guide, line
