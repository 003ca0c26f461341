"""Arguments that several public functions share agree in name, order, default and annotation."""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune
from jaxprune._transform.recorded import settings_of

EMPTY = inspect.Parameter.empty
SGD = optax.sgd(0.1)


def parameters(name):
    return dict(inspect.signature(getattr(jaxprune, name)).parameters)


# Function, the function whose arguments it repeats, the arguments that only it has, and those whose
# default or annotation differs on purpose.
TABLE = {
    "plan": ("prune", ("params",), ("schedule",)),
    "prune_params": ("prune", ("params", "sparsity", "grads"), ("score",)),
    "rigl": (
        "prune",
        ("final_sparsity", "end_step", "every", "drop_fraction", "key", "grow"),
        ("inner", "distribution"),
    ),
    "set_": ("rigl", (), ()),
    "static_sparse": ("rigl", ("sparsity",), ()),
}
MISSING = {  # what the function does not repeat
    "plan": (),
    "prune_params": ("schedule", "inner", "packed", "regrow", "axis_name"),
    "rigl": ("schedule", "score", "packed", "regrow", "ties", "seed", "axis_name"),
    "set_": ("grow",),
    "static_sparse": ("final_sparsity", "end_step", "every", "drop_fraction", "grow"),
}


@pytest.mark.parametrize("name", TABLE)
def test_shared_arguments_agree(name):
    model, own, different = TABLE[name]
    these, of_model = parameters(name), parameters(model)
    shared = [argument for argument in these if argument not in own]
    assert shared == [argument for argument in of_model if argument not in MISSING[name]]
    for argument in shared:
        assert these[argument].kind == of_model[argument].kind, argument
        if argument not in different:
            assert these[argument] == of_model[argument], argument


def test_signatures_differ_only_where_it_is_on_purpose():
    prune, rigl = parameters("prune"), parameters("rigl")
    assert prune["inner"].default is None
    assert parameters("prune_params")["score"].default is prune["score"].default  # no sums there
    assert rigl["inner"].default is EMPTY  # whose moments would be reset?
    assert prune["distribution"].default is jaxprune.uniform
    assert rigl["distribution"].default is jaxprune.erk
    assert rigl["distribution"].annotation == prune["distribution"].annotation
    assert parameters("plan")["schedule"].default is EMPTY


GIVEN = {
    "every": 7,
    "drop_fraction": 0.5,
    "include": "a",
    "exclude": "b",
    "overrides": {"a": 0.25},
    "distribution": jaxprune.uniform,
    "structure": jaxprune.Channel(),
    "roles": {"a": ("in", "out")},
}
AS_RIGL = {  # the function, and the same by `rigl`
    "set_": (
        lambda **given: jaxprune.set_(0.5, 200, inner=SGD, **given),
        lambda **given: jaxprune.rigl(0.5, 200, inner=SGD, grow=jaxprune.random_score, **given),
    ),
    "static_sparse": (
        lambda **given: jaxprune.static_sparse(0.5, inner=SGD, **given),
        lambda **given: jaxprune.rigl(0.5, 0, inner=SGD, every=1, drop_fraction=0.0, **given),
    ),
}
PASSED_ON = [(name, arg) for name in AS_RIGL for arg in GIVEN if arg in parameters(name)]


@pytest.mark.parametrize(("name", "argument"), PASSED_ON)
def test_every_argument_is_passed_on(name, argument):
    make, by_rigl = AS_RIGL[name]
    given = {argument: GIVEN[argument]}
    assert settings_of(make(**given)) == settings_of(by_rigl(**given))
    assert settings_of(make(**given)) != settings_of(make())


@pytest.mark.parametrize("name", AS_RIGL)
def test_the_key_is_passed_on(name):
    params, key = {"a": jnp.ones((8, 8))}, jax.random.key(7)
    masks = [tx.init(params).masks["a"] for tx in (make(key=key) for make in AS_RIGL[name])]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != AS_RIGL[name][0]().init(params).masks["a"]).any()
