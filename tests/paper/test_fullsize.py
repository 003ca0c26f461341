"""The published networks, a twentieth as wide, are trained and pruned for a few steps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("rich")

import jaxprune
from benchmarks.paper import fullsize
from benchmarks.paper.convolutional import MobileNetV1
from benchmarks.paper.recurrent import LanguageModel, Translator
from benchmarks.paper.sizes import NETWORKS

pytestmark = pytest.mark.slow

# The published network, a narrow one of the same definition, and a batch for it.
NARROW = {
    "MobileNet v1": (
        MobileNetV1(n_classes=5, width=0.1, blocks=((64, 1), (128, 2))),
        lambda key: (jax.random.normal(key, (2, 16, 16, 3)), jnp.array([0, 3])),
    ),
    "PTB LSTM large": (
        LanguageModel(30, 12, dropout=0.65, scale=0.04),
        lambda key: (jax.random.randint(key, (3, 8), 0, 30),),
    ),
    "GNMT": (
        Translator((20, 30), 8, n_layers=2, dropout=0.2),
        lambda key: tuple(jax.random.randint(key, (2, 3, 6), 4, 20)),
    ),
}


@pytest.mark.parametrize(
    "name",
    (
        "PTB LSTM large",
        pytest.param("GNMT", marks=pytest.mark.slow),
        pytest.param("MobileNet v1", marks=pytest.mark.slow),
    ),
)
def test_a_step_prunes_what_the_paper_prunes_and_moves_everything_else(name):
    module, make_batch = NARROW[name]
    optimizer = fullsize.RECIPES[name].prune(name, sparsity=0.75, begin=0.0, end=0.0)
    batch = make_batch(jax.random.key(0))
    state = fullsize.start(module, optimizer, batch, jax.random.key(1))
    before = jax.device_get(state.params)
    plan = jaxprune.plan(before, 0.75, exclude=NETWORKS[name].exclude)
    state, loss = fullsize.make_step(module, optimizer)(state, batch, jax.random.key(2))
    assert np.isfinite(loss)
    jaxprune.check(state.params, state.opt_state)
    report = jaxprune.summarize(state.params, state.opt_state)
    assert [leaf.n_zero for leaf in report.leaves] == [leaf.n_zero for leaf in plan.leaves]
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
        assert np.any(a != b) or not a.ndim  # a scalar may move by less than its precision


def test_paths_of_the_narrow_networks_are_those_of_the_published_ones():
    narrow = {"PTB LSTM large": LanguageModel(30, 12), "GNMT": Translator((20, 30), 8)}
    for name, module in narrow.items():
        inputs = NETWORKS[name].inputs
        narrow_variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        published = jax.eval_shape(NETWORKS[name].module.init, jax.random.key(0), *inputs)
        assert jax.tree.structure(narrow_variables) == jax.tree.structure(published)


def rate_of(recipe, step):
    """The learning rate of plain SGD at this step."""
    tx = recipe.optimizer()
    state = jax.tree.map(lambda x: jnp.full_like(x, step), tx.init(jnp.zeros(())))
    update: Any = tx.update(jnp.ones(()), state)[0]
    return -float(update)


def test_rates_fall_as_published():
    recipe = fullsize.RECIPES["PTB LSTM small"]
    per_epoch = 929_589 // 400
    assert recipe.steps == 13 * per_epoch
    rates = [rate_of(recipe, epoch * per_epoch) for epoch in range(7)]
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.25, 0.125]
    gnmt = fullsize.RECIPES["GNMT"]
    rates = [rate_of(gnmt, step) for step in (0, 170_000, 186_999, 187_000, 204_000, 339_999)]
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.25, 2.0**-9]


def test_training_on_ptb_files_reaches_the_sparsity(tmp_path):
    for part in ("train", "valid", "test"):
        (tmp_path / f"ptb.{part}.txt").write_text("a b c <unk> a b\n" * 40)
    recipe = dataclasses.replace(
        fullsize.RECIPES["PTB LSTM small"], batch=4, time=5, steps=12, every=2, sparsity=0.8
    )
    name, seen = "PTB LSTM small", []
    batches = fullsize.batches_of(name, [tmp_path], recipe)
    module = LanguageModel(5, 10)
    report = lambda *line: seen.append(line)
    state = fullsize.train(name, batches, recipe, report, module, every=6)
    assert [step for step, *_ in seen] == [6, 12]
    assert seen[-1][1] < np.log(5)
    masks = jaxprune.get_masks(state.opt_state)
    for mask, param in zip(jax.tree.leaves(masks), jax.tree.leaves(state.params), strict=True):
        assert int((~mask).sum()) == (round(0.8 * param.size) if param.ndim > 1 else 0)


def test_data_with_more_words_than_the_network_is_refused(tmp_path):
    words = " ".join(f"w{i}" for i in range(10_001))
    for part in ("train", "valid", "test"):
        (tmp_path / f"ptb.{part}.txt").write_text(words)
    recipe = fullsize.RECIPES["PTB LSTM small"]
    with pytest.raises(ValueError, match=r"10,000 words or classes, .* 10,002"):
        next(fullsize.batches_of("PTB LSTM small", [tmp_path], recipe))


def test_a_translator_of_one_layer_remembers_as_many_numbers_as_it_has_units():
    module = Translator((20, 30), 5, n_layers=1)
    source, target = jnp.ones((2, 4), jnp.int32), jnp.ones((2, 3), jnp.int32)
    variables = module.init(jax.random.key(0), source, target)
    sizes = {
        name: variables["params"][name]["kernel"].shape[-1] // 4 for name in ("forward", "backward")
    }
    assert sizes == {"forward": 3, "backward": 2}
    assert module.apply(variables, source, method="encode").values.shape == (2, 4, 5)
    assert module.apply(variables, source, target).shape == (2, 3, 30)
    assert module.apply(variables, source, 7, 1, method="greedy").shape == (2, 7)
