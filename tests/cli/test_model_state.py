"""What a model needs beside its params, such as batch statistics, is kept as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune
from helpers import assert_same, assert_says
from jaxprune._files.any_kind import open_source

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("orbax.checkpoint")

import orbax.checkpoint as ocp

from cli_command import as_json, run

KERNEL = "params/fc/kernel"


def params(dtype=jnp.float32):
    return {"fc": {"kernel": jnp.arange(1, 33, dtype=dtype).reshape(4, 8), "bias": jnp.ones(8)}}


def variables():
    # Its two axes would make a statistic be pruned by default, if it were a param.
    return {"params": params(), "batch_stats": {"bn": {"mean": jnp.full((2, 8), 0.3)}}}


class State(TrainState):
    batch_stats: dict
    target_params: dict
    key: jax.Array


@pytest.fixture(scope="module")
def state():
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.adam(0.1))
    others = dict(batch_stats=variables()["batch_stats"], target_params=params(jnp.bfloat16))
    return State.create(
        apply_fn=None, params=params(), tx=tx, key=jax.random.key(3), **others
    ).replace(step=7)


def saved(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("f") / "state", state)


def arrays_of(file):
    with open_source(file) as source:
        return dict(source.arrays())


KEPT = {
    "batch_stats/bn/mean",
    "key",
    "params/fc/bias",
    KERNEL,
    "step",
    "target_params/fc/bias",
    "target_params/fc/kernel",
}


@pytest.mark.parametrize("suffix", (".safetensors", ".safetensors.zst"))
@pytest.mark.parametrize("words", (("export",), ("prune", "-s", 0.5)))
def test_all_but_the_state_of_the_optimizer_is_kept(checkpoint, tmp_path, words, suffix):
    command, *options = words
    before, out = arrays_of(checkpoint), tmp_path / f"a{suffix}"
    report = as_json(command, checkpoint, "-o", out, *options)
    after = arrays_of(out)
    assert set(after) == KEPT
    assert set(report["left_out"]) == before.keys() - KEPT
    assert all(path.startswith("opt_state/") for path in report["left_out"])
    assert int(after["step"]) == 7
    for path in KEPT - {KERNEL}:
        assert_same(after[path], before[path])
    if command == "export":
        assert_same(after[KERNEL], before[KERNEL])
    else:
        assert np.count_nonzero(after[KERNEL]) == 16


@pytest.mark.parametrize("command", ("plan", "prune", "export"))
def test_what_is_left_out_is_said_once_for_each_kind(checkpoint, tmp_path, command):
    options = () if command == "export" else ("-s", 0.5)
    options += () if command == "plan" else ("-o", tmp_path / "a.safetensors")
    text, _ = run(command, checkpoint, *options)
    lines = [line for line in text.splitlines() if line.startswith("left out:")]
    assert len(lines) == 2
    kinds = "masks", "optimizer state"
    for line, kind in zip(sorted(lines, key=lambda line: "optimizer" in line), kinds, strict=True):
        assert_says(line, "opt_state/", "leaves", kind, "training")


@pytest.mark.parametrize("rule", ("target_params/.*kernel", r"target_params\..*kernel"))
def test_rules_that_match_only_leaves_outside_the_params_say_what_to_type(checkpoint, rule):
    error = run("plan", checkpoint, "-s", 0.5, "--include", rule, code=2)[1]
    assert_says(error, "--include", "outside the params", "target_params/fc/kernel", KERNEL)
    advice = error.rpartition("--params ")[2].split()
    assert advice == ["target_params"]
    rows = as_json("plan", checkpoint, "-s", 0.5, "--include", rule, "--params", *advice)["leaves"]
    assert {row["path"] for row in rows if row["sparsity"]} == {"target_params/fc/kernel"}
    both = ("--include", "target_params/.*kernel", "--include", ".*kernel")
    run("plan", checkpoint, "-s", 0.5, *both)


def test_plan_and_prune_show_the_same_rows(checkpoint, tmp_path):
    planned = as_json("plan", checkpoint, "-s", 0.5)
    pruned = as_json("prune", checkpoint, "-s", 0.5, "-o", tmp_path / "a.zst")
    assert planned["leaves"] == pruned["leaves"]
    assert planned["left_out"] == pruned["left_out"]
    notes = {row["path"]: row["note"] for row in planned["leaves"]}
    assert set(notes) == KEPT
    outside = {path for path, note in notes.items() if note == "not a param"}
    assert outside == {path for path in KEPT if not path.startswith("params/")}
    assert_says(planned["notes"][-1], "5 leaves", "outside the params", "not pruned")


@pytest.mark.parametrize("distribution", ("uniform", "global"))
@pytest.mark.parametrize("score", ("magnitude", "random"))
def test_the_params_are_pruned_as_in_python(checkpoint, state, tmp_path, distribution, score):
    words = ("--distribution", distribution, "--score", score)
    run("prune", checkpoint, "-s", 0.5, "-o", tmp_path / "a.zst", *words)
    rules = {"distribution": jaxprune.global_pool} if distribution == "global" else {}
    rules |= {"score": jaxprune.random_score} if score == "random" else {}
    sparse, _ = jaxprune.prune_params(state.params, 0.5, **rules)
    assert_same(arrays_of(tmp_path / "a.zst")[KERNEL], sparse["fc"]["kernel"])


def variables_file(folder, kind):
    """A file of the variables of a linen model."""
    path = folder / {"orbax": "a", "jaxprune": "a.zst"}.get(kind, f"a.{kind}")
    flat = {
        "/".join(key.key for key in keys): np.asarray(x)
        for keys, x in jax.tree_util.tree_flatten_with_path(variables())[0]
    }
    if kind == "orbax":
        return saved(path, variables())
    if kind == "npz":
        np.savez(path, **flat)
    elif kind == "jaxprune":
        jaxprune.save(path, variables())
    else:
        jaxprune.save_safetensors(path, variables())
    return path


@pytest.mark.parametrize("kind", ("orbax", "safetensors", "jaxprune", "npz"))
def test_variables_of_linen_are_pruned(tmp_path, kind):
    file = variables_file(tmp_path, kind)
    before = arrays_of(file)
    for words in ((), ("--exclude", "batch_stats/.*"), ("--include", ".*kernel|.*mean")):
        report = as_json("prune", file, "-s", 0.5, "-o", tmp_path / "b.npz", "--force", *words)
        after = arrays_of(tmp_path / "b.npz")
        assert (report["left_out"], set(after)) == ([], set(before))
        assert np.count_nonzero(after[KERNEL]) == 16
        for path in before.keys() - {KERNEL}:
            assert_same(after[path], before[path])
    groups = as_json("inspect", file, "--quick")["groups"]
    assert (groups["params"]["leaves"], groups["other"]["leaves"]) == (2, 1)


def test_only_params_can_be_included(tmp_path):
    file = variables_file(tmp_path, "npz")
    words = ("plan", file, "-s", 0.5, "--include")
    notes = as_json("plan", file, "-s", 0.5, "--exclude", "batch_stats/.*")["notes"]
    assert_says(notes[0], "unused", "--exclude 'batch_stats/.*'", "no leaf of the params")
    _, error = run(*words, "batch_stats/.*", code=2)
    assert_says(error, "nothing to prune", "params/fc/kernel", "--include")
    assert_says(run(*words, "batch/.*", code=2)[1], "--include 'batch/.*'", "matches no leaf")


def test_a_state_without_params_is_refused(tmp_path):
    moments = {"opt_state/0/mu/w": np.ones((4, 4)), "opt_state/0/nu/w": np.ones((4, 4))}
    np.savez(tmp_path / "a.npz", **moments)
    folder = saved(tmp_path / "a", {"opt_state": {"mu": np.ones((4, 4))}})
    for file in (tmp_path / "a.npz", folder):
        _, error = run("prune", file, "-s", 0.5, "-o", tmp_path / "b.npz", code=1)
        assert_says(error, f"{file}:", "holds no params", "optimizer state", "Give the file")
    _, error = run("export", folder, "-o", tmp_path / "b.npz", code=1)
    assert_says(error, f"{folder}:", "holds no params")
    assert as_json("export", tmp_path / "a.npz", "-o", tmp_path / "b.npz")["left_out"] == []


def test_a_folder_of_csr_holds_all_matrices(tmp_path):
    pytest.importorskip("scipy")
    folder = saved(tmp_path / "a", variables() | {"opt_state": {"mu": jnp.ones(3)}})
    report = as_json("export", folder, "-o", tmp_path / "csr", "--format", "csr")
    assert set(report["left_out"]) == {"opt_state/mu", "params/fc/bias"}
    assert (tmp_path / "csr" / "batch_stats" / "bn" / "mean.npz").exists()


def test_values_that_are_no_arrays_are_left_out_and_said(tmp_path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        config = {"name": "words", "rate": 0.5, "n": 3, "none": None, "flag": True}
        checkpointer.save(tmp_path / "a", {"params": params(), "config": config})
    report = as_json("export", tmp_path / "a", "-o", tmp_path / "b.npz")
    assert report["left_out"] == ["config/name"]
    after = arrays_of(tmp_path / "b.npz")
    assert [after[f"config/{name}"].item() for name in ("rate", "n", "flag")] == [0.5, 3, True]
    for command in ("inspect", "plan"):
        options = ("-s", 0.5) if command == "plan" else ("--quick",)
        assert as_json(command, tmp_path / "a", *options)["left_out"] == ["config/name"]
        text, _ = run(command, tmp_path / "a", *options)
        assert_says(text, "left out: config/name:", "no array of numbers")


def test_items_that_are_no_trees_are_left_out_and_said(state, tmp_path):
    items = {
        "state": ocp.args.StandardSave(state),
        "average": ocp.args.StandardSave({"ema": params()}),
        "metrics": ocp.args.JsonSave({"loss": 0.5}),
    }
    with ocp.CheckpointManager(tmp_path / "run", item_names=tuple(items)) as manager:
        manager.save(1, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    text, _ = run("prune", tmp_path / "run", "-o", tmp_path / "a.zst", "-s", 0.5)
    assert_says(text, "left out: metrics:", "no tree of arrays")
    after = arrays_of(tmp_path / "a.zst")
    assert set(after) == {f"state/{path}" for path in KEPT} | {
        "average/ema/fc/kernel",
        "average/ema/fc/bias",
    }
    sparse = [path for path, x in after.items() if x.ndim == 2 and not np.asarray(x).all()]
    assert sparse == [f"state/{KERNEL}"]
    report = as_json("export", tmp_path / "run" / "1" / "state", "-o", tmp_path / "b.zst")
    assert "metrics" not in report["left_out"]  # another folder than the one that was named


def test_statistics_and_random_state_of_nnx_are_kept(tmp_path):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(4, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    tree = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
    folder = saved(tmp_path / "a", tree)
    report = as_json("prune", folder, "-s", 0.5, "-o", tmp_path / "a.zst")
    before, after = arrays_of(folder), arrays_of(tmp_path / "a.zst")
    assert set(after) == {path for path in before if path.startswith("model/")}
    assert set(report["left_out"]) == before.keys() - after.keys()
    assert np.count_nonzero(after["model/fc/kernel"]) == 16
    for path in after.keys() - {"model/fc/kernel"}:
        assert_same(after[path], before[path])


def test_a_checkpoint_of_params_alone_has_nothing_outside(tmp_path):
    report = as_json("prune", saved(tmp_path / "a", params()), "-s", 0.5, "-o", tmp_path / "a.npz")
    assert report["left_out"] == report["notes"] == []
    assert [row["path"] for row in report["leaves"]] == ["fc/bias", "fc/kernel"]
