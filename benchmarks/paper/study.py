"""Compares large-sparse with small-dense networks that have the same number of nonzeros.

A `Study` says what is trained, and on which task. `networks_of` derives the networks from it,
`make_trainer` compiles their training in chunks of steps, and `store` trains them and saves the
results. The state after a chunk depends only on the state before it and on the key, so a run that
resumes from a checkpoint ends with the same bits as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxprune
from benchmarks.paper.pruning import Optimizer, Pruning, optimizer_of
from benchmarks.paper.summary import SMALL_KINDS
from benchmarks.paper.units import Units

SPARSITIES = (0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975)


class Task(NamedTuple):
    """Data, and pure functions of it; all but `measure` work under `jit`.

    Attributes:
      data: a tree of arrays.
      inputs: shapes and dtypes of the arguments of the module's `init`.
      batch: `(data, key) -> batch`, drawn at random.
      loss: `(module, variables, batch, key) -> (loss, updated variables other than params)`.
      measure: `(module, variables, data) -> {name: value}`, on held-out data.
      facts: a description of the data for the results file.
    """

    data: Any
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    batch: Callable[[Any, jax.Array], Any]
    loss: Callable[[nn.Module, Any, Any, jax.Array], tuple[jax.Array, Any]]
    measure: Callable[[nn.Module, Any, Any], dict[str, float]]
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """The configuration of a comparison.

    Attributes:
      name: part of the names of its files.
      title: title of its table and plots.
      task: makes the task; called once, when the study runs.
      module: makes the network of a width; wider networks have more weights.
      width: width of the dense and the sparse networks.
      measure: name of the measure that is compared.
      lower_is_better: whether lower values of the measure are better.
      exclude: path regexes of weights that are never pruned.
      steps: updates per run, the same for all networks.
      chunk: updates per compiled call; a checkpoint can follow each chunk.
      learning_rate: peak learning rate of AdamW, with cosine decay to 0.
      small_learning_rate: the same for dense networks of at most half the width, which may need
        larger steps; None for `learning_rate`.
      clip: largest global norm of the gradients.
      sparsities: each gives one sparse and one small-dense network.
      seeds: runs per network.
      track: whether to measure after every chunk too, for a curve.
      shallow: makes the networks of kind "shallow dense", which have fewer layers.
      erk: whether `networks_of` has networks pruned with ERK too.
    """

    name: str
    title: str
    task: Callable[[], Task]
    module: Callable[[int], nn.Module]
    width: int
    measure: str
    lower_is_better: bool
    exclude: tuple[str, ...] = ()
    steps: int = 1200
    chunk: int = 60
    learning_rate: float = 5e-3
    small_learning_rate: float | None = None
    clip: float = 1.0
    sparsities: tuple[float, ...] = SPARSITIES
    seeds: int = 3
    track: bool = False
    shallow: Callable[[int], nn.Module] | None = None
    erk: bool = False

    def module_of(self, network: Network) -> nn.Module:
        """The module of a network of this study."""
        if network.kind == "shallow dense" and self.shallow is not None:
            return self.shallow(network.width)
        return self.module(network.width)

    def rate_of(self, network: Network) -> float:
        """The peak learning rate of a network of this study."""
        is_narrow = network.pruning is None and 2 * network.width <= self.width
        return (self.small_learning_rate if is_narrow else None) or self.learning_rate

    def config(self) -> dict[str, Any]:
        """The settings that must equal those in a results file before `--resume` continues it."""
        fields = {k: getattr(self, k) for k in ("name", "width", "measure", "steps", "chunk")}
        rates = {k: getattr(self, k) for k in ("learning_rate", "clip", "seeds")}
        lists = {k: list(getattr(self, k)) for k in ("exclude", "sparsities")}
        modules = {"module": repr(self.module(self.width))}
        if self.small_learning_rate is not None:
            rates["small_learning_rate"] = self.small_learning_rate
        if self.shallow is not None:
            modules["shallow"] = repr(self.shallow(self.width))
        return fields | rates | lists | modules


class Network(NamedTuple):
    """One row of a table.

    Attributes:
      name: unique in its study.
      kind: "dense", "sparse", "ERK", "small dense", "shallow dense", a structure, or, for a
        finding, "variant".
      width: the argument of `Study.module`, or of `Study.shallow` for a shallow network.
      pruning: how it is pruned; None for a dense network.
      sparsity: sparsity of the pruned leaves; for a small-dense network, of its sparse partner.
      n_params: number of parameters.
      n_nonzero: number of parameters that remain after pruning, biases included.
    """

    name: str
    kind: str
    width: int
    pruning: Pruning | None
    sparsity: float
    n_params: int
    n_nonzero: int


def shapes_of(study: Study, width: int, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> Any:
    """Shapes and dtypes of the variables of the network with this width."""
    return _shapes(study.module(width), inputs)


def _shapes(module: nn.Module, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> Any:
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    return jax.eval_shape(module.init, keys, *inputs)


def n_params_of(study: Study, width: int, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> int:
    """Number of parameters of the network with this width."""
    return _count(study.module(width), inputs)


@functools.cache  # the searches for widths begin at the same ones
def _count(module: nn.Module, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> int:
    leaves = jax.tree.leaves(_shapes(module, inputs)["params"])
    return sum(leaf.size for leaf in leaves)


def match_width(study: Study, n_params: int, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> int:
    """The width (at least 1) whose network has the number of parameters closest to `n_params`."""
    low, high = 1, study.width
    while high - low > 1:
        middle = (low + high) // 2
        if n_params_of(study, middle, inputs) <= n_params:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda w: abs(n_params_of(study, w, inputs) - n_params))


def dense_network(study: Study, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> Network:
    """The row of the full-width network without pruning."""
    n = n_params_of(study, study.width, inputs)
    return Network("dense", "dense", study.width, None, 0.0, n, n)


def networks_of(study: Study, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> list[Network]:
    """The dense network, then for each sparsity the sparse one and its small dense partners."""
    networks = [dense_network(study, inputs)]
    for sparsity in study.sparsities:
        pruning = Pruning.gradual(sparsity, study.steps)
        sparse = sparse_network(study, f"sparse-{sparsity:g}", "sparse", pruning, inputs)
        names = {kind: f"{kind.replace(' ', '-')}-{sparsity:g}" for kind in SMALL_KINDS}
        networks += [sparse, *small_networks(study, sparse, names, inputs)]
        if study.erk:
            networks.append(_with_erk(study, sparsity, inputs))
    return networks


def networks_with_erk(study: Study, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> list[Network]:
    """The dense network, then for each sparsity: uniform, ERK, and the small dense partners."""
    networks = [dense_network(study, inputs)]
    for sparsity in study.sparsities:
        uniform = Pruning.gradual(sparsity, study.steps)
        sparse = sparse_network(study, f"uniform-{sparsity:g}", "sparse", uniform, inputs)
        networks += [sparse, _with_erk(study, sparsity, inputs)]
        names = {kind: f"{kind.split()[0]}-{sparsity:g}" for kind in SMALL_KINDS}
        networks += small_networks(study, sparse, names, inputs)
    return networks


def _with_erk(study: Study, sparsity: float, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> Network:
    pruning = dataclasses.replace(Pruning.gradual(sparsity, study.steps), spread="erk")
    return sparse_network(study, f"erk-{sparsity:g}", "ERK", pruning, inputs)


def small_networks(
    study: Study, sparse: Network, names: dict[str, str], inputs: tuple[jax.ShapeDtypeStruct, ...]
) -> list[Network]:
    """Small dense networks with as many parameters as a sparse one has nonzeros.

    One is narrower; if the study has `shallow` networks, another has fewer layers. `names` are
    their names by kind.
    """
    made_by = {"small dense": study}
    if study.shallow is not None:
        width = 4 * study.width  # those with few layers may be wider
        made_by["shallow dense"] = dataclasses.replace(study, module=study.shallow, width=width)
    networks = []
    for kind, of in made_by.items():
        width = match_width(of, sparse.n_nonzero, inputs)
        n = n_params_of(of, width, inputs)
        networks.append(Network(names[kind], kind, width, None, sparse.sparsity, n, n))
    return networks


def sparse_network(
    study: Study,
    name: str,
    kind: str,
    pruning: Pruning,
    inputs: tuple[jax.ShapeDtypeStruct, ...],
) -> Network:
    """The row of the full-width network with this pruning."""
    params = shapes_of(study, study.width, inputs)["params"]
    plan = pruning.plan(params, study.exclude)
    n_nonzero = plan.size - plan.n_zero
    return Network(name, kind, study.width, pruning, pruning.sparsity, plan.size, n_nonzero)


class RunState(NamedTuple):
    """The state of a run between two chunks: arrays only.

    Attributes:
      params: parameters of the network.
      others: its other variables, such as batch statistics.
      opt_state: state of the optimizer, masks included.
      step: int32 scalar, number of updates so far.
      losses: float32[n_chunks], mean training loss of each chunk so far.
      n_zero: int32[n_chunks], dropped weights after each chunk so far.
      measured: float32[n_chunks], the measure after each chunk so far, if `Study.track`.
    """

    params: Any
    others: Any
    opt_state: Any
    step: jax.Array
    losses: jax.Array
    n_zero: jax.Array
    measured: jax.Array


class Trainer(NamedTuple):
    """Compiled functions: the first state, the state one chunk later, and its variables."""

    init: Callable[[jax.Array], RunState]
    advance: Callable[[RunState, jax.Array], RunState]
    variables: Callable[[RunState], Any]


def make_trainer(study: Study, task: Task, network: Network) -> Trainer:
    """Compiles the functions that train a network with any seed. `advance` donates its state."""
    module = study.module_of(network)
    inner = optax.chain(
        optax.clip_by_global_norm(study.clip),
        optax.adamw(optax.cosine_decay_schedule(study.rate_of(network), study.steps)),
    )
    optimizer = optimizer_of(network.pruning, inner, study.exclude)
    n_chunks = study.steps // study.chunk

    def init(key: jax.Array) -> RunState:
        keys = {"params": key, "dropout": key}
        others = dict(module.init(keys, *(jnp.zeros(x.shape, x.dtype) for x in task.inputs)))
        params = others.pop("params")
        step, empty = jnp.zeros((), jnp.int32), jnp.zeros(n_chunks, jnp.float32)
        return RunState(
            params, others, optimizer.init(params), step, empty, empty.astype(jnp.int32), empty
        )

    def advance(data: Any, state: RunState, key: jax.Array) -> RunState:
        body = functools.partial(_one_step, task, module, optimizer, data, key)
        carry = (state.params, state.others, state.opt_state)
        carry, losses = lax.scan(body, carry, state.step + jnp.arange(study.chunk))
        params, others, opt_state = carry
        chunk = state.step // study.chunk
        new_losses = state.losses.at[chunk].set(losses.mean())
        n_zero = state.n_zero.at[chunk].set(optimizer.n_zero(params, opt_state))
        step = state.step + study.chunk
        return RunState(params, others, opt_state, step, new_losses, n_zero, state.measured)

    def variables(state: RunState) -> Any:
        return {"params": optimizer.view(state.params, state.opt_state), **state.others}

    compiled = jax.jit(advance, donate_argnums=1)
    advance_task = functools.partial(compiled, task.data)
    return Trainer(jax.jit(init), advance_task, jax.jit(variables))


def _one_step(
    task: Task,
    module: nn.Module,
    optimizer: Optimizer,
    data: Any,
    key: jax.Array,
    carry: Any,
    step: jax.Array,
) -> tuple[Any, jax.Array]:
    """Takes one update; its randomness depends only on the key of the run and the step."""
    params, others, opt_state = carry
    to_batch, to_loss = jax.random.split(jax.random.fold_in(key, step))
    batch = task.batch(data, to_batch)

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        seen = optimizer.view(params, opt_state)
        return task.loss(module, {"params": seen, **others}, batch, to_loss)

    (loss, others), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), others, opt_state), loss


def result_of(
    study: Study, task: Task, network: Network, seed: int, trainer: Trainer, state: RunState
) -> dict[str, Any]:
    """The entry of a finished run in the results file.

    Raises:
      ValueError: the number of nonzeros differs from the plan, or a dropped weight is not zero.
    """
    variables = trainer.variables(state)
    if network.pruning is not None and not isinstance(network.pruning.structure, Units):
        jaxprune.check(variables["params"], state.opt_state)
    n_nonzero = network.n_params - int(np.asarray(state.n_zero)[-1])
    if n_nonzero != network.n_nonzero:
        raise ValueError(
            f"{network.name}: {n_nonzero} weights remain after the last step, but "
            f"{network.n_nonzero} were planned."
        )
    measured = task.measure(study.module_of(network), variables, task.data)
    curve = [round(float(x), 5) for x in np.asarray(state.measured)]
    return {
        "network": network.name,
        "seed": seed,
        "n_nonzero": n_nonzero,
        **{name: float(value) for name, value in measured.items()},
        "losses": [round(float(x), 5) for x in np.asarray(state.losses)],
        "n_zero": np.asarray(state.n_zero).tolist(),
        **({study.measure + "_over_steps": curve} if study.track else {}),
    }


def track(
    study: Study, task: Task, network: Network, trainer: Trainer, state: RunState
) -> RunState:
    """Adds the measure after the last chunk to the state, if the study tracks it."""
    if not study.track:
        return state
    measured = task.measure(study.module_of(network), trainer.variables(state), task.data)
    chunk = int(state.step) // study.chunk - 1
    return state._replace(measured=state.measured.at[chunk].set(measured[study.measure]))
