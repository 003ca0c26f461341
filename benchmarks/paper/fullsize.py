"""One training step of a published network, and its training on data of your own.

The hyper-parameters are those of the authors of each network, with the source at each recipe: code
that they published and that was read for this, unless it says "from memory". The pruning is the
paper's cubic schedule; where it began and ended for each network is not known here, so
`Recipe.begin` and `end` are ours. `one_step` needs no data: it makes a small batch up, and checks
afterwards that exactly the planned weights are left.
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
      optimizer: without pruning.
      batch: examples per update, on all devices together.
      steps: updates.
      time: words of a window, or side of an image.
      sparsity: at the end; any of the paper's.
      begin: where pruning begins, as a fraction of the steps.
      end: where it ends.
      every: updates between fires; the paper found 100 to 1,000 to serve as well.
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
        """The optimizer with pruning around it, by the paper's rules for the network."""
        recipe = dataclasses.replace(self, **changes)
        begin, end = (int(recipe.steps * part) for part in (recipe.begin, recipe.end))
        schedule = jaxprune.cubic_schedule(recipe.sparsity, begin, end, recipe.every)
        exclude = NETWORKS[network].exclude
        return jaxprune.prune(schedule, inner=recipe.optimizer(), exclude=exclude)


def _zaremba(decay: float, after: int, epochs: int, batch: int, time: int, clip: float) -> Recipe:
    """SGD at rate 1, cut by `decay` after each epoch but the first ones (Zaremba et al., 2014).

    Every number as in TensorFlow's models/tutorials/rnn/ptb/ptb_word_lm.py, which names that paper,
    but the decay of the medium network: 1 / 1.2 in the paper, from memory, and 0.8 there.
    """
    per_epoch = 929_589 // (batch * time)  # words of the PTB training text

    def rate(step: Any) -> Any:
        return decay ** jnp.maximum(step // per_epoch + 1 - after, 0)

    def optimizer() -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(clip), optax.sgd(rate))

    return Recipe(optimizer, batch, epochs * per_epoch, time, 0.9, every=100)


def _images(rate: float, decay: float, epochs_per_decay: float, batch: int) -> Recipe:
    """RMSProp with a rate that falls by steps, 50 workers of 32 images at once.

    InceptionV3: decay 0.9, momentum 0.9, epsilon 1, a rate of 0.045 times 0.94 and 50 workers, as
    in the notes on Google's Open Images models of 2017, trained with the same library; every two
    epochs, clipped at 2, for 100 epochs: Szegedy et al. (2016), from memory. MobileNet: RMSProp as
    InceptionV3 (Howard et al., 2017, from memory); the rate and its fall, 0.94 every 2.5 epochs, as
    in TensorFlow's models/research/slim/nets/mobilenet_v1_train.py, which itself takes plain SGD of
    64 images.
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
    """SGD at rate 1, halved every 17,000 updates after 170,000, so first at 187,000.

    As in github.com/tensorflow/nmt: nmt/standard_hparams/wmt16_gnmt_4_layer.json, whose `luong10`
    is a staircase.
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
    """What a step changes: params, other variables, optimizer state, LSTM state (or None)."""

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
    """The loss of a batch, with the variables and the LSTM state after it.

    A batch is (windows,) for a language model, (source, target) for a translator, with begin and
    end in the target, and (images, labels) for a convolutional network.
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
    found, changed = module.apply(variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs)
    heads = found if isinstance(found, tuple) else (found,)
    loss = _cross_entropy(heads[0], target).mean()
    for auxiliary in heads[1:]:
        loss += 0.4 * _cross_entropy(auxiliary, target).mean()
    return loss, (dict(changed), None)


def _cross_entropy(logits: Any, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def make_step(module: nn.Module, optimizer: Any) -> Callable[..., tuple[TrainState, jax.Array]]:
    """`(state, batch, key) -> (state, loss)`, compiled; it donates its state."""

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
    """A random batch of the form that the network takes."""
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
    """Batches of the user's own data, pass after pass without end, for the network of this name.

    Args:
      name: of the network.
      data: a PTB folder, a folder of images by class, or two files, each translating the other.
      recipe: for the sizes.
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
        raise ValueError(f"{name} tells {most:,} words or classes apart, but the data has {n:,}.")


def train(
    name: str,
    batches: Iterator[tuple[Any, ...]],
    recipe: Recipe,
    report: Callable[[int, float, float], None],
    module: nn.Module | None = None,
    every: int = 100,
) -> TrainState:
    """Trains and prunes a published network, or another `module` by the same rules.

    Args:
      name: of the network.
      batches: at least `recipe.steps` of them.
      recipe: hyper-parameters.
      report: called with the step, the loss and the sparsity of all params, now and then.
      module: instead of the published one.
      every: steps between two reports.
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
        raise ValueError(f"{name}: no batch. There is less data than one batch of {recipe.batch}.")
    jaxprune.check(state.params, state.opt_state)
    return state


def one_step(name: str, n: int = 2, time_: int = 0) -> dict[str, Any]:
    """Takes one real step of a published network that prunes to its final sparsity at once.

    Returns:
      The loss, the nonzero weights of two axes and more, seconds of compiling and of a step, and
      the most memory that the process has used.

    Raises:
      ValueError: the loss is not finite, or the zeros are not those that `plan` says.
    """
    network, recipe = NETWORKS[name], RECIPES[name]
    optimizer = recipe.prune(name, begin=0.0, end=0.0)
    key = jax.random.key(0)
    batch = made_up_batch(name, n, time_ or (recipe.time if recipe.time > 60 else 8), key)
    state = start(network.module, optimizer, batch, key)
    plan = jaxprune.plan(state.params, recipe.sparsity, exclude=network.exclude)
    begun = time.perf_counter()
    step: Any = make_step(network.module, optimizer)
    compiled = step.lower(state, batch, key).compile()
    middle = time.perf_counter()
    state, loss = compiled(state, batch, key)
    jax.block_until_ready(loss)
    end = time.perf_counter()
    jaxprune.check(state.params, state.opt_state)
    masks = jax.tree.leaves(jaxprune.get_masks(state.opt_state))
    n_zero = sum(int(jnp.sum(~mask, dtype=jnp.int32)) for mask in masks)
    if not np.isfinite(loss) or n_zero != plan.n_zero:
        raise ValueError(f"{name}: loss {float(loss)}, {n_zero} zeros, {plan.n_zero} planned.")
    return {
        "network": name,
        "sparsity": recipe.sparsity,
        "loss": float(loss),
        "n_zero": n_zero,
        "compile_s": middle - begun,
        "step_s": end - middle,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
