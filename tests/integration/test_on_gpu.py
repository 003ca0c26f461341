"""`python -m benchmarks.on_gpu` at small sizes, on a machine without a GPU; no timings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("tqdm")

from benchmarks import topk_oracle
from benchmarks.common import Case
from benchmarks.on_gpu import __main__ as on_gpu, correct, timed


@pytest.fixture
def run(tmp_path):
    """Runs cases; returns the exit status and the written JSON."""

    def run(*options):
        path = tmp_path / "on_gpu.json"
        status = on_gpu.main([*options, "--out", str(path)])
        return status, json.loads(path.read_text(encoding="utf-8"))

    return run


@pytest.mark.slow
def test_every_case_runs_and_is_exact(run, capsys):
    status, written = run()
    assert status == 0
    rows = written["rows"]
    assert not [row for row in rows if "error" in row or "skipped" in row]
    assert {row["answer"] for row in rows if "answer" in row} == {"exact"}
    assert {row["case"] for row in rows} == {"correct", "mask", "step", "product", "leaves"}
    assert {row["method"] for row in rows if row["case"] == "step"} >= {"adamw", "chain", "inner"}
    assert {row["batch"] for row in rows if row["case"] == "product"} == {1, 4, 16, 64, 256}
    assert all(row["difference"] < 1e-5 for row in rows if row["case"] == "product")
    assert all(row["compile_s"] > 0 for row in rows if row.get("method") == "jaxprune")
    (tests,) = [row for row in rows if row.get("what", "").startswith("tests")]
    assert tests["note"].startswith("1 passed")
    printed = capsys.readouterr().out
    assert "reads" in printed
    assert "seconds in all <= 420" in printed


def test_wrong_masks_end_with_status_1(run, monkeypatch):
    monkeypatch.setattr(correct, "_mask", lambda w, n_keep, ties="index": jnp.abs(w) < 0.5)
    status, written = run("--only", "correct masks normal")
    assert status == 1
    assert written["rows"][0]["answer"] == "wrong"


def test_a_failing_case_does_not_stop_the_others(run, monkeypatch):
    def fails():
        raise RuntimeError("out of memory")

    cases = [Case("one", fails), Case("two", lambda: [{"case": "two", "median_ms": 1.0}])]
    monkeypatch.setattr(on_gpu, "_cases", lambda small, deadline: cases)
    status, written = run()
    assert status == 1
    assert [row.get("error") for row in written["rows"]] == ["RuntimeError: out of memory", None]


def test_no_case_starts_when_the_time_is_over(run, monkeypatch):
    status, written = run("--seconds", "1e-9")
    assert status == 0
    assert all("skipped" in row for row in written["rows"])


@pytest.mark.parametrize(
    "options, error",
    ((["--seconds", "0"], "--seconds must be positive, got 0"),)
    + ((["--only", "nothing"], "no case contains 'nothing'; the cases are correct masks normal"),),
)
def test_bad_options_end_with_one_line(options, error, capsys):
    with pytest.raises(SystemExit) as ended:
        on_gpu.main(options)
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("kind", topk_oracle.KINDS)
def test_the_judge_on_the_device_agrees_with_numpy(kind):
    w = topk_oracle.weights(kind, 1000).reshape(10, 100)
    right = topk_oracle.oracle(w, 200)
    wrong = np.roll(right, 1)
    one_less = right.copy()
    one_less.flat[np.flatnonzero(right)[0]] = False
    assert timed.is_exact(jnp.asarray(right), jnp.asarray(w), 200)
    for mask in (wrong, one_less, ~right):
        assert not timed.is_exact(jnp.asarray(mask), jnp.asarray(w), 200)


def test_broken_laws_are_named():
    tx = correct.EXACT["unstructured"]()
    params = {"w": jnp.arange(1, 1025, dtype=jnp.float32).reshape(32, 32)}
    updates = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(updates, tx.init(params), params)
    _, state = tx.update(updates, state, params)
    after = jax.tree.map(jnp.add, params, updates)
    assert correct.broken_laws("unstructured", params, updates, after, state) == {
        "a dropped weight is not +0.0"
    }
    negative = jax.tree.map(lambda p, m: jnp.where(m, p, -0.0), params, state.masks)
    assert correct.broken_laws("unstructured", params, updates, negative, state) == {
        "a dropped weight is not +0.0",
        "a kept weight did not get its update",
    }


def test_tests_that_fail_are_reported():
    (row,) = correct.tests(60, ["tests/no_such_file.py"])
    assert row["answer"] == "failed"
