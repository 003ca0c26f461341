"""The whole messages of the most common mistakes; they change with every change of words.

All other errors: `test_bad_*.py` in the folders of the packages.
"""

import importlib.util
import pathlib

import optax
import pytest

import jaxprune
from bad_input import ADAM, HALF, cubic, error_of, half_pruned, init, params, start, traced
from helpers import ones


def with_two_weights_back():
    """Params in which two dropped weights are not zero, and their state."""
    tree, state = half_pruned()
    return {**tree, "w": tree["w"].at[0, 0].set(0.5).at[0, 2].set(-0.5)}, state


SNAPSHOTS = {
    "sparsity_traced": (
        lambda: traced(cubic),
        TypeError,
        "final_sparsity must be a real number in [0, 1), got a traced value. "
        "Sparsity is decided on the host, before tracing: pass a Python float; under "
        "optax.inject_hyperparams, name the argument in static_args.",
    ),
    "plan_percent": (
        lambda: jaxprune.plan(params(), 90),
        ValueError,
        "schedule is a fraction of zeros in [0, 1), got 90. Did you mean 0.9?",
    ),
    "schedule_is_an_optimizer": (
        lambda: jaxprune.prune(ADAM),
        TypeError,
        "schedule must be a jaxprune.SparsitySchedule, got a value of type "
        "GradientTransformationExtraArgs. Pass the optimizer by name: prune(schedule, "
        "inner=optimizer).",
    ),
    "nothing_included": (
        lambda: init({"fc": {"kernel": ones(2, 2), "bias": ones(2)}}, include="kernel"),
        ValueError,
        "include: 'kernel' matches no leaf (the nearest path is fc/kernel). A regex matches the "
        "whole path: write include='.*kernel'.",
    ),
    "emptied": (
        lambda: init({"a": {"w": ones(1, 2)}, "w": ones(4, 4), "b": ones(4)}, cubic(0.9)),
        ValueError,
        "a/w: shape (1, 2) would lose all of its 2 weights at sparsity 0.9. Leave it out "
        "with exclude='a/w', or choose a lower sparsity with overrides={'a/w': ...}.",
    ),
    "several_emptied": (
        lambda: init({"a": ones(1, 1), "c": ones(1, 1), "w": ones(4, 4), "b": ones(4)}),
        ValueError,
        "a, c: shape (1, 1) would lose all of its 1 weights at sparsity 0.5. Leave them out with "
        "exclude=['a', 'c'], or choose a lower sparsity with overrides={'a': ..., 'c': ...}.",
    ),
    "split_complex": (
        lambda: optax.contrib.split_real_and_imaginary(jaxprune.prune(HALF, inner=ADAM)).init(
            {"w": ones(4, 4) * 1j, "b": ones(4)}
        ),
        TypeError,
        "w: optax.contrib.split_real_and_imaginary, around prune, splits complex weights into two. "
        "Put it inside: prune(schedule, inner=split_real_and_imaginary(optimizer)).",
    ),
    "no_params": (
        lambda: jaxprune.prune(HALF).update(params(), start()),
        ValueError,
        "jaxprune.prune needs the params: call tx.update(updates, state, params).",
    ),
    "no_state": (
        lambda: jaxprune.get_state(ADAM.init(params())),
        ValueError,
        "no prune state in a value of type tuple. Pass the optimizer state of a "
        "transformation that contains jaxprune.prune: what tx.init(params) or tx.update returned.",
    ),
    "check_moved": (
        lambda: jaxprune.check(*with_two_weights_back()),
        ValueError,
        "w: 2 of 4 dropped weights are not zero. Something changes the updates after "
        "prune: make jaxprune.prune the last link of the chain, or wrap the optimizer with "
        "prune(schedule, inner=optimizer). Apply every update, params = "
        "optax.apply_updates(params, updates), and change the params in no other way. If the "
        "params are of an earlier step, were restored without their optimizer state, or are an "
        "average, use jaxprune.apply_masks(params, opt_state). If the model sets or rescales this "
        "leaf itself (a reparametrised weight), exclude it from pruning.",
    ),
}


@pytest.mark.parametrize("call, kind, text", SNAPSHOTS.values(), ids=SNAPSHOTS)
def test_the_whole_message_of_a_common_mistake(call, kind, text):
    assert error_of(call, kind) == text


def rows_of(path):
    """The cases in the tables of a file of tests."""
    spec = importlib.util.spec_from_file_location(f"rows_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tables = [value for value in vars(module).values() if isinstance(value, list)]
    return [row for table in tables for row in table if hasattr(row, "values") and row.id]


def test_at_least_300_wrong_calls_are_checked_for_type_place_and_remedy():
    """`assert_error` checks these of each row, and that the call writes no file."""
    files = sorted(pathlib.Path(__file__).parents[1].glob("*/test_bad_*.py"))
    with_calls = [path for path in files if "assert_error" in path.read_text(encoding="utf-8")]
    assert len(with_calls) >= 11
    rows = [row for path in with_calls for row in rows_of(path)]
    assert len(rows) >= 300  # docs/promises.md says so
    for row in rows:
        _, kind, (where, got, remedy) = row.values
        assert issubclass(kind, ValueError | TypeError | OSError), row.id
        assert remedy, row.id
        assert where or got, row.id
    assert sum(None in row.values[2] for row in rows) <= 10
