"""Updates, params and states that do not fit each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune
from bad_input import HALF, Tensor, assert_error, case, init, params, start, update
from helpers import ones


def with_masks(**masks):
    return start()._replace(masks={**start().masks, **masks})


UPDATES = [
    case(
        "params_and_state_swapped",
        lambda: jaxprune.prune(HALF).update(params(), params(), start()),
        TypeError,
        ("jaxprune.prune", "got the state", "tx.update(updates, state, params)"),
    ),
    case(
        "no_params",
        lambda: jaxprune.prune(HALF).update(params(), start()),
        ValueError,
        ("jaxprune.prune", None, "tx.update(updates, state, params)"),
    ),
    case(
        "a_score_that_adds_up_and_a_state_of_another_score",
        lambda: jaxprune.prune(HALF, score=jaxprune.movement, inner=optax.sgd(0.1)).update(
            params(), start(), params()
        ),
        ValueError,
        ("score:", ("movement", "no sums"), "jaxprune.upgrade_state(tx, params, opt_state)"),
    ),
    case(
        "update_none_at_a_pruned_leaf",
        lambda: update({**params(), "w": None}),
        ValueError,
        ("w:", "None", "exclude='w'"),
    ),
    case(
        "update_of_another_shape",
        lambda: update({**params(), "w": ones(4, 2)}),
        ValueError,
        ("w:", ("update", "(4, 2)", "(2, 4)"), "gradients"),
    ),
    case(
        "update_without_a_leaf",
        lambda: update({"w": ones(2, 4), "n": ones(3)}),
        ValueError,
        ("jaxprune.prune", ("updates", "params have b"), "gradients"),
    ),
    case(
        "update_with_another_leaf",
        lambda: update({**params(), "c": {"kernel": ones(2, 2)}}),
        ValueError,
        ("jaxprune.prune", "updates have c/kernel", "gradients"),
    ),
    case(
        "update_nested_deeper",
        lambda: update({**params(), "w": {"kernel": ones(2, 4)}}),
        ValueError,
        ("jaxprune.prune", ("params have w", "updates have w/kernel"), "gradients"),
    ),
    case(
        "update_in_another_container",
        lambda: jaxprune.prune(HALF).update(
            (ones(2, 4), ones(4)), init([ones(2, 4), ones(4)]), [ones(2, 4), ones(4)]
        ),
        ValueError,
        ("jaxprune.prune", ("updates", "paths"), "gradients"),
    ),
    case(
        "params_of_another_model",
        lambda: update({"v": ones(2, 4)}, tree={"v": ones(2, 4)}),
        ValueError,
        ("jaxprune.prune", ("params have v", "masks", "b, n, w"), "the params"),
    ),
    case(
        "inner_that_loses_a_leaf",
        lambda: update(inner=optax.stateless(lambda updates, params: {"w": updates["w"]})),
        ValueError,
        (("jaxprune.prune", "`inner`"), "params have b, n", "gradients"),
    ),
    case(
        "state_of_a_chain",
        lambda: update(state=(start(), optax.EmptyState())),
        TypeError,
        ("jaxprune.prune", ("PruneState", "tuple"), ("init", "update", "tx.init(params)")),
    ),
    case(
        "state_restored_as_a_dict",
        lambda: update(state=start()._asdict()),
        TypeError,
        ("jaxprune.prune", ("PruneState", "dict"), ("init", "update", "tx.init(params)")),
    ),
    case(
        "masks_of_another_shape",
        lambda: update(state=with_masks(w=jnp.ones((4, 2), jnp.uint8))),
        ValueError,
        ("w:", ("mask", "(4, 2)", "(2, 4)"), "model"),
    ),
    case(
        "masks_of_another_shape_at_a_leaf_that_is_not_pruned",
        lambda: update(state=with_masks(b=jnp.ones((5,), jnp.uint8))),
        ValueError,
        ("b:", ("mask", "(5,)", "(4,)"), "model"),
    ),
    case(
        "masks_without_a_leaf",
        lambda: update(state=with_masks(w=None)),
        ValueError,
        ("jaxprune.prune", ("masks", "params have w"), "the params"),
    ),
    case(
        "thresholds_of_another_model",
        lambda: update(state=start()._replace(thresholds=jnp.zeros((5,), jnp.float32))),
        ValueError,
        ("thresholds", ("(5,)", "3 leaves"), "model"),
    ),
    case(
        "inner_that_changes_a_shape",
        lambda: update(
            inner=optax.stateless(lambda updates, params: {**updates, "w": updates["w"][0]})
        ),
        ValueError,
        (("w:", "`inner`"), ("(4,)", "(2, 4)"), "gradients"),
    ),
    case(
        "restored_step_of_floats",
        lambda: update(state=start()._replace(prune_step=jnp.zeros((), jnp.float32))),
        ValueError,
        ("prune_step", ("int32", "float32 of shape ()"), "tx.init(params)"),
    ),
    case(
        "float0_gradients",
        lambda: update({**params(), "w": np.zeros((2, 4), jax.dtypes.float0)}),
        ValueError,
        ("w:", "float0", "exclude='w'"),
    ),
    case(
        "gradients_of_another_library",
        lambda: update({**params(), "w": Tensor()}),
        TypeError,
        ("w:", "torch.float32", "numpy()"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", UPDATES)
def test_an_error_in_an_update_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)


def test_a_missing_gradient_is_fine_where_nothing_is_pruned():
    updates, state = update({**params(), "b": None})
    assert updates["b"] is None
    assert jaxprune.get_masks(state)["w"].tolist() == [[False] * 4, [True] * 4]


def test_an_nnx_optimizer_of_all_variables_is_told_to_take_params():
    model = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, jaxprune.prune(HALF, include="scale"), wrt=nnx.Variable)
    grads = nnx.state(model, nnx.Param)
    with pytest.raises(ValueError, match=r"the params have mean, var, .*wrt=nnx.Param"):
        optimizer.update(model, grads)


@pytest.mark.filterwarnings("ignore:.*seed:DeprecationWarning")
def test_gradients_of_single_examples_need_the_optimizer_in_front():
    """`optax.contrib.dpsgd` takes one gradient for each example, which `prune` can't mask."""
    params = {"kernel": jnp.arange(1.0, 9.0).reshape(2, 4), "bias": jnp.ones(4)}
    grads = jax.tree.map(lambda p: jnp.stack([p] * 6), params)
    private, schedule = optax.contrib.dpsgd(0.1, 1.0, 0.1, 0), jaxprune.one_shot_schedule(0.5)
    inside = jaxprune.prune(schedule, inner=private)
    with pytest.raises(ValueError, match=r"kernel: .*\(6, 2, 4\).*optax\.chain\(dpsgd"):
        inside.update(grads, inside.init(params), params)
    tx = optax.chain(private, jaxprune.prune(schedule))
    updates, state = tx.update(grads, tx.init(params), params)
    jaxprune.check(optax.apply_updates(params, updates), state, done=True)
