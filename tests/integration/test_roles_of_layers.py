"""The table of real layers, pruned by the roles of their axes: N:M patterns and ERK densities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from real_layers import LAYERS

import jaxprune
from helpers import ones, random_params
from jaxprune import NM, AxisRoles
from jaxprune._base.paths import leaves_with_paths


def table():
    """The shape and the roles of every leaf in the table that has roles."""
    shapes, roles = {}, {}
    for name, make in LAYERS.items():
        layer = make()
        paths, leaves, _ = leaves_with_paths(layer.variables)
        shape_of = dict(zip(paths, leaves, strict=True))
        for path, words in layer.roles.items():
            shapes[f"{name}/{path}"] = tuple(shape_of[path].shape)
            roles[f"{name}/{path}"] = tuple(words.split())
    return shapes, roles


SHAPES, ROLES = table()


def lengths(path, *names):
    """The lengths of the axes of a leaf that have one of these roles."""
    return [n for n, role in zip(SHAPES[path], ROLES[path], strict=True) if role in names]


def test_the_pattern_lies_along_the_summed_axes_of_every_layer():
    structure = {}
    for path in SHAPES:
        m = next((m for m in (4, 2) if math.prod(lengths(path, "in")) % m == 0), None)
        if m is not None:
            structure[path] = NM(m // 2, m)
    assert len(structure) > len(SHAPES) / 2
    params = random_params(SHAPES) | {"bias": ones(6)}
    prune = jax.jit(
        lambda p: jaxprune.prune_params(
            p, 0.5, structure=structure, include=tuple(structure), roles=AxisRoles(ROLES)
        )
    )
    _, masks = prune(params)
    for path, pattern in structure.items():
        inputs = [axis for axis, role in enumerate(ROLES[path]) if role == "in"]
        others = [axis for axis in range(len(SHAPES[path])) if axis not in inputs]
        groups = np.transpose(masks[path], [*others, *inputs]).reshape(-1, pattern.m)
        assert np.all(groups.sum(1) == pattern.n), path
    assert masks["bias"].all()


def test_every_layer_has_the_erk_density_of_its_matrices():
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()}
    matrices, leaf_of = {}, {}
    for path in SHAPES:
        fan = (math.prod(lengths(path, "in")), math.prod(lengths(path, "out")))
        for i in range(math.prod(lengths(path, "stack"))):
            name = f"{path}/{i:03d}"
            shape = (*lengths(path, "window"), *fan)
            matrices[name], leaf_of[name] = jax.ShapeDtypeStruct(shape, jnp.float32), path
    options = dict(distribution=jaxprune.erk, include=".*")
    by_matrix = jaxprune.plan(matrices, 0.7, **options)
    expected = dict.fromkeys(SHAPES, 0)
    for leaf in by_matrix.leaves:
        expected[leaf_of[leaf.path]] += leaf.n_zero
    report = jaxprune.plan(params, 0.7, roles=AxisRoles(ROLES), **options)
    got = {leaf.path: leaf.n_zero for leaf in report.leaves}
    assert {p for p in got if abs(got[p] - expected[p]) > 1} == set()  # by largest remainder
    assert sum(got.values()) == sum(expected.values())
    assert [leaf.roles for leaf in report.leaves] == [ROLES[leaf.path] for leaf in report.leaves]
