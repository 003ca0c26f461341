"""Every release reads the states that older releases wrote, and continues to the same masks.

The files in `tests/state/golden` are never rewritten. A release that changes the state adds files:

    python tests/state/test_golden.py 0.2  # writes tests/state/golden/0.2-*.msgpack

Each file holds the params and the optimizer state in the middle of the schedule, and the masks
after the last step, as `flax.serialization.to_bytes` writes them. `upgrade_state` fits the state,
which is read without a target. Gradients and learning rates are multiples of powers of two, so that
the remaining steps are exact on every machine.

There are no golden pickles: pickles of a state made by this release must name only public classes,
so that later releases can move the classes between modules.
"""

import io
import pathlib
import pickle
import sys

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import on_device

FOLDER = pathlib.Path(__file__).parent / "golden"
MIDDLE, N_STEPS = 5, 12
SCHEDULE = jaxprune.cubic_schedule(0.75, 1, 9, 4)


def opt():
    return optax.sgd(0.5, momentum=0.5)


CASES = {
    "chain": lambda: optax.chain(opt(), jaxprune.prune(SCHEDULE)),
    "inner": lambda: jaxprune.prune(SCHEDULE, inner=opt()),
    "packed": lambda: optax.chain(opt(), jaxprune.prune(SCHEDULE, packed=True)),
    "rigl": lambda: jaxprune.rigl(0.75, end_step=9, every=4, inner=opt()),
    "movement": lambda: jaxprune.prune(SCHEDULE, inner=opt(), score=jaxprune.movement),
}
WRITTEN = sorted(FOLDER.glob("*.msgpack"))


def make_params():
    rng = np.random.default_rng(0)
    leaf = lambda *shape: on_device(rng.integers(-256, 256, shape) / 128)
    return {"conv": leaf(3, 3, 2, 5), "fc": {"kernel": leaf(12, 11), "bias": leaf(11)}}


def run(tx, params, state, first, last):
    step = jax.jit(lambda g, s, p: tx.update(g, s, p))
    for t in range(first, last):
        rng = np.random.default_rng(t + 1)
        grads = jax.tree.map(
            lambda p, rng=rng: on_device(rng.integers(-64, 64, p.shape) / 512),
            params,
        )
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def write(release):
    for name, create in CASES.items():
        tx = create()
        params = make_params()
        state = tx.init(params)
        params, state = run(tx, jaxprune.apply_masks(params, state), state, 0, MIDDLE)
        _, last = run(tx, params, state, MIDDLE, N_STEPS)
        tree = {
            "params": params,
            "opt_state": state,
            "final_masks": jax.device_get(jaxprune.get_masks(last)),
        }
        path = FOLDER / f"{release}-{name}.msgpack"
        with path.open("xb") as file:  # never overwrites a file
            file.write(flax.serialization.to_bytes(tree))


def test_there_is_a_golden_state_of_every_kind():
    assert {path.stem.partition("-")[2] for path in WRITTEN} == set(CASES)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_a_state_of_an_older_release_loads_and_continues_to_the_same_masks(path):
    tx = CASES[path.stem.partition("-")[2]]()
    golden = flax.serialization.msgpack_restore(path.read_bytes())
    params = jax.tree.map(jnp.asarray, golden["params"])
    state = jaxprune.upgrade_state(tx, params, golden["opt_state"])
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(make_params()))
    assert jaxprune.get_state(state).prune_step == MIDDLE
    jaxprune.check(params, state)
    params, state = run(tx, params, state, MIDDLE, N_STEPS)
    chex.assert_trees_all_equal(jaxprune.get_masks(state), golden["final_masks"])
    jaxprune.check(params, state)


class RecordingUnpickler(pickle.Unpickler):
    """An unpickler that records the module and the name of every global that it loads."""

    def __init__(self, data):
        super().__init__(io.BytesIO(data))
        self.names = set()

    def find_class(self, module, name):
        self.names.add((module, name))
        return super().find_class(module, name)


@pytest.mark.parametrize("case", CASES)
def test_a_pickled_state_names_only_public_classes_of_jaxprune(case):
    state = CASES[case]().init(make_params())
    unpickler = RecordingUnpickler(pickle.dumps(state))
    restored = unpickler.load()
    ours = {(module, name) for module, name in unpickler.names if module.startswith("jaxprune")}
    assert ours == {("jaxprune", "PruneState"), ("jaxprune", "Progress")}
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)
    chex.assert_trees_all_equal(restored, state)


if __name__ == "__main__":
    write(sys.argv[1])
