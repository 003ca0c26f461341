"""One run: a network trained from a seed, in compiled chunks of steps.

The state after a chunk depends only on the state before it and on the key. So a run that was
stopped and resumed from a checkpoint ends with the same bits as one that was not.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxprune
from jaxprune.demo.config import Config, Network
from jaxprune.demo.data import Data
from jaxprune.demo.network import init_params, logits_of


class RunState(NamedTuple):
    """A run between two chunks. It holds only arrays, so that orbax can save it.

    Attributes:
      params: of the network.
      opt_state: of the optimizer, masks included.
      step: int32 scalar, number of updates so far.
      n_correct: int32[n_chunks], test images classified correctly after each chunk so far.
      n_zero: int32[n_chunks], number of dropped weights after each chunk so far.
      loss: float32[n_chunks], loss on the last batch of each chunk so far.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    n_correct: jax.Array
    n_zero: jax.Array
    loss: jax.Array


class Trainer(NamedTuple):
    """Compiled functions that train one network.

    Attributes:
      init: from a key to the initial state.
      advance: from a state, a key and the data to the state one chunk later. Donates the state.
    """

    init: Callable[[jax.Array], RunState]
    advance: Callable[[RunState, jax.Array, Data], RunState]


def make_optimizer(network: Network, config: Config) -> optax.GradientTransformation:
    """AdamW with a cosine decay, the same for all networks; wrapped in `prune` for sparse ones."""
    adamw = optax.adamw(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    if network.kind != "sparse":
        return adamw
    return jaxprune.prune(config.schedule(network.sparsity), inner=adamw)


@functools.cache
def make_trainer(network: Network, config: Config) -> Trainer:
    """The functions that train a network; compiled once for all its seeds."""
    loss_and_grad = jax.value_and_grad(functools.partial(_loss, network.widths))
    tx = make_optimizer(network, config)

    def init(key: jax.Array) -> RunState:
        params = init_params(jax.random.fold_in(key, 0), network.widths)
        empty = jnp.zeros(config.n_chunks, jnp.int32)
        step = jnp.zeros((), jnp.int32)
        return RunState(params, tx.init(params), step, empty, empty, empty.astype(jnp.float32))

    def one_step(data: Data, key: jax.Array, carry: Any, step: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        step_key = jax.random.fold_in(key, step)
        batch = jax.random.randint(step_key, (config.batch_size,), 0, config.n_train)
        loss, grads = loss_and_grad(params, data.train_images[batch], data.train_labels[batch])
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def advance(state: RunState, key: jax.Array, data: Data) -> RunState:
        steps = state.step + jnp.arange(config.steps_per_chunk)
        body = functools.partial(one_step, data, jax.random.fold_in(key, 1))
        carry = (state.params, state.opt_state)
        (params, opt_state), losses = lax.scan(body, carry, steps)
        chunk = state.step // config.steps_per_chunk
        predicted = logits_of(network.widths, params, data.test_images).argmax(-1)
        return RunState(
            params,
            opt_state,
            state.step + config.steps_per_chunk,
            state.n_correct.at[chunk].set((predicted == data.test_labels).sum()),
            state.n_zero.at[chunk].set(_n_zero(network, opt_state)),
            state.loss.at[chunk].set(losses[-1]),
        )

    return Trainer(jax.jit(init), jax.jit(advance, donate_argnums=0))


def _loss(
    widths: tuple[int, int, int], params: Any, images: jax.Array, labels: jax.Array
) -> jax.Array:
    logits = logits_of(widths, params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _n_zero(network: Network, opt_state: Any) -> jax.Array | int:
    if network.kind != "sparse":
        return 0
    return jaxprune.metrics(opt_state)["prune/n_zero"].astype(jnp.int32)


def result_of(network: Network, seed: int, state: RunState, n_test: int) -> dict[str, Any]:
    """The entry of a finished run in the results file.

    Raises:
      ValueError: a dropped weight is not zero, or the sparsity is not as planned.
    """
    if network.kind == "sparse":
        jaxprune.check(state.params, state.opt_state)
    n_zero = np.asarray(state.n_zero)
    n_nonzero = network.n_params - int(n_zero[-1])
    if n_nonzero != network.n_nonzero:
        raise ValueError(
            f"{network.name}: {n_nonzero} weights are not zero after the last step, but "
            f"{network.n_nonzero} were planned."
        )
    n_correct = np.asarray(state.n_correct)
    return {
        "network": network.name,
        "seed": seed,
        "accuracy": int(n_correct[-1]) / n_test,
        "n_nonzero": n_nonzero,
        "loss": float(state.loss[-1]),
        "params_sha256": digest(state.params),
        "n_correct": n_correct.tolist(),
        "n_zero": n_zero.tolist(),
    }


def digest(tree: Any) -> str:
    """SHA-256 of the bytes of all leaves."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()
