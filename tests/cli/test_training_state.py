"""Files that hold a whole training state: the params are found, and nothing else is pruned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import jaxprune
from helpers import assert_says, stepper
from jaxprune._base.paths import leaves_with_paths
from jaxprune._cli.training_state import training_state_of
from jaxprune._files.any_kind import Source
from jaxprune._files.leaves import Leaf
from jaxprune._files.orbax import _without_value

pytest.importorskip("typer")
pytest.importorskip("rich")

from cli_command import as_json, run

F4, U1, I4 = np.dtype("f4"), np.dtype("u1"), np.dtype("i4")


def groups(kind, *leaves):
    return training_state_of(Source(kind, tuple(leaves), lambda _: iter(()))).groups


def leaf(path, dtype=F4, shape=(8, 8)):
    return Leaf(path, shape, dtype)


# The paths of training states as libraries name them, by group.
STATES = {
    "linen TrainState": {
        "params": ["params/fc/kernel", "params/fc/bias"],
        "optimizer state": ["opt_state/0/mu/fc/kernel", "opt_state/0/count"],
        "masks": ["opt_state/1/masks/fc/kernel"],
        "other": ["step", "batch_stats/bn/mean", "ema_params/fc/kernel"],
    },
    "a layer called opt": {
        "params": ["params/opt/kernel", "params/optimizer/w"],
        "optimizer state": ["opt_state/0/mu/opt/kernel"],
    },
    "nested TrainState": {
        "params": ["state/params/w"],
        "optimizer state": ["state/opt_state/inner_state/0/nu/w"],
        "masks": ["state/opt_state/masks/w"],
    },
    "google-tunix": {
        "params": ["model_params/layers/0/attn/q/w"],
        "optimizer state": ["optimizer_state/opt_state/0/mu/layers/0/attn/q/w"],
    },
    "NNX": {
        "params": ["model/fc/kernel"],
        "optimizer state": ["optimizer/opt_state/0/mu/fc/kernel", "optimizer/step"],
        "other": ["rngs/count"],
    },
    "TrainState as a model": {
        "params": ["model/params/fc/kernel"],
        "optimizer state": ["model/opt_state/0/mu/fc/kernel"],
        "other": ["model/step", "model/target_params/fc/kernel", "data/0"],
    },
    "variables as params": {
        "params": ["params/params/fc/kernel"],
        "optimizer state": ["opt_state/0/mu/params/fc/kernel"],
        "other": ["params/batch_stats/bn/mean", "ema/params/fc/kernel"],
    },
    "variables of two models": {
        "params": ["student/params/fc/kernel", "teacher/params/fc/kernel"],
        "other": ["student/batch_stats/bn/mean", "epoch"],
    },
    "a layer called opt and its statistics": {
        "params": ["params/opt/kernel"],
        "optimizer state": ["opt_state/mu/opt/kernel"],
        "other": ["batch_stats/opt/mean", "ema_params/opt/kernel"],
    },
    "a layer called opt in a model of NNX": {
        "params": ["model/opt/kernel", "model/encoder/kernel"],
        "optimizer state": ["optimizer/opt_state/0/mu/opt/kernel", "optimizer/step"],
    },
    "an optimizer called opt": {
        "params": ["params/w"],
        "optimizer state": ["opt/0/mu/w", "opt/0/count"],
        "masks": ["opt/1/masks/w"],
    },
    "an agent": {
        "params": ["actor_params/w", "critic_params/w"],
        "optimizer state": ["actor_opt_state/mu/w", "critic_opt_state/0/nu/w"],
        "masks": ["actor_opt_state/masks/w"],
        "other": ["target_critic_params/w", "log_alpha"],
    },
    "train states of an agent": {
        "params": ["state/actor/params/w", "state/critic/params/w"],
        "optimizer state": ["state/actor/opt_state/mu/w", "state/critic/opt_state/mu/w"],
        "other": ["state/actor/step", "state/actor/batch_stats/m", "state/critic/target_params/w"],
    },
    "an average beside a train state": {
        "params": ["state/params/w"],
        "optimizer state": ["state/opt_state/mu/w"],
        "other": ["ema/params/w"],
    },
    "params at the root": {"params": ["fc/kernel", "x/w"], "masks": ["masks/fc/kernel"]},
    "a tuple": {
        "params": ["0/fc/kernel", "0/fc/bias"],
        "optimizer state": [
            *(f"1/inner_state/0/{name}/fc/kernel" for name in ("mu", "nu")),
            *("1/inner_state/0/count", "1/prune_step", "1/progress/pool_of", "1/thresholds"),
        ],
        "masks": ["1/masks/fc/kernel", "1/masks/fc/bias"],
        "other": ["2/fc/kernel", "2/fc/bias"],
    },
    "a tuple without jaxprune": {
        "params": ["0/fc/kernel", "0/fc/bias"],
        "optimizer state": ["1/0/mu/fc/kernel", "1/0/nu/fc/kernel", "1/0/count", "1/2/count"],
        "other": ["2"],
    },
    "a tuple of a state first": {
        "params": ["1/mu/kernel", "1/nu/kernel"],
        "optimizer state": ["0/mu/mu/kernel", "0/mu/nu/kernel", "0/count"],
    },
    "momentum of linen variables in a tuple": {
        "params": ["0/params/fc/kernel"],
        "optimizer state": ["1/0/trace/params/fc/kernel"],
        "other": ["0/batch_stats/fc/mean"],
    },
    "pairs of two networks": {
        "params": ["g/0/w", "d/0/w"],
        "optimizer state": [
            *("g/1/0/nu/w", "g/1/1/prune_step", "d/1/0/nu/w", "d/1/0/count", "d/1/0/mu/w"),
        ],
        "masks": ["g/1/1/masks/w"],
    },
    "a list of lists": {
        "params": ["0/0/0/w", "0/1/0/w"],
        "optimizer state": ["0/0/1/0/mu/w", "0/0/1/0/count", "0/1/1/0/mu/w", "0/1/1/0/count"],
        "other": ["1"],
    },
    "other words": {
        "params": ["weights/fc/kernel"],
        "optimizer state": ["adam/0/mu/fc/kernel", "adam/0/count"],
        "other": ["epoch"],
    },
    "an average under a name of its own": {
        "params": ["params/w"],
        "optimizer state": ["optim_state/0/mu/w", "optim_state/0/count"],
        "other": ["ema_params/w", "step"],
    },
    "a target network": {
        "params": ["q/w"],
        "optimizer state": ["opt/0/mu/w", "opt/0/count"],
        "other": ["q_target/w"],
    },
    "two networks of one shape": {
        "params": ["gen/w", "disc/w"],
        "optimizer state": [
            *("gen_opt/0/mu/w", "gen_opt/0/count", "disc_opt/0/mu/w", "disc_opt/0/count"),
        ],
    },
    "critics of one shape": {
        "params": ["policy_params/w", "q1_params/w", "q2_params/w"],
        "optimizer state": [
            *("policy_optimizer/0/mu/w", "policy_optimizer/0/count", "q1_optimizer/0/mu/w"),
            *("q1_optimizer/0/count", "q2_optimizer/0/mu/w", "q2_optimizer/0/count"),
        ],
        "other": ["target_q1_params/w"],
    },
    "a tuple of pairs": {
        "params": ["0/0/w", "0/1/w"],
        "optimizer state": ["1/0/mu/w", "1/0/count", "1/1/mu/w", "1/1/count"],
    },
    "a tuple of a model and an optimizer of NNX": {
        "params": ["0/model/w", "0/lm_head/w"],
        "optimizer state": [
            *("1/opt_state/0/mu/model/w", "1/opt_state/0/mu/lm_head/w", "1/opt_state/0/count"),
        ],
        "other": ["1/step"],
    },
    "statistics beside params of another name": {
        "params": ["net/w"],
        "optimizer state": ["opt_state/0/mu/w", "opt_state/0/count"],
        "other": ["ema/w", "batch_stats/mean", "step"],
    },
    "an average beside a state without a name": {
        "params": ["params/w"],
        "optimizer state": ["train/adam/0/mu/w", "train/adam/0/count"],
        "other": ["train/average/w", "train/step"],
    },
    "a part of the params in the optimizer": {
        "params": ["0/head/w", "0/fc/w"],
        "optimizer state": ["1/0/mu/w", "1/0/count"],
    },
    "an optimizer beside params at the root": {
        "params": ["fc/kernel", "head/kernel"],
        "optimizer state": ["adam/0/mu/fc/kernel", "adam/0/count"],
    },
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("kind", ("orbax", "npz"))
def test_the_groups_of_a_training_state(name, kind):
    expected = {path: group for group, paths in STATES[name].items() for path in paths}
    leaves = [leaf(path, U1 if group == "masks" else F4) for path, group in expected.items()]
    assert groups(kind, *leaves) == expected


def test_a_file_of_params_has_no_groups():
    plain = [leaf("model/fc/kernel"), leaf("head/kernel"), leaf("masks/w"), leaf("step", I4)]
    plain += [leaf("encoder/model/w"), leaf("encoder/batch_stats/mean"), leaf("batch_stats/mean")]
    for kind in ("npz", "orbax"):
        assert set(groups(kind, *plain).values()) == {"params"}


@pytest.mark.parametrize("kind", ("orbax", "npz", "safetensors"))
@pytest.mark.parametrize("other", ("batch_stats/bn/mean", "cache/fc/index", "ema/params/w", "step"))
def test_what_is_beside_the_params_of_a_file_is_no_param(kind, other):
    assert list(groups(kind, leaf("params/fc/kernel"), leaf(other)).values()) == ["params", "other"]


@pytest.mark.parametrize("kind", ("orbax", "npz"))
def test_words_of_optimizers_and_masks_may_be_names_in_a_model(kind):
    layers = [leaf("encoder/kernel"), leaf("opt/kernel"), leaf("optimizer/bias")]
    assert set(groups(kind, *layers).values()) == {"params"}
    made = [leaf("params/d/kernel"), leaf("masks/d", np.dtype(bool))]
    assert groups(kind, *made) == {"params/d/kernel": "params", "masks/d": "other"}
    other_shape = [leaf("params/d/kernel"), leaf("masks/d/kernel", U1, (8, 4))]
    assert groups(kind, *other_shape)["masks/d/kernel"] == "other"
    bits = [leaf("params/d/kernel"), leaf("masks/d/kernel", U1, (8, 1))]
    assert groups(kind, *bits)["masks/d/kernel"] == "masks"


def test_words_of_moments_may_be_names_in_a_model():
    for layers in (
        ["opt/drop/rngs/count", "opt/fc/kernel", "sar/fc/kernel"],
        ["opt/q/kernel", "opt/k/kernel", "opt/v/kernel", "out/kernel"],
        ["opt/m/kernel", "out/kernel"],
        ["blocks/0/trace/kernel", "blocks/1/trace/kernel", "out/kernel"],
        ["vq/ema", "vq/count", "vq/codebook", "out/kernel"],
        ["norm/g", "norm/v", "out/v"],
        ["params", "out/kernel"],
        ["mu/kernel", "logvar/kernel", "count"],
        ["encoder/mu/kernel", "encoder/logvar/kernel", "decoder/kernel"],
        ["encoder/0/mu/kernel", "encoder/1/logvar/kernel"],
        ["layers/0/trace/kernel", "layers/1/out/kernel"],
        ["0/0/mu/w", "1/w"],
        ["0/0/nu/kernel", "0/1/kernel"],
    ):
        assert set(groups("npz", *map(leaf, layers)).values()) == {"params"}
    # The other tree has other shapes, or not all of the leaves.
    smaller = [leaf("0/w", shape=(4, 8)), leaf("1/0/mu/w"), leaf("1/0/count")]
    assert set(groups("npz", *smaller).values()) == {"params"}
    partly = [leaf("0/w"), leaf("1/0/mu/w"), leaf("1/0/mu/b"), leaf("1/0/count")]
    assert set(groups("npz", *partly).values()) == {"params"}


@pytest.mark.parametrize("separator", ("/", "."))
def test_a_state_without_params_has_none(separator):
    paths = [separator.join(("0", name, "fc", "kernel")) for name in ("mu", "nu")]
    leaves = [leaf(path) for path in (*paths, separator.join(("0", "count")))]
    assert set(groups("npz", *leaves).values()) == {"optimizer state"}


def test_a_leaf_may_have_the_path_of_a_tree():
    """As in an `.npz` file, whose names are free."""
    leaves = [leaf("p"), leaf("x/prune_step"), leaf("x/masks", U1), leaf("x/masks/w", U1)]
    assert set(groups("npz", *leaves).values()) == {"params"}


def test_keys_of_a_state_may_be_separated_by_dots():
    expected = STATES["a tuple"] | {"other": ["2.fc"]}
    expected = {p.replace("/", "."): group for group, paths in expected.items() for p in paths}
    leaves = [leaf(path, U1 if group == "masks" else F4) for path, group in expected.items()]
    assert groups("safetensors", *leaves) == expected


OPTIMIZERS = {
    **{
        name: getattr(optax, name)(0.1)
        for name in (
            *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "adan"),
            *("amsgrad", "lamb", "lion", "novograd", "optimistic_gradient_descent", "radam"),
            *("rmsprop", "rprop", "sm3", "yogi", "lbfgs"),
        )
    },
    **{
        name: getattr(optax.contrib, name)(0.1)
        for name in ("ademamix", "cocob", "dog", "muon", "schedule_free_adamw", "sophia")
        if hasattr(optax.contrib, name)
    },
    "momentum": optax.sgd(0.1, 0.9),
    "trace": optax.trace(0.9),
    "MultiSteps": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "masked": optax.masked(optax.adam(0.1), {"conv": True, "fc": {"kernel": True, "bias": False}}),
    "prodigy": optax.contrib.prodigy(),
    "momo": optax.contrib.momo(),
    "hyperparams": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "prune": jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.sgd(0.1)),
    "packed": optax.chain(jaxprune.prune(jaxprune.one_shot_schedule(0.5), packed=True)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_params_of_a_tuple_are_found_with_any_optimizer(name):
    params = {
        "conv": jnp.ones((3, 3, 128, 130)),
        "fc": {"kernel": jnp.ones((9, 7)), "bias": jnp.ones(7)},
    }
    paths, leaves, _ = leaves_with_paths((params, jax.eval_shape(OPTIMIZERS[name].init, params)))
    as_leaves = [
        Leaf(path, x.shape, np.dtype(x.dtype)) for path, x in zip(paths, leaves, strict=True)
    ]
    found = groups("orbax", *as_leaves)
    assert [path for path in paths if found[path] == "params"] == paths[:3]
    # Numbers of another link of a chain may be others; nothing of the size of a param is.
    others = {path for path in paths if found[path] == "other"}
    assert all(leaf.shape == () for leaf in as_leaves if leaf.path in others)


def copies():
    """Two trees of one shape, of which an optimizer trains one."""
    kernel = np.arange(1.0, 17, dtype=np.float32).reshape(4, 4)
    state = {"1/prune_step": np.int32(1), "1/masks/w": (kernel > 8).astype(np.uint8)}
    return {"0/w": kernel, "2/w": kernel * (kernel > 8), "3": np.int32(3), **state}


def test_where_the_params_may_be_either_of_two_trees_the_user_says_which(tmp_path):
    np.savez(tmp_path / "a.npz", **copies())
    for words in (("plan", "-s", 0.75), ("prune", "-s", 0.75, "-o", tmp_path / "b.npz")):
        command, *options = words
        _, error = run(command, tmp_path / "a.npz", *options, code=2)
        assert_says(error, f"{tmp_path / 'a.npz'}:", "0, 2", "same paths and shapes", "--params 0")
    assert not (tmp_path / "b.npz").exists()
    for tree, other in (("0", "2"), ("2", "0")):
        run("prune", tmp_path / "a.npz", *words[1:], "--params", tree, "--force")
        with np.load(tmp_path / "b.npz") as arrays:
            assert np.count_nonzero(arrays[f"{tree}/w"]) == 4
            np.testing.assert_array_equal(arrays[f"{other}/w"], copies()[f"{other}/w"])
    _, error = run("plan", tmp_path / "a.npz", "-s", 0.5, "--params", "net", code=2)
    assert_says(error, "--params 'net'", "nothing at this path", "0, 2, 3, 1")


def test_a_tree_to_choose_has_a_name(tmp_path):
    kernel = np.ones((4, 4), np.float32)
    state = {"opt_state/0/mu/w": kernel, "opt_state/0/count": np.int32(1)}
    np.savez(tmp_path / "a.npz", **{"w": kernel, "x/w": kernel}, **state)
    _, error = run("plan", tmp_path / "a.npz", "-s", 0.5, code=2)
    assert_says(error, "(root), x", "--params x")
    run("plan", tmp_path / "a.npz", "-s", 0.5, "--params", "x")


def test_masks_are_compared_with_the_params_that_they_belong_to(tmp_path):
    np.savez(tmp_path / "a.npz", **copies())
    text, _ = run("inspect", tmp_path / "a.npz", "--quick")
    assert "not zero" not in text
    _, error = run("inspect", tmp_path / "a.npz", "--quick", "--check", code=2)
    assert_says(error, "0, 2", "--params 0")
    run("inspect", tmp_path / "a.npz", "--quick", "--check", "--params", "2")
    run("inspect", tmp_path / "a.npz", "--quick", "--check", "--params", "0", code=3)
    kept = np.eye(4, dtype=np.uint8)
    for good in ("gen", "disc", "none"):
        arrays = {}
        for i, name in enumerate(("gen", "disc")):
            mask = np.roll(kept, i, axis=0)
            arrays[f"{name}/params/w"] = (mask if name == good else 1 - mask).astype(np.float32)
            arrays[f"{name}/opt_state/masks/w"] = mask
            arrays[f"{name}/opt_state/prune_step"] = np.int32(1)
        np.savez(tmp_path / "b.npz", **arrays)
        text, _ = run("inspect", tmp_path / "b.npz", "--quick", "--check", code=3)
        for name in ("gen", "disc"):
            assert (f"{name}/params/w: 12 of 12 weights" in text) == (name != good)


def test_a_variable_of_nnx_has_no_key_value():
    """C7."""
    paths = ["fc/kernel/value", "attention/key/kernel/value", "attention/value/kernel/value"]
    expected = ["fc/kernel", "attention/key/kernel", "attention/value/kernel"]
    assert _without_value(paths) == expected
    cache = ["cache/key", "cache/value"]
    assert _without_value(cache) == cache


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A step of a trainer that keeps an NNX model and its optimizer as two items (C8)."""
    ocp = pytest.importorskip("orbax.checkpoint")
    folder = tmp_path_factory.mktemp("f") / "run"
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.adam(0.1))
    params = jax.tree.map(lambda x: x, nnx.to_pure_dict(state))
    opt_state = tx.init(params)
    _, opt_state, sparse = stepper(tx)(params, opt_state, params)
    nnx.replace_by_pure_dict(state, sparse)
    with ocp.CheckpointManager(folder, item_names=("model_params", "optimizer_state")) as manager:
        manager.save(
            7,
            args=ocp.args.Composite(
                model_params=ocp.args.PyTreeSave(state),
                optimizer_state=ocp.args.PyTreeSave(opt_state),
            ),
        )
        manager.wait_until_finished()
    return folder, state


def test_the_params_of_a_trainer_are_found(trainer, tmp_path):
    """C7, C8 and C9."""
    folder, state = trainer
    for path in (folder, folder / "7"):
        report = as_json("plan", path, "-s", 0.9)
        in_python = [row.path for row in jaxprune.plan(state, 0.9).leaves]
        assert [row["path"] for row in report["leaves"]] == [f"model_params/{p}" for p in in_python]
    report = as_json("inspect", folder, "--quick")
    assert report["total"]["weights"] == 8 * 4 + 4
    assert report["groups"]["masks"]["weights"] == 8 * 4 + 4
    assert report["groups"]["optimizer state"]["weights"] >= 2 * (8 * 4 + 4)
    assert report["warnings"] == []
    kernel = [r for r in report["leaves"] if r["path"] == "model_params/kernel"]
    assert [row["group"] for row in kernel] == ["params"]
    text, _ = run("inspect", folder, "--quick")
    assert_says(text, "masks: 2 leaves, 36 entries", "not in the total", "of the params")
    run("prune", folder, "-o", tmp_path / "a.npz", "-s", 0.75)
    with np.load(tmp_path / "a.npz") as arrays:
        assert set(arrays) == {"model_params/kernel", "model_params/bias"}
        assert np.count_nonzero(arrays["model_params/kernel"]) == 8
    run("inspect", folder, "--quick", "--check")


@pytest.mark.parametrize("sparsely", (True, False))
def test_a_checkpoint_of_a_tuple(sparsely, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    params = {"fc": {"kernel": jnp.arange(1.0, 33).reshape(8, 4), "bias": jnp.ones(4)}}
    inner = optax.chain(optax.clip(1.0), optax.adamw(0.1))
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=inner) if sparsely else inner
    params = optax.apply_updates(params, tx.update(params, tx.init(params), params)[0])
    _, opt_state, params = stepper(tx)(params, tx.init(params), params)
    folder, target = tmp_path / "run", {"fc": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(4)}}
    with ocp.CheckpointManager(folder) as manager:
        manager.save(0, args=ocp.args.StandardSave((params, opt_state, target, 7)))
    report = as_json("inspect", folder, "--quick")
    assert report["total"]["weights"] == 8 * 4 + 4
    assert report["groups"].get("masks", {"weights": 0})["weights"] == (36 if sparsely else 0)
    run("prune", folder, "-o", tmp_path / "a.npz", "-s", 0.75)
    with np.load(tmp_path / "a.npz") as arrays:
        assert set(arrays) == {"0/fc/kernel", "0/fc/bias", "2/fc/kernel", "2/fc/bias", "3"}
        assert np.count_nonzero(arrays["0/fc/kernel"]) == 8
        np.testing.assert_array_equal(arrays["2/fc/kernel"], target["fc"]["kernel"])
        assert arrays["3"] == 7


def state_file(path, kernel, *, with_masks=True):
    kernel = np.asarray(kernel, np.float32)
    arrays = {
        "params/fc/kernel": kernel,
        "opt_state/0/mu/fc/kernel": np.full_like(kernel, 0.5),
        "step": np.arange(1),
    }
    if with_masks:
        arrays["opt_state/1/masks/fc/kernel"] = (kernel < 8).astype(np.uint8)
    np.savez(path, **arrays)
    return arrays


def test_a_failed_check_is_exit_code_3(tmp_path):
    kernel = np.arange(1.0, 17).reshape(4, 4)
    state_file(tmp_path / "leaky.npz", kernel)
    state_file(tmp_path / "good.npz", np.where(kernel < 8, kernel, 0))
    out, error = run("inspect", tmp_path / "leaky.npz", "--quick", "--check", code=3)
    assert_says(out, "9 of 9 weights", "masks", "not zero")
    assert_says(error, f"{tmp_path / 'leaky.npz'}:", "1 leaf has dropped weights")
    report = as_json("inspect", tmp_path / "leaky.npz", "--quick", "--check", code=3)
    assert len(report["warnings"]) == 1
    run("inspect", tmp_path / "leaky.npz", "--quick")
    run("inspect", tmp_path / "good.npz", "--quick", "--check")


def test_a_check_needs_masks(tmp_path):
    state_file(tmp_path / "a.npz", np.ones((4, 4)), with_masks=False)
    _, error = run("inspect", tmp_path / "a.npz", "--check", code=1)
    assert_says(error, f"{tmp_path / 'a.npz'}:", "no masks", "--check", "optimizer state")


def test_moments_and_masks_in_a_file_are_kept_and_not_pruned(tmp_path):
    before = state_file(tmp_path / "a.npz", np.arange(1.0, 17).reshape(4, 4))
    report = as_json("prune", tmp_path / "a.npz", "-o", tmp_path / "b.npz", "-s", 0.5)
    notes = {row["path"]: row["note"] for row in report["leaves"]}
    assert notes == {
        "params/fc/kernel": "",
        "opt_state/0/mu/fc/kernel": "optimizer state",
        "opt_state/1/masks/fc/kernel": "masks",
        "step": "not a param",
    }
    with np.load(tmp_path / "b.npz") as after:
        assert np.count_nonzero(after["params/fc/kernel"]) == 8
        for path in before.keys() - {"params/fc/kernel"}:
            np.testing.assert_array_equal(after[path], before[path])
    text, _ = run("inspect", tmp_path / "a.npz", "--quick")
    assert_says(text, "optimizer state: 1 leaf, 16 entries", "masks: 1 leaf, ")


def test_masks_of_other_dtypes_are_params():
    assert groups("npz", leaf("masks/w", jnp.dtype("float32")))["masks/w"] == "params"
