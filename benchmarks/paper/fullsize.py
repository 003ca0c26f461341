"""Trains the published networks at full size: one step on random data, or fully on your data.

The hyperparameters are those of the authors. Each recipe names its source: code that they
published, unless it says "from memory". Pruning follows the cubic schedule of the paper. The paper
does not say when pruning began and ended for each network, so `Recipe.begin` and `Recipe.end` are
our choice. `one_step` makes up a small batch and checks that exactly the planned weights remain.
"""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from benchmarks.paper import loaders
from benchmarks.paper.recurrent import LanguageModel, Translator, zero_state
from benchmarks.paper.sizes import NETWORKS


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
      optimizer: makes the optimizer, without pruning.
      batch: examples per update, over all devices.
      steps: number of updates.
      time: words per window, or height and width of an image.
      sparsity: final sparsity, one of those in the paper.
      begin: when pruning begins, as a fraction of the steps.
      end: when pruning ends, as a fraction of the steps.
      every: updates between fires; the paper reports that 100 to 1,000 work equally well.
    """

    optimizer: Callable[[], optax.GradientTransformation]
    batch: int
    steps: int
    time: int
    sparsity: float
    begin: float = 0.1
    end: float = 0.6
    every: int = 1000

    def prune(self, network: str, **changes: Any) -> optax.GradientTransformationExtraArgs:
        """The optimizer wrapped in `jaxprune.prune`, with the exclusions of the paper."""
        recipe = dataclasses.replace(self, **changes)
        begin, end = (int(recipe.steps * part) for part in (recipe.begin, recipe.end))
        schedule = jaxprune.cubic_schedule(recipe.sparsity, begin, end, recipe.every)
        exclude = NETWORKS[network].exclude
        return jaxprune.prune(schedule, inner=recipe.optimizer(), exclude=exclude)


def _zaremba(decay: float, after: int, epochs: int, batch: int, time: int, clip: float) -> Recipe:
    """SGD with rate 1, multiplied by `decay` after every epoch from epoch `after` on.

    This is the recipe of Zaremba et al. (2014). Every number is that of TensorFlow's
    models/tutorials/rnn/ptb/ptb_word_lm.py, which cites that paper, except for the decay of the
    medium network: the paper has 1 / 1.2 (from memory), the code 0.8.
    """
    per_epoch = 929_589 // (batch * time)  # words of the PTB training text

    def rate(step: Any) -> Any:
        return decay ** jnp.maximum(step // per_epoch + 1 - after, 0)

    def optimizer() -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(clip), optax.sgd(rate))

    return Recipe(optimizer, batch, epochs * per_epoch, time, 0.9, every=100)


def _images(rate: float, decay: float, epochs_per_decay: float, batch: int) -> Recipe:
    """RMSProp with a staircase decay of the rate; one batch is 50 workers with 32 images each.

    InceptionV3: RMSProp decay 0.9, momentum 0.9, epsilon 1, rate 0.045, decay factor 0.94 and 50
    workers are from the notes on Google's Open Images models of 2017, trained with the same
    library. One decay every two epochs, clipping at 2 and 100 epochs are from Szegedy et al.
    (2016), from memory. MobileNet: RMSProp as for InceptionV3 (Howard et al., 2017, from memory);
    the rate and its decay, 0.94 every 2.5 epochs, are from TensorFlow's
    models/research/slim/nets/mobilenet_v1_train.py, which itself uses plain SGD on 64 images.
    """
    per_epoch = 1_281_167 // batch
    schedule = optax.exponential_decay(
        rate, int(per_epoch * epochs_per_decay), decay, staircase=True
    )

    def optimizer() -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(2.0), optax.rmsprop(schedule, 0.9, eps=1.0, momentum=0.9)
        )

    return Recipe(optimizer, batch, 100 * per_epoch, 299, 0.875)


def _gnmt() -> Recipe:
    """SGD with rate 1, halved every 17,000 updates after update 170,000, first at 187,000.

    From github.com/tensorflow/nmt: nmt/standard_hparams/wmt16_gnmt_4_layer.json, where the decay
    scheme `luong10` is a staircase.
    """

    def rate(step: Any) -> Any:
        return 0.5 ** jnp.clip((step - 170_000) // 17_000, 0)

    def optimizer() -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(rate))

    return Recipe(optimizer, 128, 340_000, 50, 0.9)


RECIPES: dict[str, Recipe] = {
    "InceptionV3": _images(0.045, 0.94, 2, 1600),
    "MobileNet v1": dataclasses.replace(_images(0.045, 0.94, 2.5, 1600), time=224, sparsity=0.75),
    "PTB LSTM small": _zaremba(1 / 2, 4, 13, 20, 20, 5.0),
    "PTB LSTM medium": _zaremba(1 / 1.2, 6, 39, 20, 35, 5.0),
    "PTB LSTM large": _zaremba(1 / 1.15, 14, 55, 20, 35, 10.0),
    "GNMT": _gnmt(),
}


class TrainState(NamedTuple):
    """What a step updates: params, other variables, optimizer state, LSTM state (or None)."""

    params: Any
    others: Any
    opt_state: Any
    carry: Any = None


def start(
    module: nn.Module, optimizer: Any, batch: tuple[jax.Array, ...], key: jax.Array
) -> TrainState:
    """The state before the first step."""
    if len(batch) == 1:
        inputs = (batch[0][:, :-1],)
    else:
        inputs = batch if batch[0].ndim == 2 else batch[:1]
    carry = None
    if isinstance(module, LanguageModel):
        carry = [zero_state(len(batch[0]), module.hidden) for _ in range(module.n_layers)]

    def init(key: jax.Array) -> TrainState:
        others = dict(module.init({"params": key, "dropout": key}, *inputs))
        params = others.pop("params")
        return TrainState(params, others, optimizer.init(params), carry)

    return jax.jit(init)(key)


def loss_of(
    module: nn.Module, variables: Any, batch: tuple[jax.Array, ...], key: jax.Array, carry: Any
) -> tuple[jax.Array, tuple[Any, Any]]:
    """The loss of a batch, and the updated variables and LSTM state.

    A batch is (windows,) for a language model, (source, target) for a translator, where the target
    has begin and end tokens, and (images, labels) for a convolutional network.
    """
    rngs = {"dropout": key}
    if len(batch) == 1:
        [windows] = batch
        outputs: Any = module.apply(variables, windows[:, :-1], carry, train=True, rngs=rngs)
        return _cross_entropy(outputs[0], windows[:, 1:]).mean(), ({}, outputs[1])
    inputs, target = batch
    if inputs.ndim == 2:
        logits = module.apply(variables, inputs, target[:, :-1], train=True, rngs=rngs)
        losses, where = _cross_entropy(logits, target[:, 1:]), target[:, 1:] != 0
        return jnp.sum(losses, where=where) / where.sum(), ({}, None)
    logits, changed = module.apply(
        variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs
    )
    heads = logits if isinstance(logits, tuple) else (logits,)
    loss = _cross_entropy(heads[0], target).mean()
    for auxiliary in heads[1:]:
        loss += 0.4 * _cross_entropy(auxiliary, target).mean()
    return loss, (dict(changed), None)


def _cross_entropy(logits: Any, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def make_step(module: nn.Module, optimizer: Any) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Compiles a step `(state, batch, key) -> (state, loss)`, which donates its state."""

    def step(
        state: TrainState, batch: tuple[jax.Array, ...], key: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        def loss(params: Any) -> Any:
            return loss_of(module, {"params": params, **state.others}, batch, key, state.carry)

        (value, (others, carry)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, others, opt_state, jax.lax.stop_gradient(carry)), value

    return jax.jit(step, donate_argnums=0)


def made_up_batch(name: str, n: int, time: int, key: jax.Array) -> tuple[jax.Array, ...]:
    """A random batch of `n` examples for a network."""
    module: Any = NETWORKS[name].module
    if isinstance(module, LanguageModel):
        return (jax.random.randint(key, (n, time + 1), 0, module.vocabulary),)
    if isinstance(module, Translator):
        low, high = 4, min(module.vocabularies)
        source, target = jax.random.randint(key, (2, n, time), low, high)
        return source, target.at[:, 0].set(1).at[:, -1].set(2)
    images = jax.random.normal(key, (n, time, time, 3))
    return images, jnp.arange(n) % module.n_classes


def batches_of(name: str, data: Sequence[Path], recipe: Recipe) -> Iterator[tuple[Any, ...]]:
    """Batches of your own data for a network; the data repeats without end.

    Args:
      name: name of the network.
      data: a PTB folder, a folder of images by class, or two files that translate each other.
      recipe: gives the sizes of the batches.

    Raises:
      ValueError: the data has more words or classes than the network.
    """
    module: Any = NETWORKS[name].module
    draw = np.random.default_rng(0)
    if isinstance(module, LanguageModel):
        words = loaders.read_ptb(data[0])
        _check_vocabulary(name, len(words.vocabulary), module.vocabulary)
        while True:
            yield from ((w,) for w in loaders.windows(words.train, recipe.batch, recipe.time))
    elif isinstance(module, Translator):
        corpus = loaders.read_pair(data[0], data[1], module.vocabularies[0], recipe.time)
        while True:
            yield from loaders.pair_batches(corpus, recipe.batch, draw)
    else:
        images = loaders.list_images(data[0])
        _check_vocabulary(name, len(images.classes), module.n_classes)
        while True:
            yield from loaders.image_batches(images, recipe.batch, recipe.time, draw)


def _check_vocabulary(name: str, n: int, most: int) -> None:
    if n > most:
        raise ValueError(
            f"{name} has outputs for {most:,} words or classes, but the data has {n:,}. Use data "
            "with fewer of them."
        )


def train(
    name: str,
    batches: Iterator[tuple[Any, ...]],
    recipe: Recipe,
    report: Callable[[int, float, float], None],
    module: nn.Module | None = None,
    every: int = 100,
) -> TrainState:
    """Trains and prunes a published network, or another `module` with the same recipe.

    Args:
      name: name of the network.
      batches: at least `recipe.steps` batches.
      recipe: hyperparameters.
      report: called every `every` steps with the step, the loss and the sparsity.
      module: a module to train instead of the published network.
      every: steps between two reports.

    Returns:
      The state after the last step.

    Raises:
      ValueError: there are no batches.
    """
    module = NETWORKS[name].module if module is None else module
    optimizer, key = recipe.prune(name), jax.random.key(0)
    step: Any = make_step(module, optimizer)
    state = None
    for i, batch in zip(range(recipe.steps), batches, strict=False):
        arrays = tuple(map(jnp.asarray, batch))
        if state is None:
            state = start(module, optimizer, arrays, key)
        state, loss = step(state, arrays, jax.random.fold_in(key, i))
        if i % every == every - 1 or i == recipe.steps - 1:
            sparsity = jaxprune.metrics(state.opt_state)["prune/sparsity"]
            report(i + 1, float(loss), float(sparsity))
    if state is None:
        raise ValueError(
            f"{name}: the data has less than one batch of {recipe.batch} examples. Pass more data "
            "or a smaller --batch."
        )
    jaxprune.check(state.params, state.opt_state)
    return state


def one_step(name: str, n: int = 2, time_: int = 0) -> dict[str, Any]:
    """Takes one step of training a published network, pruning it to the final sparsity at once.

    Args:
      name: name of the network.
      n: number of examples.
      time_: words per window or side of an image; 0 for the default of the network.

    Returns:
      The loss, the number of dropped weights, the seconds of compilation and of the step, and the
      peak memory of the process.

    Raises:
      ValueError: the loss is not finite, or the number of zeros differs from the plan.
    """
    network, recipe = NETWORKS[name], RECIPES[name]
    optimizer = recipe.prune(name, begin=0.0, end=0.0)
    key = jax.random.key(0)
    batch = made_up_batch(name, n, time_ or (recipe.time if recipe.time > 60 else 8), key)
    state = start(network.module, optimizer, batch, key)
    plan = jaxprune.plan(state.params, recipe.sparsity, exclude=network.exclude)
    start_s = time.perf_counter()
    step: Any = make_step(network.module, optimizer)
    compiled = step.lower(state, batch, key).compile()
    compiled_s = time.perf_counter()
    state, loss = compiled(state, batch, key)
    jax.block_until_ready(loss)
    end_s = time.perf_counter()
    jaxprune.check(state.params, state.opt_state)
    masks = jax.tree.leaves(jaxprune.get_masks(state.opt_state))
    n_zero = sum(int(jnp.sum(~mask, dtype=jnp.int32)) for mask in masks)
    if not np.isfinite(loss) or n_zero != plan.n_zero:
        raise ValueError(
            f"{name}: the loss is {float(loss)}, expected a finite one; there are {n_zero} zeros, "
            f"planned were {plan.n_zero}."
        )
    return {
        "network": name,
        "sparsity": recipe.sparsity,
        "loss": float(loss),
        "n_zero": n_zero,
        "compile_s": compiled_s - start_s,
        "step_s": end_s - compiled_s,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
