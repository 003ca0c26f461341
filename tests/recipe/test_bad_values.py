"""Arguments of the right type whose values make no sense, alone or together."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune
from bad_input import ADAM, HALF, assert_error, case, init, params, start
from helpers import ones


def mlp(tree, x):
    return jax.nn.relu(x @ tree["a"]) @ tree["c"]


LAYERS = {"a": ones(4, 8), "c": ones(8, 4)}


def rigl(**options):
    return jaxprune.rigl(0.5, 4, inner=ADAM, **options)


class Slotted:
    """A score of which JAX can't keep a weak reference, like the functions of NumPy."""

    __slots__ = ()

    def __call__(self, *args):
        raise AssertionError("must not be called")


def by_groups(**options):
    groups = jaxprune.channel_groups(mlp, LAYERS, ones(2, 4))
    return init(LAYERS, structure=groups, include=tuple(groups), **options)


VALUES = [
    case("nm_keeps_more", lambda: jaxprune.NM(5, 4), ValueError, ("NM: n", "5 of m=4", "NM(2, 4)")),
    case("nm_keeps_none", lambda: jaxprune.NM(0, 4), ValueError, ("NM: n", "0 of m=4", "NM(2, 4)")),
    *(
        case(name, call, TypeError, ("score:", "Slotted", "a function of Python"))
        for name, call in (
            ("slotted_score", lambda: jaxprune.prune(HALF, score=Slotted())),
            (
                "slotted_sum",
                lambda: jaxprune.prune(HALF, score=jaxprune.Accumulated("s", Slotted())),
            ),
            ("slotted_top", lambda: jaxprune.topk_mask(ones(4), 2, score=Slotted())),
        )
    ),
    case("no_block", lambda: jaxprune.Block(()), TypeError, ("Block: shape", "()", "(4, 4)")),
    case("block_number", lambda: jaxprune.Block(4), TypeError, ("Block: shape", "4", "(4, 4)")),
    case(
        "empty_block",
        lambda: jaxprune.Block((0, 4)),
        ValueError,
        ("Block: shape", "(0, 4)", ("lengths of at least 1", "Pass a shape such as (1, 4)")),
    ),
    case(
        "block_of_three_axes",
        lambda: jaxprune.plan(params(), 0.5, structure=jaxprune.Block((2, 2, 2))),
        ValueError,
        ("w:", ("at least 3 axes", "(2, 4)"), ("exclude='w'", "structure={'w': ...}")),
    ),
    case(
        "slices_of_nothing",
        lambda: jaxprune.per_slice({}),
        TypeError,
        ("per_slice: rules", "{}", '{".*layers/.*": 0}'),
    ),
    case(
        "slices_of_a_number",
        lambda: jaxprune.per_slice(3),
        TypeError,
        ("per_slice: rules", "3", '{".*layers/.*": 0}'),
    ),
    case(
        "slices_spread_by_a_name",
        lambda: jaxprune.per_slice("w", "erk"),
        TypeError,
        ("per_slice: distribution", "'erk'", "jaxprune.erk"),
    ),
    case(
        "density_spread_by_a_number",
        lambda: jaxprune.min_density(0.1, 3),
        TypeError,
        ("min_density: distribution", "3", "jaxprune.erk"),
    ),
    case(
        "density_and_distribution_swapped",
        lambda: jaxprune.min_density(jaxprune.global_pool, 0.05),
        TypeError,
        ("min_density: density", "global_pool", "min_density(0.05, jaxprune.global_pool)"),
    ),
    case(
        "a_density_that_is_a_distribution_with_a_floor",
        lambda: jaxprune.min_density(jaxprune.min_density(0.1, jaxprune.erk)),
        TypeError,
        (
            "min_density: density",
            "min_density(0.1, erk)",
            "min_density(0.05, jaxprune.global_pool)",
        ),
    ),
    case(
        "slices_in_one_pool",
        lambda: jaxprune.per_slice("w", jaxprune.min_density(0.1, jaxprune.global_pool)),
        ValueError,
        ("per_slice:", "min_density(0.1, global_pool)", "pass the distribution itself"),
    ),
    case(
        "slices_along_a_missing_axis",
        lambda: init(params(), distribution=jaxprune.per_slice({"w": 5})),
        ValueError,
        ("w:", ("axis 5", "(2, 4)"), "Change the axis"),
    ),
    case(
        "slices_of_coupled_leaves",
        lambda: by_groups(distribution=jaxprune.per_slice("a")),
        ValueError,
        ("a:", ("several leaves", "per_slice"), "Leave the leaf out of one of them"),
    ),
    case(
        "drop_fraction",
        lambda: rigl(drop_fraction=2),
        ValueError,
        ("drop_fraction", "got 2", "such as 0.3"),
    ),
    case(
        "drop_fraction_string",
        lambda: rigl(drop_fraction="x"),
        TypeError,
        ("drop_fraction", "'x'", "Pass a Python float"),
    ),
    case(
        "rigl_in_one_pool",
        lambda: rigl(distribution=jaxprune.global_pool),
        ValueError,
        ("rigl:", "global_pool", "jaxprune.erk"),
    ),
    case(
        "rigl_swaps_groups",
        lambda: rigl(structure=jaxprune.NM(2, 4)),
        ValueError,
        ("rigl:", "NM groups", "prune(..., structure=NM(n, m))"),
    ),
    case(
        "rigl_grows_by_a_sum",
        lambda: rigl(grow=jaxprune.movement),
        ValueError,
        ("rigl: grow", "movement", "jaxprune.gradient_magnitude"),
    ),
    case(
        "set_in_one_pool",
        lambda: jaxprune.set_(0.5, 4, inner=ADAM, distribution=jaxprune.global_pool),
        ValueError,
        ("set_:", "global_pool", "jaxprune.erk"),
    ),
    case(
        "static_sparse_groups",
        lambda: jaxprune.static_sparse(0.5, inner=ADAM, structure=jaxprune.NM(2, 4)),
        ValueError,
        ("static_sparse:", "NM groups", "prune(..., structure=NM(n, m))"),
    ),
    case(
        "static_sparse_without_weights",
        lambda: jaxprune.static_sparse(1, inner=ADAM),
        ValueError,
        ("sparsity is a fraction", "got 1", "such as 0.99"),
    ),
    case(
        "gradients_of_another_model",
        lambda: jaxprune.prune_params(params(), 0.5, grads={"w": params()["w"]}),
        ValueError,
        ("prune_params: grads", ("b, n, w", "got w"), "with respect to these params"),
    ),
    case(
        "sensitivity_of_other_gradients",
        lambda: jaxprune.sensitivity(
            lambda p: jnp.sum(p["w"]), params(), [0.5], grads={"w": params()["w"]}
        ),
        ValueError,
        ("sensitivity: grads", ("b, n, w", "got w"), "with respect to these params"),
    ),
    case(
        "sensitivity_under_jit",
        lambda: jax.jit(lambda p: jaxprune.sensitivity(lambda p: jnp.sum(p["w"]), p, [0.5]))(
            params()
        ),
        TypeError,
        ("sensitivity:", "traced value", "outside jit"),
        marks=pytest.mark.skip_in("disable_jit", reason="nothing is traced"),
    ),
    case(
        "check_under_jit",
        lambda: jax.jit(jaxprune.check)(params(), start()),
        TypeError,
        ("check:", "traced value", "outside jit"),
        marks=pytest.mark.skip_in("disable_jit", reason="nothing is traced"),
    ),
    case(
        "a_role_that_is_a_number",
        lambda: jaxprune.plan(params(), 0.5, roles={"w": ("in", 7)}),
        TypeError,
        ("roles['w']", "got 7", '("in", "out")'),
    ),
    case(
        "roles_of_a_number",
        lambda: jaxprune.AxisRoles({3: ("in", "out")}),
        TypeError,
        ("AxisRoles: roles", "got 3", "'fc/kernel'"),
    ),
    case(
        "splice_into_two_optimizers",
        lambda: jaxprune.splice(
            optax.chain(ADAM, optax.sgd(0.1), jaxprune.prune(HALF)), params(), ADAM.init(params())
        ),
        ValueError,
        ("0:", ("ScaleByAdamState", "EmptyState"), "optimizer.init(params)"),
    ),
    case(
        "splice_into_another_wrapper",
        lambda: jaxprune.splice(
            optax.MultiSteps(optax.chain(ADAM, jaxprune.prune(HALF)), 2),
            params(),
            ADAM.init(params()),
        ),
        ValueError,
        ("(root):", ("ScaleByAdamState", "MultiStepsState"), "optimizer.init(params)"),
    ),
    case(
        "upgrade_of_two_arrays_for_one",
        lambda: jaxprune.upgrade_state(
            jaxprune.prune(HALF), params(), {**start()._asdict(), "thresholds": [ones(2), ones(2)]}
        ),
        ValueError,
        ("thresholds:", ("list", "float32[3]"), "pass the params of that run"),
    ),
    case(
        "save_inputs_under_jit",
        lambda: jax.jit(lambda x: jaxprune.save_inputs("a", x))(
            jaxprune.layer_inputs(mlp, LAYERS, ones(2, 4))
        ),
        TypeError,
        ("save_inputs: inputs", "traced values", "outside jit"),
        marks=pytest.mark.skip_in("disable_jit", reason="nothing is traced"),
    ),
    case(
        "wanda_kernel_of_three_axes",
        lambda: jaxprune.wanda_kernel(ones(2, 4, 4), ones(3, 4), 0.5),
        ValueError,
        ("kernel:", "(2, 4, 4)", ("jaxprune.wanda", "roles=")),
    ),
]


@pytest.mark.parametrize("call, kind, parts", VALUES)
def test_an_error_about_a_value_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)
