"""The runs of one network, one for each seed, trained together in compiled chunks of steps.

The seeds are an axis of `vmap`. The state after a chunk depends only on the state before it and on
the keys. So runs that were stopped and resumed from a checkpoint end with the same bits as runs
that were not.
"""

import functools
import hashlib
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxprune
from jaxprune.demo.config import DISTRIBUTIONS, Config, Network
from jaxprune.demo.data import Data
from jaxprune.demo.network import init_params, logits_of


class RunState(NamedTuple):
    """The runs of a network between two chunks; every leaf but `step` starts with an axis of seeds.

    It holds only arrays, so that orbax can save it.

    Attributes:
      params: of the network.
      opt_state: of the optimizer, masks included.
      step: int32 scalar, number of updates so far.
      n_correct: int32[n_seeds, n_chunks], test images of which every digit was classified
        correctly, after each chunk so far.
      n_zero: int32[n_seeds, n_chunks], number of dropped weights after each chunk so far.
      loss: float32[n_seeds, n_chunks], mean loss of each chunk so far.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    n_correct: jax.Array
    n_zero: jax.Array
    loss: jax.Array


class Trainer(NamedTuple):
    """Functions that train a network with all seeds.

    Attributes:
      init: makes the initial state.
      advance: from a state and the data to the state one chunk later. Donates the state.
    """

    init: Callable[[], RunState]
    advance: Callable[[RunState, Data], RunState]


def make_optimizer(kind: str, config: Config) -> optax.GradientTransformation:
    """AdamW with a cosine decay, the same for all networks; wrapped in `prune` for sparse ones.

    One transformation has the schedules of all sparsities, so it is compiled only once.
    """
    adamw = optax.adamw(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    if kind not in DISTRIBUTIONS:
        return adamw
    schedules = [config.schedule(sparsity) for sparsity in config.sparsities]
    return jaxprune.prune(schedules, inner=adamw, distribution=DISTRIBUTIONS[kind])


Program = Callable[[RunState, np.ndarray, Data], RunState]


def make_trainer(network: Network, config: Config, program: Program | None = None) -> Trainer:
    """The functions that train a network; `program` is from `compile_program`."""
    init, advance = _functions(network.kind, network.widths, config)
    run = program or advance
    schedule = config.sparsities.index(network.sparsity) if network.is_sparse else 0

    def next_chunk(state: RunState, data: Data) -> RunState:
        return run(state, _batches(config, int(state.step)), data)

    return Trainer(functools.partial(init, schedule), next_chunk)


def program_key(network: Network) -> Hashable:
    """Networks with the same key share a program."""
    return network.kind, network.widths


def compile_program(network: Network, config: Config, data: Data) -> Program:
    """Compiles the training of a network, for states that are committed to the first device."""
    init, advance = _functions(network.kind, network.widths, config)
    state = jax.device_put(init(0), jax.devices()[0])
    return advance.lower(state, _batches(config, 0), data).compile()


def _batches(config: Config, first_step: int) -> np.ndarray:
    """The images of the batches of a chunk: int32[n_seeds, steps_per_chunk, batch_size].

    Drawn by NumPy, because compiling JAX's generators takes XLA seconds per network on a CPU.
    """
    shape = (config.steps_per_chunk, config.batch_size)
    generators = [np.random.default_rng((seed, first_step)) for seed in range(config.n_seeds)]
    drawn = [generator.integers(config.n_train, size=shape) for generator in generators]
    return np.stack(drawn).astype(np.int32)


@functools.cache
def _functions(kind: str, widths: tuple[int, ...], config: Config) -> tuple[Any, Any]:
    """`init` of an index of a schedule, and `advance`, for all networks of this kind and widths."""
    tx = make_optimizer(kind, config)

    def init(schedule: int) -> RunState:
        seeds = [init_params(seed, widths) for seed in range(config.n_seeds)]
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
        opt_state = jax.jit(jax.vmap(tx.init))(params)
        if kind in DISTRIBUTIONS:
            opt_state = jaxprune.choose_schedule(opt_state, schedule)
        shape = (config.n_seeds, config.n_chunks)  # three arrays, because `advance` donates them
        curves = [jnp.zeros(shape, dtype) for dtype in (jnp.int32, jnp.int32, jnp.float32)]
        return RunState(params, opt_state, jnp.zeros((), jnp.int32), *curves)

    def advance(state: RunState, batches: jax.Array, data: Data) -> RunState:
        one_seed = functools.partial(_advance_one, kind, widths, tx, data)
        params, opt_state, *values = jax.vmap(one_seed)(state.params, state.opt_state, batches)
        chunk = state.step // config.steps_per_chunk
        curves = (state.n_correct, state.n_zero, state.loss)
        filled = [
            curve.at[:, chunk].set(value.astype(curve.dtype))
            for curve, value in zip(curves, values, strict=True)
        ]
        return RunState(params, opt_state, state.step + config.steps_per_chunk, *filled)

    return init, jax.jit(advance, donate_argnums=0)


def _advance_one(
    kind: str,
    widths: tuple[int, ...],
    tx: optax.GradientTransformation,
    data: Data,
    params: Any,
    opt_state: Any,
    batches: jax.Array,
) -> tuple[Any, ...]:
    """One chunk with one seed: params, optimizer state, and the new entry of each curve."""

    def loss_of(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = logits_of(widths, params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def one_step(carry: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        images, labels = data.train_images[batch], data.train_labels[batch]
        loss, grads = jax.value_and_grad(loss_of)(params, images, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    (params, opt_state), losses = lax.scan(one_step, (params, opt_state), batches)
    is_right = logits_of(widths, params, data.test_images).argmax(-1) == data.test_labels
    sparse = kind in DISTRIBUTIONS
    n_zero = jaxprune.metrics(opt_state)["prune/n_zero"] if sparse else jnp.zeros(())
    return params, opt_state, is_right.all(-1).sum(), n_zero, losses.mean()


def results_of(network: Network, state: RunState, n_test: int) -> list[dict[str, Any]]:
    """The entries of finished runs in the results file, one for each seed.

    Raises:
      ValueError: a dropped weight is not zero, or the sparsity is not as planned.
    """
    return [_result_of(network, seed, state, n_test) for seed in range(len(state.loss))]


def _result_of(network: Network, seed: int, state: RunState, n_test: int) -> dict[str, Any]:
    run = jax.tree.map(lambda x: np.asarray(x)[seed], state._replace(step=state.n_zero))
    if network.is_sparse:
        jaxprune.check(run.params, run.opt_state, done=True)
    n_nonzero = network.n_params - int(run.n_zero[-1])
    if n_nonzero != network.n_nonzero:
        raise ValueError(
            f"{network.name}: {n_nonzero} weights are not zero after the last step, but "
            f"{network.n_nonzero} were planned."
        )
    return {
        "network": network.name,
        "seed": seed,
        "accuracy": int(run.n_correct[-1]) / n_test,
        "n_nonzero": n_nonzero,
        "loss": float(run.loss[-1]),
        "params_sha256": digest(run.params),
        "n_correct": run.n_correct.tolist(),
        "n_zero": run.n_zero.tolist(),
    }


def digest(tree: Any) -> str:
    """SHA-256 of the bytes of all leaves."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()
