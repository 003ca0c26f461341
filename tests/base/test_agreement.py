"""Replicas of an array that differ between devices are detected."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxprune
from helpers import assert_says, make_mesh, stepper
from jaxprune._base import agreement
from jaxprune._base.agreement import check_remembered, digest, diverged, remember

TREE = ("fc/kernel",)


def spread(x, spec, odd=()):
    """An array on 4 devices; devices in `odd` hold different numbers."""
    named = NamedSharding(make_mesh((2, 2), AxisType.Auto), spec)
    parts = [
        jax.device_put(np.asarray(x)[index] + (device.id in odd), device)
        for device, index in named.addressable_devices_indices_map(x.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(x.shape, named, parts)


def test_only_devices_that_hold_the_same_part_are_compared():
    x = np.arange(8.0).reshape(4, 2)
    ids = [device.id for device in make_mesh((2, 2), AxisType.Auto).devices.flat]
    leaves = {
        "whole": spread(x, P()),
        "whole, one odd": spread(x, P(), odd=ids[2:3]),
        "parts": spread(x, P("data", "model"), odd=ids[2:3]),
        "rows, both copies": spread(x, P("data"), odd=ids[2:]),
        "rows, one copy": spread(x, P("data"), odd=ids[3:]),
        "nan": spread(np.full_like(x, np.nan), P()),
        "key": jax.random.key(0),
        "here": jnp.ones(3),
        "number": 1.0,
    }
    assert diverged(list(leaves), list(leaves.values())) == [
        f"whole, one odd: another copy on device {ids[2]}",
        f"rows, one copy: another copy on device {ids[3]}",
    ]


@pytest.mark.parametrize("what", ("params", "masks", "neither"))
def test_check_finds_replicas_that_have_diverged(what):
    params = {"w": np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 4), "bias": np.ones(4)}
    tx = optax.chain(optax.sgd(0.5), jaxprune.prune(jaxprune.one_shot_schedule(0.5)))
    _, state, params = stepper(tx)(params, tx.init(params), params)
    params, state = jax.tree.map(lambda x: spread(np.asarray(x), P()), (params, state))
    odd = [jax.devices()[3].id]
    if what == "params":
        params["bias"] = spread(np.ones(4), P(), odd)
    if what == "masks":
        masks = state[1].masks | {"w": spread(np.asarray(state[1].masks["w"]), P(), odd)}
        state = (state[0], state[1]._replace(masks=masks))
    if what == "neither":
        jaxprune.check(params, state)
        return
    name = {"params": "bias", "masks": "prune state 0/masks/w"}[what]
    with pytest.raises(ValueError, match=rf"^{name}: .*device 3.*pmean.*leave out axis_name"):
        jaxprune.check(params, state)


@dataclasses.dataclass
class Settings:
    low: float


def scaled(x, low, high):
    return x


ARGUMENTS = {
    "number": lambda low: low,
    "list": lambda low: [low, "x"],
    "dict": lambda low: {"low": low, "f": scaled},
    "partial": lambda low: functools.partial(scaled, low=low, high=1.0),
    "dataclass": lambda low: Settings(low),
    "array": lambda low: np.where(np.arange(2_000) == 1_000, low, 1.0),
}


@pytest.mark.parametrize("make", ARGUMENTS.values(), ids=ARGUMENTS)
def test_the_digest_of_arguments_depends_on_their_values_alone(make):
    assert digest(make(0.5)) == digest(make(0.5)) != digest(make(0.25))


def test_the_digest_does_not_depend_on_the_order_of_names_or_on_addresses():
    first, second = (functools.partial(scaled, **kw) for kw in ({"low": 1, "high": 2},) * 2)
    swapped = functools.partial(scaled, **{"high": 2, "low": 1})
    assert digest(first) == digest(second) == digest(swapped)
    assert digest(object()) == digest(object())


@pytest.fixture
def agree(monkeypatch):
    """Whether two processes agree after they have traced these settings."""
    records = [{}, {}]
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def become(process):
        monkeypatch.setattr(agreement, "_recorded", records[process])

    def error_in(process, n_states):
        become(process)
        try:
            check_remembered([TREE] * n_states)
        except ValueError as error:
            return str(error)
        return ""

    def do_agree(first, second, n_states=1):
        for process, traced in enumerate((first, second)):
            become(process)
            for settings in traced:
                remember(TREE, settings)
        gathered = [set(record.get(TREE, ())) for record in records]
        monkeypatch.setattr(agreement, "_all_recorded", lambda tree: gathered)
        error, other = (error_in(process, n_states) for process in range(2))
        assert error == other
        if error:
            assert_says(error, "prune was given different arguments", "process 1 of 2 differs")
        return not error

    return do_agree


@pytest.mark.parametrize(
    ("own", "peer", "n_states", "expected"),
    [
        ("", "", 1, True),
        ("a", "a", 1, True),
        ("a", "b", 1, False),
        ("", "a", 1, True),  # this process has restored the state
        ("ab", "a", 1, True),  # it has also looked at another candidate
        ("ab", "ac", 1, True),
        ("ab", "cd", 1, False),
        ("ab", "ba", 2, True),
        ("ab", "ac", 2, False),  # the second transformation of a chain differs
        ("abx", "aby", 2, True),
        ("a", "a", 2, True),  # one transformation, for two networks
    ],
)
def test_processes_agree_with_as_many_settings_in_common_as_there_are_states(
    own, peer, n_states, expected, agree
):
    assert agree(own, peer, n_states) == expected


def test_only_what_was_traced_since_all_agreed_is_compared(agree):
    assert agree("a", "a")
    assert agree("", "")
    assert agree("x", ""), "only looked at"
    assert agree("b", "b"), "the next run"
    assert not agree("b", "c"), "a mistake in a later run"
    assert not agree("", ""), "nothing has changed"
    assert agree("", "b"), "built anew in the process that the error names"
    assert agree("d", "d")


@pytest.mark.parametrize("function", ("check", "check_agreement"))
def test_where_the_exchange_fails_a_note_names_the_function_that_all_must_call(
    function, monkeypatch
):
    def fail(x):
        raise RuntimeError("another task died")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", fail)
    calls = {
        "check": lambda: check_remembered([TREE]),
        "check_agreement": lambda: jaxprune.check_agreement(0.5),
    }
    with pytest.raises(RuntimeError, match="another task died") as error:
        calls[function]()
    [note] = error.value.__notes__
    assert_says(note, f"jaxprune.{function}", "all 2 processes", "jax.process_index() == 0")
