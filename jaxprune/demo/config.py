"""What the demo trains: every number in one place, and the networks that follow from them.

The task and the size of the network were chosen with dense networks only: in this setting the large
one is clearly better than the small ones, so the comparison can be decided. So was the learning
rate, on numbers composed of 300 of the training digits, which were held out for this. Averaged over
dense networks of 30,730, 7,820 and 3,210 parameters with two seeds each and 2,400 steps, rates of
2e-3, 4e-3, 6e-3 and 1e-2 read 65.0%, 74.9%, 77.5% and 62.4% correctly. (1e-2 is best for the
smallest alone, 64.9% against 60.8%; one seed of the largest does not learn with it.) Nothing about
pruning was tuned: the schedule has round numbers, and all arguments of `jaxprune.prune` but the
distribution have their defaults.
"""

import dataclasses
from typing import NamedTuple

import jaxprune
from jaxprune.demo.network import N_LAYERS, match_widths, n_params_of, shallower, shapes_of

DISTRIBUTIONS = {"uniform": jaxprune.uniform, "ERK": jaxprune.erk}
"""The kinds of sparse network, each with how it spreads the sparsity over the layers."""

SMALL = {"narrower dense": tuple, "shallower dense": shallower}
"""The kinds of small dense network, each with the widths to which its own are in proportion."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines the results, apart from the versions and the machine.

    Attributes:
      sparsities: of the pruned kernels. For each, two sparse networks (uniform and ERK) and two
        small dense ones (narrower, and with three layers instead of five) are trained.
      n_seeds: runs per network. The seed determines the initial params and the batches.
      steps: updates per run, the same for all networks.
      steps_per_chunk: updates per compiled call. After each call, the accuracy is measured, the
        progress bars advance, and requests to stop are handled.
      widths: channels of the convolutions of the dense and the sparse networks.
      learning_rate: of AdamW, the peak of a cosine decay to 0.
      batch_size: images per update.
      n_digits: digits that training images are composed of; test images have the other digits.
      n_train: number of training images.
      n_test: number of test images.
    """

    sparsities: tuple[float, ...] = (0.75, 0.9, 0.95, 0.975)
    n_seeds: int = 5
    steps: int = 2000
    steps_per_chunk: int = 100
    widths: tuple[int, ...] = (16, 16, 32, 32, 48)
    learning_rate: float = 6e-3
    batch_size: int = 16
    n_digits: int = 1200
    n_train: int = 20_000
    n_test: int = 1000

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
        if len(self.widths) != N_LAYERS:
            raise ValueError(f"widths must be {N_LAYERS} numbers of channels, got {self.widths}.")

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
    """One sparsity, two seeds and half of the steps: a first answer in 40 seconds."""
    return Config(sparsities=(0.9,), n_seeds=2, steps=1000)


class Network(NamedTuple):
    """One row of the table.

    Attributes:
      name: used for its checkpoints, and for its runs in the results file.
      kind: "dense", "uniform", "ERK", "narrower dense" or "shallower dense".
      sparsity: of the kernels; for a small dense network, that of the sparse networks with which it
        is compared.
      widths: channels of the convolutions.
      n_params: number of parameters, zeros and biases included.
      n_nonzero: parameters that are not zero after the last fire, biases included.
    """

    name: str
    kind: str
    sparsity: float
    widths: tuple[int, ...]
    n_params: int
    n_nonzero: int

    @property
    def is_sparse(self) -> bool:
        """Whether it is the large network, pruned."""
        return self.kind in DISTRIBUTIONS


def networks(config: Config) -> list[Network]:
    """The dense network; then for each sparsity the sparse networks and the small dense ones."""
    n_params = n_params_of(config.widths)
    rows = [Network("dense", "dense", 0.0, config.widths, n_params, n_params)]
    shapes = shapes_of(config.widths)
    for sparsity in sorted(config.sparsities):
        n_left = []
        for kind, distribution in DISTRIBUTIONS.items():
            schedule = config.schedule(sparsity)
            n_zero = jaxprune.plan(shapes, schedule, distribution=distribution).n_zero
            n_left.append(n_params - n_zero)
            name = f"{kind.lower()}-{sparsity:g}"
            rows.append(Network(name, kind, sparsity, config.widths, n_params, n_left[-1]))
        for kind, proportions in SMALL.items():
            widths = match_widths(proportions(config.widths), n_left[0])
            n_small = n_params_of(widths)
            name = f"{kind.replace(' ', '-')}-{sparsity:g}"
            rows.append(Network(name, kind, sparsity, widths, n_small, n_small))
    return rows
