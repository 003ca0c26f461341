"""The figures on the pages of the documentation are those of the JSON files of the benchmarks."""

import dataclasses
import json
import pathlib
import statistics

import pytest

import jaxprune

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").exists(), reason="an installed copy has no results"
)


def lines_of(page):
    return (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()


def words_of(page):
    """The text of a page on one line."""
    return " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())


def results(name):
    return json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text())


def demo_rows():
    """Lines from the results of `python -m jaxprune demo`."""

    def number(mean, spread, sign=""):
        return f"{100 * mean:{sign}.1f} ± {100 * spread:.1f}"

    def accuracy(row):
        return number(row["accuracy_mean"], row["accuracy_sd"])

    def difference(row):
        text = number(row["minus_small"], row["minus_small_se"], "+")
        tie = abs(row["minus_small"]) <= 2 * row["minus_small_se"]
        return f"{text}, a tie" if tie else f"**{text}**"

    dense, *others = results("demo")["summary"]
    yield f"| dense | {dense['n_nonzero']:,} | {accuracy(dense)} | | | | | |"
    for level in zip(*[iter(others)] * 4, strict=True):
        uniform, erk, *_ = level
        accuracies = " | ".join(map(accuracy, level))
        yield (
            f"| {100 * uniform['sparsity']:g} % | {uniform['n_nonzero']:,} | {accuracies} "
            f"| {difference(uniform)} | {difference(erk)} |"
        )


def algorithm_rows():
    """Lines from the results of `python -m benchmarks algorithms`, the best at 95 % first."""
    rows = results("algorithms-cpu")["rows"]
    cells = {
        (r["method"], r["sparsity"]): f"{100 * r['mean']:.1f} ± {100 * r['spread']:.1f}"
        for r in rows
    }
    last = {r["method"]: r["mean"] for r in rows if r["sparsity"] == 0.95}
    for name in sorted(last, key=last.__getitem__, reverse=True):
        columns = " | ".join(cells[name, sparsity] for sparsity in (0.8, 0.9, 0.95))
        yield f"| {name} | {columns} |"
    yield f"| dense | {cells['dense', 0.0]} | | |"


def select_rows(name="select-cpu"):
    """Lines from the results of `python -m benchmarks select`."""
    rows = results(name)["rows"]
    rows = [row for row in rows if row["case"] in ("size", "input") and row["keep"] == 0.2]
    rows = [row for row in rows if (row["kind"], row["dtype"]) == ("normal", "float32")]

    def ratio(x):
        return f"{x:.0f}" if x >= 10 else f"{x:.1f}"

    others = ("argsort", "sort", "top_k", "np.partition", "torch.kthvalue", "torch.topk")
    for n in (10**4, 10**5, 10**6, 10**7):
        ms = {row["method"]: row["median_ms"] for row in rows if row["n"] == n}
        ours = ms["jaxprune"]
        times = " | ".join(ratio(ms[other] / ours) for other in others)
        yield f"| 1e{len(str(n)) - 1} | {ratio(ours / ms['read'])} | {times} |"


def amd_select_rows():
    """The same on another processor."""
    return select_rows("select-amd-cpu")


def structure_rows():
    """The line on kinds of pruning, from the results of `python -m benchmarks select`."""
    rows = [row for row in results("select-cpu")["rows"] if row["case"] == "structures"]
    reads = {row["method"]: row["x_read"] for row in rows}
    kinds = ("unstructured", "NM(2, 4)", "blocks", "per_slice", "global pool", "wanda")
    assert reads.keys() == {*kinds, "read"}
    numbers = (
        f"{reads[kind]:.0f}" if reads[kind] >= 10 else f"{reads[kind]:.1f}" for kind in kinds
    )
    yield f"| {' | '.join(numbers)} |"


def step_rows():
    """Lines from the results of `python -m benchmarks step`."""
    rows = [r for r in results("step-cpu")["rows"] if r["case"] == "step" and not r["seeds"]]
    for task in ("update 1e+06", "update 1e+07", "mlp", "transformer", "lstm"):
        for dtype in ("float32", "bfloat16"):
            by_method = {r["method"]: r for r in rows if (r["task"], r["dtype"]) == (task, dtype)}
            quiet = " | ".join(
                f"{by_method[m]['x_adamw']:.2f}" for m in ("chain", "inner", "packed")
            )
            name = task
            if task.startswith("update"):
                name = f"update alone, 1e{task[-1]} weights"
            yield f"| {name} | {dtype} | {quiet} | {by_method['chain']['x_amortised']:.2f} |"


def calibrate_rows():
    """Lines from the results of `python -m benchmarks calibrate`."""
    rows = [r for r in results("calibrate-cpu")["rows"] if r["case"] == "layer"]
    for inputs in ("independent", "outliers", "correlated", "correlated outliers"):
        for target in ("50%", "2:4"):
            errors = {
                r["method"]: r["error"]
                for r in rows
                if (r["inputs"], r["target"], r["dtype"]) == (inputs, target, "float32")
            }
            cells = " | ".join(f"{errors[m]:.4f}" for m in ("magnitude", "wanda", "sparsegpt"))
            yield f"| {inputs} | {target.replace('%', ' %')} | {cells} |"


def file_rows():
    """Lines from the results of `python -m benchmarks files`."""
    rows = [r for r in results("files-cpu")["rows"] if r["case"] == "file"]
    for sparsity in (0.8, 0.9, 0.95):
        chosen = [r for r in rows if (r["sparsity"], r["dtype"]) == (sparsity, "float32")]
        ours, numpy = (
            next(r for r in chosen if r["method"] == method)
            for method in ("jaxprune.save", "np.savez_compressed")
        )
        faster = numpy["median_ms"] / ours["median_ms"]
        yield (
            f"| {100 * sparsity:g} % | {ours['smaller']:.1f} times | {numpy['smaller']:.1f} times "
            f"| {faster:.1f} times as fast |"
        )


def minilm_rows():
    """Lines from the results of `python -m benchmarks minilm`."""
    rows = results("minilm-cpu")["rows"]
    one_draw, three_draws = ("magnitude", "sparsegpt, then distilled"), ("wanda", "sparsegpt")
    three_draws += ("sequential sparsegpt", "distilled magnitude")
    for target in ("50%", "60%", "70%", "2:4", "4:8"):
        for kind in ("same", "other"):
            means = {}
            for method in (one_draw[0], *three_draws, one_draw[1]):
                cosines = [
                    row[f"cosine_{kind}_kind"]
                    for row in rows
                    if (row.get("target"), row.get("method")) == (target, method)
                ]
                assert len(cosines) == (1 if method in one_draw else 3)
                assert max(cosines) - min(cosines) < 0.01
                means[method] = sum(cosines) / len(cosines)
            magnitude, wanda, sparsegpt, sequential, distilled, tuned = means.values()
            assert magnitude < wanda < distilled < sparsegpt < tuned
            assert round(abs(sequential - sparsegpt), 3) <= 0.005
            yield f"| {target} | {kind} kind | {' | '.join(f'{x:.3f}' for x in means.values())} |"


def torch_pruning_results():
    rows = results("shrink-cpu")["rows"]
    return [row for row in rows if row["case"] == "torch-pruning"]


def torch_pruning_rows():
    """Lines from the results of `python -m benchmarks shrink --only torch-pruning`."""

    def cells(row):
        if "error" in row:
            return f"fails ({row['error'].partition(':')[0]}) | |"
        left = (row[key] / row[f"{key}_before"] for key in ("numbers", "multiply_adds"))
        equal = row["difference"] <= 1e-5
        difference = "equal" if equal else f"{100 * row['difference']:.0f} %"
        return " | ".join((*(f"{100 * x:.0f} %" for x in left), difference))

    rows = torch_pruning_results()
    for ours, others in zip(rows[::2], rows[1::2], strict=True):
        assert (ours["method"], others["method"]) == ("jaxprune", "Torch-Pruning")
        name = f"the same, `allow={ours['allow']}`" if ours["allow"] else ours["task"]
        yield f"| {name} | {cells(ours)} | {cells(others)} |"


def score_rows():
    """Lines from the results of `python -m benchmarks shrink --only scores`."""
    for row in results("shrink-cpu")["rows"]:
        if row["case"] == "scores" and row["sparsity"] in (0, 0.5):
            accuracies = (f"{100 * row[k]:.1f} %" for k in ("accuracy", "accuracy_trained_on"))
            cells = (row["task"], row["method"], f"{100 * row['change']:.0f} %", *accuracies)
            yield f"| {' | '.join(cells)} |"


def test_what_is_said_of_scores_of_channels_is_what_was_measured():
    rows = [r for r in results("shrink-cpu")["rows"] if r["case"] == "scores"]
    by_case = {(r["task"], r["method"], r["sparsity"]): r for r in rows}
    methods = ("random", "magnitude", "saliency", "activations")
    for task in ("digits", "different scales"):
        half = {name: by_case[task, name, 0.5] for name in methods}
        assert max(half, key=lambda name: half[name]["accuracy"]) == "magnitude"
        trained_on = [row["accuracy_trained_on"] for row in half.values()]
        assert max(trained_on) - min(trained_on) < 0.01
        others = [half[name]["change"] for name in methods if name != "activations"]
        assert 2 < min(others) / half["activations"]["change"] < 3
    few = {name: by_case["different scales", name, 0.3]["accuracy"] for name in methods}
    assert max(few, key=lambda name: few[name]) == "activations"
    shown = (f"{100 * few[name]:.1f} %" for name in ("activations", "magnitude"))
    assert "{} against {} with the norm of the weights".format(*shown) in words_of(
        "guides/shrinking.md"
    )


TABLES = [
    ("guides/shrinking.md", torch_pruning_rows),
    ("guides/shrinking.md", score_rows),
    ("paper.md", demo_rows),
    ("performance.md", algorithm_rows),
    ("performance.md", select_rows),
    ("performance.md", amd_select_rows),
    ("performance.md", structure_rows),
    ("performance.md", step_rows),
    ("performance.md", calibrate_rows),
    ("performance.md", file_rows),
    ("guides/language-models.md", minilm_rows),
]


@pytest.mark.parametrize("page, rows", TABLES, ids=lambda x: getattr(x, "__name__", None))
def test_the_table_is_what_the_benchmark_wrote(page, rows):
    lines = lines_of(page)
    for line in rows():
        assert line in lines, f"{page} needs the line {line}"


def test_the_section_on_an_earlier_version_is_what_the_benchmark_wrote():
    """To write it again: `python -m benchmarks.against_page`."""
    from benchmarks import against_page

    page = against_page.PAGE.read_text(encoding="utf-8")
    for name in against_page.RESULTS:
        assert results(name)["finished"]
        assert not results(name)["quick"]
    assert against_page.filled(page) == page


def test_an_alternative_is_faster_only_for_small_arrays():
    for name in ("select-cpu", "select-amd-cpu"):
        rows = [r for r in results(name)["rows"] if r["case"] in ("size", "input")]
        others = [r for r in rows if r["method"] not in ("read", "jaxprune", "jaxprune warm")]
        assert {r["n"] for r in others if r["x_ours"] < 1 and r["answer"] != "wrong"} == {10**4}
    said = "NumPy has no magnitudes to compute, it is faster on the Xeon at 1e5 weights, too"
    assert said in words_of("performance.md")
    rows = [r for r in results("select-cpu")["rows"] if r["case"] == "forms"]
    ms = {(r["method"], r["n"], r["keep"]): r["median_ms"] for r in rows}
    slower = {
        n for m, n, k in ms if ms["np.partition(scores)", n, k] < ms["topk_mask(scores)", n, k]
    }
    assert slower == {10**4, 10**5}


def test_what_is_said_of_the_demo_is_what_it_wrote():
    report = pytest.importorskip("jaxprune.demo.report")
    summary = results("demo")["summary"]
    page = words_of("paper.md")
    sentence = report.answer(summary).removeprefix("Result: the").replace("%", " %")
    assert f"The{sentence}" in page
    rows = {row["name"]: f"{100 * row['accuracy_mean']:.1f} %" for row in summary}
    assert f"At 90 % ERK reads {rows['erk-0.9']} where the dense network" in page
    narrower, shallower = rows["narrower-dense-0.9"], rows["shallower-dense-0.9"]
    assert f"{rows['dense']} and the small dense ones {narrower} (narrower) and {shallower}" in page
    assert f"The job took {results('demo')['seconds']:.0f} seconds on two idle cores" in page


def test_what_is_said_of_the_setting_of_the_demo_is_in_its_configuration():
    demo = pytest.importorskip("jaxprune.demo.config")
    page = words_of("paper.md")
    config = demo.Config()
    as_json = json.loads(json.dumps(dataclasses.asdict(config)))
    assert results("demo")["config"] == as_json
    n_others = 1797 - config.n_digits
    assert f"{config.n_train:,} training images of {config.n_digits:,} of the digits" in page
    assert f"{config.n_test:,} test images of the other {n_others}" in page
    shapes = demo.shapes_of(config.widths)
    kept = {}
    for kind, distribution in demo.DISTRIBUTIONS.items():
        schedule = config.schedule(max(config.sparsities))
        plan = jaxprune.plan(shapes, schedule, distribution=distribution)
        first = next(leaf for leaf in plan.leaves if leaf.path == "Conv_0/kernel")
        kept[kind] = first.size - first.n_zero
    size = first.size
    assert f"it keeps {kept['uniform']} of the {size} weights of the first convolution" in page
    assert f"ERK keeps {kept['ERK']}." in page


def test_what_is_said_of_the_time_of_torch_pruning_is_what_the_benchmark_wrote():
    rows = [row for row in torch_pruning_results() if "error" not in row]
    ours, others = (
        statistics.median(row["seconds"] for row in rows if row["method"] == method)
        for method in ("jaxprune", "Torch-Pruning")
    )
    said = f"take {ours:.1f} s (median over the networks), and Torch-Pruning {others:.1f} s"
    assert said in words_of("guides/shrinking.md")


def test_what_is_said_of_many_leaves_is_what_the_benchmark_wrote():
    rows = results("select-cpu")["rows"]
    [many] = [r for r in rows if r["case"] == "leaves" and r["method"] == "many"]
    words = words_of("performance.md")
    assert f"transformer of {many['leaves']} leaves and {many['n']:.0e}".replace("+0", "") in words
    [target] = [t for t in results("select-cpu")["targets"] if "compile s" in t["target"]]
    assert f"compiling a fire takes {target['measured']:.1f} s on two cores" in words
    said = f"takes {many['median_ms']:.0f} ms, {many['x_one']:.1f} times as long as for one leaf"
    assert said in words
    assert f"same size, and {many['temp_bytes'] / 1e6:.0f} MB of temporary memory." in words


def test_what_is_said_of_lists_of_schedules_is_what_the_benchmark_wrote():
    rows = results("sweep-cpu")["rows"]
    compiles, quiet = (max(row[name] for row in rows) for name in ("x_compile", "x_quiet"))
    said = f"take at most {compiles:.2f} times the CPU time of one schedule to compile, and "
    assert f"{said}{quiet:.2f} times for a step without a fire" in words_of("performance.md")
    assert compiles <= 1.3
    assert quiet <= 1.05


def test_what_is_said_of_tpus_is_what_the_benchmark_wrote():
    page = words_of("performance.md")
    all_rows = results("tpu-cpu")["rows"]
    rows = [row for row in all_rows if row["case"] == "mask"]
    of = lambda shape: {r["method"]: r for r in rows if (r["shape"], r["dtype"]) == shape}
    one, many = of(([4096, 4096], "float32")), of(([8192, 28_672], "bfloat16"))
    held = {name: r["temp_bytes_per_weight"] for name, r in one.items()}
    assert f"they need {held.pop('jaxprune'):.2f} bytes per weight" in page
    assert {round(x) for x in held.values()} == {8}
    assert "`lax.top_k` need 8." in page
    sent = {name: r["bytes"] for name, r in many.items()}
    assert f"{sent.pop('jaxprune')} bytes cross between chips a pass" in page
    assert {f"gather {x / 1e6:.0f} MB on each" in page for x in sent.values()} == {True}

    stacked, one_pool, explicit = (r for r in all_rows if r["case"] == "fire" and r["chips"] == 256)
    mib = lambda row, name: f"{row[name] / 2**20:.0f} MiB"
    assert f"holds {mib(stacked, 'param_bytes')} of bfloat16 params" in page
    assert f"and {mib(stacked, 'mask_bytes')} of masks" in page
    assert f"another {mib(stacked, 'temp_bytes')} on Auto axes with a pool for each leaf" in page
    assert f"and {mib(explicit, 'temp_bytes')} on Explicit axes" in page
    assert f"{mib(one_pool, 'temp_bytes')} on Auto axes with one pool over all leaves" in page
    sent = [f"{kib_of_a_fire(row):.1f} KiB" for row in (stacked, one_pool)]
    assert sent[0] == sent[1]
    assert f"A fire sends {sent[0]} on Auto axes, with one pool or with 7" in page
    assert f"it sends {kib_of_a_fire(explicit):.1f} KiB on Explicit axes" in page


def test_no_tpu_program_on_auto_axes_sends_weights_or_stores_them():
    rows = [r for r in results("tpu-cpu")["rows"] if r["case"] == "fire"]
    auto = [r for r in rows if "Explicit" not in r["layout"]]
    assert len(auto) == 4
    for row in auto:
        assert row["kinds"] == ["all-reduce"]
        assert row["largest_crossing"] < 10_000
    assert all(r["temp_bytes"] < 2**27 for r in rows)


def test_what_is_said_of_gpus_is_what_the_benchmark_wrote():
    page = words_of("performance.md")
    rows = [r for r in results("gpu_programs-cpu")["rows"] if r["case"] in ("step", "mask")]
    where = lambda r: (r["target"], r["devices"], r["axes"], r["dtype"])
    of = lambda *place: {
        r["kind"]: r for r in rows if where(r) == ("h100", *place, "float32") and "error" not in r
    }
    one, auto, explicit = of(1, "Auto"), of(8, "Auto"), of(8, "Explicit")
    usual, on_auto, on_explicit = (x["unstructured"] for x in (one, auto, explicit))
    assert (
        f"a fire needs {usual['temp_per_weight']:.2f} bytes of temporary memory per weight" in page
    )
    for row in (on_auto, on_explicit):
        assert f"and {row['temp_per_weight']:.2f} for two leaves on eight H100s" in page
        assert row["pass_read_per_weight"] < 5.05
    assert f"A pass reads {usual['pass_read_per_weight']:.1f} bytes a weight" in page
    assert f"writes {usual['pass_written_per_weight']:.2f} and" in page
    kernels = [row["pass_kernels"] for row in (usual, on_auto, on_explicit)]
    said = "starts {} kernels ({} on Auto axes, {} on Explicit axes)"
    assert said.format(*kernels) in page
    sorts = {round(one[name]["temp_per_weight"]) for name in ("argsort", "jnp.sort", "lax.top_k")}
    assert sorts == {12}
    assert "need 12 bytes per weight" in page
    kinds = ("bit masks", "NM(2, 4)", "blocks", "balanced blocks", "random score", "rigl")
    held = [f"{one[kind]['temp_per_weight']:.1f}" for kind in (*kinds, "150 leaves")]
    assert f"| {' | '.join(held)} |" in page
    for row in (x["balanced blocks"] for x in (auto, explicit)):
        assert f"balanced blocks need {row['temp_per_weight']:.1f} bytes per weight" in page
        assert row["quiet_extra"] == usual["quiet_extra"]


def kib_of_a_fire(row, n_passes=8):
    return (n_passes * row["bytes_per_pass"] + row["bytes_besides"]) / 1024


def test_what_is_said_of_many_devices_is_what_the_benchmarks_wrote():
    lines, words = lines_of("performance.md"), words_of("performance.md")
    rows = results("scale_plan-cpu")["rows"]
    assert max(row["passes"] for row in rows if row["case"] == "passes") == 8
    for devices in (256, 4096):
        by_layout = {r["layout"]: r for r in rows if r.get("devices") == devices}
        for layout, words_for_it in (
            ("stacked", "Auto | 7, one for each leaf of stacked layers"),
            ("stacked, one pool", "Auto | 1, over all leaves"),
            ("stacked, one pool, Explicit", "Explicit | 1, over all leaves"),
        ):
            row = by_layout[layout]
            numbers = f"{row['collectives_per_pass']} | {row['bytes_per_pass']}"
            assert f"| {words_for_it} | {numbers} | {kib_of_a_fire(row):.1f} KiB |" in lines
    sharding = results("sharding-cpu")["rows"]
    sent = {r["bytes"] for r in sharding if r["method"] == "jaxprune"}
    gathered = {r["bytes"] / 2**20 for r in sharding if r["method"] != "jaxprune"}
    assert f"has all-reduces of {min(sent)} to {max(sent)} bytes in all" in words
    assert f"gather {min(gathered):.0f} to {max(gathered):.0f} MiB" in words


def test_what_is_said_of_the_cost_of_calibration_is_what_the_benchmark_wrote():
    page = words_of("performance.md")
    measured = {t["target"]: t["measured"] for t in results("calibrate-cpu")["targets"]}
    passes = measured["forward passes to collect, without the Grams"]
    half, groups = (
        measured[f"time, sparsegpt / torch, {target}"]
        for target in ("{'sparsity': 0.5}", "{'nm': (2, 4)}")
    )
    assert f"takes the time of {passes:.1f} forward passes" in page
    assert f"with the authors' algorithm: it takes {half:.2f} times as long at 50 %" in page
    assert f"and {groups:.2f} times as long at 2:4" in page


def test_what_is_said_of_the_memory_of_the_commands_is_what_the_benchmark_wrote():
    rows = [r for r in results("files-cpu")["rows"] if r["case"] == "memory"]
    peaks = {row["method"]: row["peak_bytes"] for row in rows}
    mb = lambda n: f"{n / 1e6:,.0f} MB"
    leaf, file = rows[0]["leaf_bytes"], rows[0]["file_bytes"]
    assert (
        f"pruning a file of {mb(file)} with leaves of {mb(leaf)} took at most "
        f"{mb(max(peaks.values()))} of memory, of which {mb(peaks['plan'])} were Python and JAX"
    ) in words_of("performance.md")
