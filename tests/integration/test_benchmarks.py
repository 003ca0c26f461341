"""`python -m benchmarks` writes results, checks masks and survives interrupts; no timings."""

import json
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("tqdm")

from benchmarks import (
    __main__ as cli,
    against_page,
    bench_against,
    bench_calibrate,
    bench_inference,
    bench_select,
    bench_shrink,
    bench_tpu,
    common,
    hlo,
    networks,
    public_methods,
    scale_plan,
    shrink_torch,
    tasks,
    topk_methods,
    topk_oracle,
    versions,
)


def written(folder, name):
    (path,) = folder.glob(f"{name}-*.json")
    return json.loads(path.read_text())


def test_select_records_every_method_its_answer_and_the_environment(tmp_path, capsys):
    only = "select normal 1e+04 keep 20%"
    assert cli.main(["select", "--quick", "--out", str(tmp_path), "--only", only]) == 0
    result = written(tmp_path, "select")
    assert result["finished"]
    assert {"backend", "device", "cores", "vectors", "versions", "commit", "load_average"} <= set(
        result["environment"]
    )
    ours = [row for row in result["rows"] if row["method"] in topk_methods.JAXPRUNE]
    assert ours
    for row in result["rows"]:
        assert row["median_ms"] > 0
        assert row["calls"] > 0
        assert row["dtype"] == "float32"
        assert row["shape"] == [100, 100]
    assert {row["answer"] for row in ours} == {"exact"}
    assert {"target", "limit", "measured", "ok"} <= set(result["targets"][0])
    assert "Targets" in capsys.readouterr().out


def test_timed_calls_alternate_and_a_slow_one_runs_once(monkeypatch):
    takes = {"short": 0.004, "long": 0.9, "slow": 1.1}
    turns = []

    def seconds_of(call):
        turns.append(call.run())
        return takes[turns[-1]]

    monkeypatch.setattr(common, "seconds_of", seconds_of)
    times = common.interleaved({n: lambda n=n: n for n in takes}, slow=1.0)
    assert {n: t.calls for n, t in times.items()} == {"short": 35, "long": 7, "slow": 1}
    assert {n: t.median_ms for n, t in times.items()} == {n: 1e3 * s for n, s in takes.items()}
    assert turns == [*takes, *(["short"] * 5 + ["long"]) * 7]


@pytest.mark.parametrize("kind", topk_oracle.KINDS)
def test_wrong_masks_are_detected(kind):
    w = topk_oracle.weights(kind, 1000)
    for n_keep in (0, 1, 200, 999, 1000):
        right = topk_oracle.oracle(w, n_keep)
        assert right.sum() == n_keep
        order = np.argsort(-topk_oracle.keys_of(w).astype(np.int64), kind="stable")
        assert right.reshape(-1)[order[:n_keep]].all()
        assert topk_oracle.judge(right, w, right) == "exact"
    shifted = np.roll(right := topk_oracle.oracle(w, 200), 1)
    tied = kind in ("constant", "zero")
    assert topk_oracle.judge(shifted, w, right) == ("ties" if tied else "wrong")


def test_forms_of_topk_mask_and_structures_have_a_row_each():
    rows = {row["method"]: row for row in bench_select.forms(10**4, 0.2)}
    forms = (public_methods.GIVEN, public_methods.STORED, public_methods.FUSED)
    assert {rows[name]["answer"] for name in forms} == {"exact"}
    assert rows[public_methods.PARTITION]["x_read"] > 0
    names = {row["method"] for row in bench_select.structures(10**4)}
    assert {"NM(2, 4)", "blocks", "per_slice", "global pool", "wanda"} <= names


def test_a_wrong_mask_of_jaxprune_stops_the_benchmark(monkeypatch):
    monkeypatch.setattr(
        topk_methods, "_jaxprune_warm", lambda w, n_keep, start: jnp.zeros(w.shape, bool)
    )
    with pytest.raises(AssertionError, match="jaxprune warm on normal weights"):
        bench_select.compare("size", "normal", 100, 0.2)


def test_many_leaves_are_checked_and_compared_with_one():
    rows = {row["method"]: row for row in bench_select.many_leaves(True)}
    assert rows["many"]["leaves"] == 24
    assert rows["one"]["x_one"] == 1.0
    assert all(row["compile_s"] > 0 and row["answer"] == "exact" for row in rows.values())


def test_two_versions_are_compared(tmp_path):
    """With the last commit instead of an earlier one: a shallow clone has it, too."""
    try:
        commit = versions.full_hash("HEAD")
    except LookupError as error:
        pytest.skip(str(error))
    only = ["--only", "select normal 1e+04 keep 20%"]
    assert cli.main(["against", "HEAD", "--quick", "--out", str(tmp_path), *only]) == 0
    result = written(tmp_path, "against")
    assert [row["method"] for row in result["rows"]] == [
        bench_against.SCORES,
        bench_against.WEIGHTS,
    ]
    for row in result["rows"]:
        assert row["against"] == commit
        assert row["is_same"]
        assert row["beside_ms"].keys() == {"read", "np.partition"}
        low, high = row["x_quartiles"]
        assert 0 < low <= row["x_faster"] <= high


def test_a_version_that_makes_other_masks_is_refused(tmp_path):
    (tmp_path / "jaxprune").mkdir()
    wrong = "def topk_mask(scores, n_keep):\n    return scores < 0\n"
    (tmp_path / "jaxprune" / "__init__.py").write_text(wrong)
    worker = versions.Worker(tmp_path, tmp_path / "log")
    try:
        facts = {"kind": "normal", "n": 10**4, "keep": 0.2}
        program = bench_against.Program("topk_mask", "scores", facts)
        answer = worker("prepare", **program._asdict())
        assert answer["n_kept"] == 0
        with pytest.raises(AssertionError, match="keep 0 and 2000 entries"):
            bench_against._require_same(program, answer, answer | {"n_kept": 2000})
        with pytest.raises(RuntimeError, match="has no attribute 'nothing'"):
            worker("nothing")
    finally:
        worker.end()


def test_the_page_gets_one_section_on_an_earlier_version(monkeypatch):
    def row(case, programs, beside=()):
        numbers = {"against": "0123456789", "x_faster": 2.345, "x_cpu_faster": 0.5, "this_ms": 1}
        for unit, this in (("ms", 1), ("cpu_ms", 3)):
            numbers |= {f"this_{unit}": this, f"beside_{unit}": {p.name: 12 for p in beside}}
        return [{"case": case, "method": p.name, **p.facts, **numbers} for p in programs]

    monkeypatch.setattr(bench_against, "compare", row)
    rows = [row for case in bench_against.cases(False) for row in case.rows()]
    monkeypatch.setattr(against_page, "rows_of", lambda name: rows)
    page = against_page.PAGE.read_text(encoding="utf-8")
    once = against_page.filled(page)
    assert once.count("| `topk_mask(scores)` | 2.3 | 2.3 | 2.3 | 2.3 | 2.3 |") == 2  # processors
    assert once.count("| `np.partition` | 12 | 12 | 12 | 12 | 12 |") == 2
    assert f"| {'2.3 | ' * 8}0.5 | 0.5 |" in once
    assert against_page.filled(once) == once
    without = re.sub("### Against an earlier version.*?(?=## A tr)", "", once, flags=re.DOTALL)
    assert against_page.filled(without) == once


@pytest.mark.slow
def test_every_case_runs_on_the_earlier_commit(tmp_path):
    try:
        versions.full_hash(bench_against.DEFAULT_COMMIT)
    except LookupError as error:
        pytest.skip(str(error))
    assert cli.main(["against", "--quick", "--out", str(tmp_path)]) == 0
    rows = written(tmp_path, "against")["rows"]
    assert {row["case"] for row in rows} == {"select", "structures", "leaves", "compile"}


def test_a_commit_that_is_not_there_is_named_in_one_line(capsys, tmp_path):
    assert cli.main(["against", "no-such-commit"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "no-such-commit" in message or "not a git checkout" in message
    with pytest.raises(LookupError, match="is not a git checkout"):
        versions.full_hash("HEAD", tmp_path)


def test_step_writes_quiet_and_firing_steps_of_each_optimizer(tmp_path):
    assert cli.main(["step", "--quick", "--out", str(tmp_path), "--only", "mlp"]) == 0
    rows = {row["method"]: row for row in written(tmp_path, "step")["rows"]}
    assert set(rows) >= {"adamw", "chain", "inner"}
    for name, row in rows.items():
        assert {"median_ms", "temp_bytes", "copies", "x_adamw", "compile_s"} <= set(row)
        assert row["traces"] == 1
        assert ("fire_ms" in row) == (name != "adamw")


def test_sweep_compares_a_list_of_schedules_with_one(tmp_path):
    assert cli.main(["sweep", "--quick", "--out", str(tmp_path)]) == 0
    one, many = written(tmp_path, "sweep")["rows"]
    assert (one["method"], many["method"]) == ("one schedule", "8 schedules")
    assert one["x_compile"] == one["x_quiet"] == 1.0
    assert many["x_compile"] > 0
    assert many["quiet_cpu_ms"] > 0


ATTENTION = pytest.mark.skip_in("strict", reason="jax.nn.dot_product_attention promotes bfloat16")


@pytest.mark.parametrize("make", (pytest.param(tasks.transformer, marks=ATTENTION), tasks.lstm))
def test_every_network_has_finite_gradients_of_its_params(make):
    task = make(True, jnp.bfloat16)
    grads = jax.jit(task.grads)(task.params, task.batch)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, task.params)
    assert all(jnp.isfinite(g).all() and jnp.any(g != 0) for g in jax.tree.leaves(grads))


def test_copies_inside_loops_do_not_count():
    text = """HloModule m
%body (p: (u8[8])) -> (u8[8]) {
  %c.1 = u8[8]{0} copy(%x)
}
%called (p: u8[8]) -> u8[8] {
  ROOT %c.2 = u8[8]{0} copy(%p)
}
ENTRY %main (a: u8[8]) -> u8[8] {
  %c.3 = u8[2]{0} copy(%a)
  %w = (u8[8]{0}) while(%t), condition=%cond, body=%body
  ROOT %f = u8[8]{0} fusion(%a), kind=kLoop, calls=%called
}
"""
    assert hlo.large_copies(text, 8) == ["u8[8]"]
    assert hlo.large_copies(text, 1) == ["u8[2]", "u8[8]"]


def test_the_plan_of_scale_compiles_a_fire_that_moves_counts_only(tmp_path):
    assert cli.main(["scale_plan", "--quick", "--out", str(tmp_path), "--only", "stacked"]) == 0
    (row,) = written(tmp_path, "scale_plan")["rows"]
    assert (row["devices"], row["how"]) == (8, "compiled")
    assert row["pools"] == len(scale_plan.MATRICES)
    assert row["params"] < 8 * row["mask_bytes"] < 1.01 * row["params"]  # and copies of the norms
    assert row["collectives_per_pass"] > 0
    assert row["bytes_besides"] + row["bytes_per_pass"] < 4096  # less than a leaf


def test_without_the_tpu_compiler_no_tpu_rows_are_written(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_tpu, "version_of", lambda name: None)
    assert cli.main(["tpu", "--quick", "--out", str(tmp_path)]) == 0
    result = written(tmp_path, "tpu")
    assert not result["rows"]
    assert "libtpu is not installed: pip install 'jax[tpu]'" in result["notes"][0]


@pytest.mark.recipes
def test_on_tpus_a_fire_moves_counts_only(tmp_path):
    pytest.importorskip("libtpu")
    assert cli.main(["tpu", "--quick", "--out", str(tmp_path), "--only", "fire"]) == 0
    (row,) = written(tmp_path, "tpu")["rows"]
    assert (row["chips"], row["kinds"]) == (256, ["all-reduce"])
    assert row["bytes_besides"] + row["bytes_per_pass"] < 4096


def test_collectives_are_counted_by_loop():
    text = """HloModule m
%inner (p: s32[]) -> s32[] {
  ROOT %all-reduce.1 = s32[2]{0} all-reduce(%p), to_apply=%sum
}
%outer (p: s32[]) -> s32[] {
  %w.2 = s32[] while(%p), condition=%cond, body=%inner
}
ENTRY %main (a: s32[]) -> s32[] {
  %all-gather.3 = u8[8]{0} all-gather(%a)
  ROOT %w.1 = s32[] while(%a), condition=%cond, body=%outer
}
"""
    lines = hlo.lines_with_depth(text)
    collectives = [(depth, *c) for depth, line in lines for c in hlo.collectives_in(line)]
    assert sorted(collectives) == [(0, "all-gather", 8), (2, "all-reduce", 8)]


def test_rows_of_more_layers_are_extrapolated_from_the_compiled_ones():
    few = {"devices": 8, "layers": 2, "how": "compiled", "temp_bytes": 70, "mesh": (4, 2)}
    more = few | {"layers": 4, "temp_bytes": 90}
    assert scale_plan.extrapolated(few, more, 80) == few | {
        "layers": 80,
        "temp_bytes": 850,
        "how": "computed from 2 and 4 layers",
    }


def test_without_torch_its_rows_are_left_out_with_a_note(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    topk_methods.why_no_torch.cache_clear()
    try:
        only = "select normal 1e+04 keep 10%"
        assert cli.main(["select", "--quick", "--out", str(tmp_path), "--only", only]) == 0
    finally:
        topk_methods.why_no_torch.cache_clear()
    result = written(tmp_path, "select")
    assert not any(row["method"].startswith("torch") for row in result["rows"])
    assert "torch is not installed" in result["notes"][0]
    assert "torch is not installed" in capsys.readouterr().out


def test_an_interrupt_keeps_what_was_measured(monkeypatch, tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    row = {"case": "size", "kind": "normal", "n": 10, "keep": 0.2, "method": "read"}
    row |= {"answer": None, "dtype": "float32", "median_ms": 1.0, "x_read": 1.0, "x_ours": 0.1}
    cases = [common.Case("first", lambda: [row]), common.Case("second", interrupted)]
    monkeypatch.setattr(bench_select, "cases", lambda quick: cases)
    assert cli.main(["select", "--out", str(tmp_path)]) == 130
    result = written(tmp_path, "select")
    assert not result["finished"]
    assert [r["method"] for r in result["rows"]] == ["read"]


def test_resume_keeps_finished_cases_and_runs_the_others(monkeypatch, tmp_path):
    runs = []

    def case(name):
        def rows():
            runs.append(name)
            return [{"case": "size", "name": name}]

        return common.Case(name, rows)

    def interrupted():
        raise KeyboardInterrupt

    bench = types.SimpleNamespace(checks=lambda rows: [], tables=lambda rows: [])
    monkeypatch.setitem(cli._BENCHMARKS, "made", bench)
    bench.cases = lambda quick: [case("first"), common.Case("second", interrupted)]
    assert cli.main(["made", "--out", str(tmp_path)]) == 130
    bench.cases = lambda quick: [case("first"), case("second")]
    assert cli.main(["made", "--out", str(tmp_path), "--resume"]) == 0
    assert runs == ["first", "second"]
    result = written(tmp_path, "made")
    assert [row["name"] for row in result["rows"]] == ["first", "second"]
    assert result["finished"]
    assert len(result["earlier_environments"]) == 1


def made_benchmark(monkeypatch, folder):
    """Registers a benchmark of three cases, `made`, and returns what runs it.

    Its rows hold the numbers that are passed, and `made-cpu.json` those of the first run.
    """
    bench = types.SimpleNamespace(checks=lambda rows: [], tables=lambda rows: [])
    monkeypatch.setitem(cli._BENCHMARKS, "made", bench)

    def run(number, *options):
        def case(name):
            return common.Case(name, lambda: [{"case": "size", "name": name, "number": number}])

        bench.cases = lambda quick: [case(name) for name in ("one", "two", "three")]
        return cli.main(["made", "--out", str(folder), *options])

    assert run(1) == 0
    return run


def numbers(folder):
    return {row["name"]: row["number"] for row in written(folder, "made")["rows"]}


def test_only_keeps_the_rows_of_other_cases_in_their_order(monkeypatch, tmp_path):
    run = made_benchmark(monkeypatch, tmp_path)
    assert run(2, "--only", "tw") == 0
    assert list(numbers(tmp_path).items()) == [("one", 1), ("two", 2), ("three", 1)]
    assert len(written(tmp_path, "made")["earlier_environments"]) == 1
    assert run(3) == 0
    assert set(numbers(tmp_path).values()) == {3}
    assert "earlier_environments" not in written(tmp_path, "made")


def test_a_case_that_is_interrupted_or_only_has_a_note_keeps_its_rows(monkeypatch, tmp_path):
    run = made_benchmark(monkeypatch, tmp_path)

    def interrupted():
        raise KeyboardInterrupt

    bench = cli._BENCHMARKS["made"]
    note = {"case": "note", "note": "a package is missing"}
    bench.cases = lambda quick: [
        common.Case("one", lambda: [note]),
        common.Case("two", interrupted),
    ]
    assert cli.main(["made", "--out", str(tmp_path), "--only", "o"]) == 130
    assert numbers(tmp_path) == {"one": 1, "two": 1, "three": 1}
    assert written(tmp_path, "made")["notes"] == ["a package is missing"]
    assert run(2, "--only", "o") == 0


@pytest.mark.parametrize("option", (("--only", "tw"), ("--resume",)))
def test_rows_that_do_not_name_their_case_are_not_overwritten(
    monkeypatch, tmp_path, capsys, option
):
    run = made_benchmark(monkeypatch, tmp_path)
    path = next(tmp_path.glob("made-*.json"))
    content = json.loads(path.read_text())
    del content["rows"][0]["case_name"]
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    assert run(2, *option) == 1
    assert path.read_bytes() == before
    assert "1 of 3 rows have no case_name" in capsys.readouterr().err


def test_only_that_matches_no_case_is_an_error(monkeypatch, tmp_path, capsys):
    run = made_benchmark(monkeypatch, tmp_path)
    with pytest.raises(SystemExit):
        run(2, "--only", "four")
    assert "--only four: no case of these benchmarks" in capsys.readouterr().err
    assert set(numbers(tmp_path).values()) == {1}


def test_the_rows_of_shrink_name_cases_that_it_has():
    result = json.loads((Path(cli.__file__).parent / "results/shrink-cpu.json").read_text())
    names = {case.name for case in bench_shrink.cases(quick=False)}
    assert {row["case_name"] for row in result["rows"]} == names


def test_a_result_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "new" / "a.json"
    common.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        common.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_an_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        cli.main(["speed"])
    assert "unknown benchmark speed: choose from select, step" in capsys.readouterr().err


def test_inference_checks_every_way_and_compares_with_the_best_dense(monkeypatch):
    pytest.importorskip("scipy")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(bench_inference, "_FLUSH_BYTES", 2**16)
    network = bench_inference.networks(quick=True)["MLP 16"]
    rows, notes = bench_inference.compare(network, 0.9, (1,))
    assert "onnxruntime is skipped: onnxruntime is not installed" in notes
    by_method = {row["method"]: row for row in rows}
    assert {"jax x @ w", "jax w @ x", "numpy", "packed 1x16", "scipy CSR", "narrower dense"} <= set(
        by_method
    )
    dense = [row for name, row in by_method.items() if name in bench_inference.DENSE]
    assert max(row["x_warm"] for row in dense) == max(row["x_cold"] for row in dense) == 1.0
    best = min(row["median_ms"] for row in dense)
    assert by_method["packed 1x16"]["x_warm"] == best / by_method["packed 1x16"]["median_ms"]
    assert "one dense layer" not in by_method  # an MLP has no network of half the layers
    assert bench_inference.tables(rows)


def test_an_lstm_is_compared_with_one_dense_layer_too(monkeypatch):
    monkeypatch.setattr(bench_inference, "_FLUSH_BYTES", 2**16)
    network = bench_inference.networks(quick=True)["LSTM 2 x 16"]
    rows, _ = bench_inference.compare(network, 0.9, (1,))
    methods = [row["method"] for row in rows]
    assert {"narrower dense", "one dense layer"} <= set(methods) <= set(bench_inference.METHODS)
    assert len(set(methods)) == len(methods)


def test_a_method_with_a_wrong_result_is_detected(monkeypatch):
    monkeypatch.setattr(bench_inference, "_IN_JAX", {"jax x @ w": lambda *_: lambda x: lambda: 1.0})
    network = bench_inference.networks(quick=True)["MLP 16"]
    with pytest.raises(AssertionError, match="jax x @ w"):
        bench_inference.checked_calls(network, 0.9, (1,))


def test_pruned_networks_keep_equally_many_blocks():
    network = networks.lstm_network(16, 40, embed=8)
    full = networks.weights_of(network)
    for width in (1, 8, 32):
        for name, w in networks.pruned(full, 0.9, width).items():
            n_in, n_out = w.shape
            columns = np.array_split(w != 0, range(width, n_out, width), axis=1)
            assert all((c == c[:, :1]).all() for c in columns)
            n_keep = max(n_in - round(0.9 * n_in), 1)
            assert {int(c[:, 0].sum()) for c in columns} == {n_keep}, name
    network = networks.lstm_network(650, 10_000)
    part = networks.part_left(network, 0.9)
    full = networks.n_weights(network)
    assert networks.n_weights(network, part) == pytest.approx(0.1 * full, rel=0.01)
    wider = networks.part_left(network, 0.9, network.shallow)
    assert networks.n_weights(network.shallow, wider) == pytest.approx(0.1 * full, rel=0.01)
    assert wider > part
    assert list(network.shallow.shapes(wider)) == ["cell0", "softmax"]


def test_onnx_computes_the_step():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from benchmarks.onnx_graphs import onnx_runs

    for network in bench_inference.networks(quick=True).values():
        weights, inputs = networks.weights_of(network), networks.inputs_of(network, 3)
        run = onnx_runs(network.step, weights, network.inputs(1), 1)(inputs)
        right = network.step(np, lambda w, x: x @ w, weights, inputs)
        np.testing.assert_allclose(run(), right, rtol=1e-4, atol=1e-5)


def test_calibrate_compares_the_errors_of_the_three_methods():
    rows = bench_calibrate.compare("correlated outliers", "50%", (16, 8, 64), 1)
    errors = {row["method"]: row["error"] for row in rows}
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]
    assert bench_calibrate.tables(rows)


def test_calibrate_times_sparsegpt_and_collecting():
    rows = bench_calibrate.compare_with_torch({"nm": (2, 4)}, 16, 8)
    rows += bench_calibrate.compare_collecting(8, 2, 16, 8)
    methods = {row["method"] for row in rows} - {"torch"}
    assert methods == {"jaxprune", "forward", "grams", "collect", "collect diagonals"}
    assert bench_calibrate.checks(rows)
    assert bench_calibrate.tables(rows)


@pytest.mark.slow
def test_shrink_writes_the_network_before_and_after(tmp_path):
    assert cli.main(["shrink", "--quick", "--out", str(tmp_path), "--only", "transformer"]) == 0
    rows = written(tmp_path, "shrink")["rows"]
    assert {row["method"] for row in rows} == {"dense", "50% cut"}
    for row in rows:
        assert row["median_ms"] > 0
        assert (row["numbers"] == rows[0]["numbers"]) == (row["method"] == "dense")


def test_without_torch_pruning_shrink_says_why_its_rows_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shrink_torch, "version_of", lambda package: None)
    only = ["--only", "torch-pruning"]
    assert cli.main(["shrink", "--quick", "--out", str(tmp_path), *only]) == 0
    assert written(tmp_path, "shrink")["rows"] == []
    assert "torch and torch-pruning can't be imported" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ("MLP", "LSTM", "ConvNeXt block"))
def test_shrink_is_compared_with_torch_pruning(name):
    pytest.importorskip("torch_pruning")
    rows = shrink_torch.compare([name])
    allowed = {"", "layer_norm"} if name == "ConvNeXt block" else {""}
    assert {row["allow"] for row in rows} == allowed
    for ours, others in zip(rows[::2], rows[1::2], strict=True):
        assert (ours["method"], others["method"]) == ("jaxprune", "Torch-Pruning")
        assert ("error" in others) == (name == "LSTM")
        if ours["allow"]:
            assert ours["numbers"] == others["numbers"]
        else:
            assert ours["difference"] <= shrink_torch.EQUAL
    assert all(check.ok for check in shrink_torch.checks(rows if name == "MLP" else []))
    assert shrink_torch.table(rows).row_count == len(rows)
