"""Values that come from the dictionaries and lists of libraries for configurations."""

from collections.abc import Sequence

import jax.numpy as jnp
import pytest

import jaxprune
from bad_input import HALF
from helpers import says

PARAMS = {"fc": {"kernel": jnp.arange(32.0).reshape(4, 8), "bias": jnp.ones(8)}}


class ConfigList(Sequence):
    """A list as in OmegaConf: a sequence, but neither a list nor a tuple."""

    def __init__(self, *items):
        self.items = items

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


class ConfigDict:
    """A dictionary as in ml_collections: with items, but no mapping."""

    def __init__(self, **fields):
        self.fields = fields

    def items(self):
        return self.fields.items()

    def keys(self):
        return self.fields.keys()

    def __getitem__(self, key):
        return self.fields[key]


def test_lists_of_configurations_are_lists():
    assert jaxprune.Block(ConfigList(1, 4)) == jaxprune.Block((1, 4))
    targets = ConfigList(0.25, 0.5)
    schedule = jaxprune.SparsitySchedule(0, 10, 10, (0.25, 0.5))
    assert jaxprune.SparsitySchedule(0, 10, 10, targets) == schedule
    loss = lambda params: jnp.sum(params["fc"]["kernel"] ** 2)
    table = jaxprune.sensitivity(loss, PARAMS, ConfigList(0.25, 0.5))
    assert table == jaxprune.sensitivity(loss, PARAMS, (0.25, 0.5))
    rules = dict(structure=jaxprune.NM(1, 2), exclude=ConfigList(".*bias"))
    plans = [
        jaxprune.plan(PARAMS, 0.5, roles={"fc/.*": roles}, **rules)
        for roles in (ConfigList("in", "out"), ("in", "out"))
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("argument", ("overrides", "structure", "roles"))
def test_dictionaries_that_are_no_mappings_are_errors_that_say_what_to_pass(argument):
    values = {"overrides": 0.5, "structure": jaxprune.NM(1, 2), "roles": ("in", "out")}
    config = ConfigDict(**{".*kernel": values[argument]})
    with pytest.raises(TypeError, match=says(argument, "dict(...)", "ConfigDict")):
        jaxprune.prune(HALF, **{argument: config})
    jaxprune.prune(HALF, **{argument: dict(config)}).init(PARAMS)
