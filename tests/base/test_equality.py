"""Results that hold arrays are equal where their values are, and have a hash that fits."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from helpers import ones
from jaxprune._base.same_values import same_values

LAYERS = {"w": ones(4, 3), "b": ones(3)}


def table(scale=1.0):
    return jaxprune.sensitivity(lambda p: scale * jnp.sum(p["w"]), LAYERS, (0.25, 0.5))


def packed(scale=1.0):
    return jaxprune.pack_matrix(scale * np.eye(4, dtype=np.float32), block=(1, 2))


def inputs(scale=1.0):
    return jaxprune.layer_inputs(lambda p, x: x @ p["w"], LAYERS, scale * ones(2, 4))


RESULTS = {"Sensitivity": table, "PackedMatrix": packed, "LayerInputs": inputs}
results = pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS)


@results
def test_results_with_the_same_values_are_equal_and_have_the_same_hash(make):
    one = make()
    for other in (make(), copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert one == other
        assert (one != other) is False
        assert hash(one) == hash(other)
        assert len({one, other}) == 1


@results
def test_results_with_other_values_or_of_another_type_are_not_equal(make):
    assert make() != make(2.0)
    for other in (None, 0, {}, (), "x"):
        assert (make() == other) is False
    assert len({make(), make(2.0)}) == 2


def test_every_field_of_a_table_counts():
    one = table()
    changed = {
        "rules": ("v",),
        "sparsities": (0.25, 0.75),
        "losses": one.losses + 1,
        "dense_loss": 0.0,
        "sizes": one.sizes + 1,
        "n_zero": one.n_zero + 1,
        "grouped": True,
        "fixed": True,
    }
    for name, value in changed.items():
        assert one != dataclasses.replace(one, **{name: value}), name
    assert set(changed) == {field.name for field in dataclasses.fields(one)}


def test_tables_with_a_loss_that_is_not_a_number_are_equal():
    with_nan = [dataclasses.replace(table(), dense_loss=float("nan")) for _ in range(2)]
    assert with_nan[0] == with_nan[1]


def test_the_layout_of_a_packed_matrix_counts():
    kernel = np.ones((4, 4), np.float32)
    one, other = (jaxprune.pack_matrix(kernel, block=(1, 2), batch=n) for n in (1, 8))
    assert one.rows_first != other.rows_first
    assert one != other


def test_roles_and_reasons_of_inputs_count():
    moments, roles = dict(inputs()), inputs().roles
    one = jaxprune.LayerInputs(moments, roles)
    assert one != jaxprune.LayerInputs(moments, jaxprune.AxisRoles({"w": ("out", "in")}))
    assert one != jaxprune.LayerInputs(moments, roles, {"b": "in no product"})
    assert one != jaxprune.LayerInputs({}, roles)


@pytest.mark.parametrize("make", (packed, inputs))
def test_equality_does_not_get_into_the_way_of_trees(make):
    one = make()
    again = jax.tree.map(lambda x: x, one)
    assert again == one
    placeholders = jax.tree.map(lambda x: object(), one)
    assert placeholders == placeholders
    assert placeholders != one
    shapes = jax.eval_shape(lambda: one)
    assert shapes != one
    assert isinstance(hash(shapes), int)
    seen = []
    jax.jit(lambda a, b: seen.append((a == a, a == b, len({a, b}))))(one, make())
    assert seen in ([(True, False, 2)], [(True, True, 1)])  # under disable_jit, they can be read
    assert jax.jit(lambda a: a)(one) == one


def test_arrays_that_cannot_be_read_are_only_the_same_as_themselves():
    x, y = jnp.ones(3), jnp.ones(3)
    assert same_values(x, y)
    assert not same_values(x, x.astype(jnp.bfloat16))
    assert not same_values(x, jnp.ones((3, 1)))
    assert same_values(jnp.ones(3, jnp.bfloat16), np.asarray(jnp.ones(3, jnp.bfloat16)))
    y.delete()
    assert same_values(y, y)
    assert not same_values(x, y)


def test_trees_that_hold_no_arrays_are_compared_leaf_by_leaf():
    """A packed matrix is a pytree, so shapes and shardings may be in the place of its arrays."""
    packed = jaxprune.pack_matrix(jnp.eye(4), block=(1, 2))
    other = jaxprune.pack_matrix(jnp.ones((4, 4)), block=(1, 2))
    shapes = lambda x: jax.eval_shape(lambda: x)
    assert shapes(packed) == shapes(packed)
    assert shapes(packed) != shapes(other)
    assert shapes(packed) != packed
    name = lambda x: jax.tree.map(lambda leaf: str(leaf.shape), x)
    assert name(packed) == name(packed)
    assert name(packed) != name(other)
