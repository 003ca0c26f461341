"""States and masks that the helpers and `check` reject."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune
from bad_input import ADAM, HALF, assert_error, case, half_pruned, init, params, start
from helpers import ones

MISPLACED = ("chain", "prune(schedule, inner=optimizer)", "jaxprune.apply_masks(params, opt_state)")
REPAIR = "jaxprune.apply_masks(params, opt_state)"


def moved(*positions):
    """The half-pruned params with other values at some places of the dropped row."""
    tree, state = half_pruned()
    w = np.array(tree["w"])
    for column, value in positions:
        w[0, column] = value
    with jax.debug_nans(False):  # it also raises for NaN in what is copied to a device
        return {**tree, "w": jnp.asarray(w)}, state


def nnx_optimizer():
    model = nnx.Linear(2, 4, rngs=nnx.Rngs(0))
    return nnx.Optimizer(model, jaxprune.prune(HALF), wrt=nnx.Param)


def two_prunes(tree=None):
    other = init(tree) if tree is not None else start()
    return (start(), other)


PRUNED_ADAM = jaxprune.prune(HALF, inner=ADAM)


def train_state():
    return TrainState.create(apply_fn=len, params=params(), tx=PRUNED_ADAM)


STATES = [
    case(
        "no_state",
        lambda: jaxprune.get_state(ADAM.init(params())),
        ValueError,
        ("prune state", "tuple", "tx.init(params)"),
    ),
    case(
        "no_state_but_params",
        lambda: jaxprune.get_masks(params()),
        ValueError,
        ("prune state", "dict", "tx.init(params)"),
    ),
    case(
        "no_state_for_metrics",
        lambda: jaxprune.metrics(None),
        ValueError,
        ("prune state", "NoneType", "tx.init(params)"),
    ),
    case(
        "two_states",
        lambda: jaxprune.get_state(two_prunes()),
        ValueError,
        ("prune states", "2", ("get_masks", "apply_masks")),
    ),
    case(
        "metrics_of_an_older_state",
        lambda: jaxprune.metrics(two_prunes()[0]._replace(progress=None)),
        ValueError,
        ("prune state", "progress", "upgrade_state"),
    ),
    case(
        "check_done_of_an_older_state",
        lambda: jaxprune.check(params(), two_prunes()[0]._replace(progress=None), done=True),
        ValueError,
        ("prune state", "progress", "upgrade_state"),
    ),
    case(
        "done_is_no_bool",
        lambda: jaxprune.check(params(), two_prunes()[0], done=1),
        TypeError,
        ("done", "1", "True or False"),
    ),
    case(
        "apply_masks_to_a_part_of_a_tree",
        lambda: jaxprune.apply_masks({"model": {"net": params()}}, {"w": ones(2, 4) > 0}),
        ValueError,
        ("w:", "model/net/w", "pass only the part 'model/net' of this tree"),
    ),
    case(
        "splice_a_model",
        lambda: jaxprune.splice(PRUNED_ADAM, nnx.Linear(2, 4, rngs=nnx.Rngs(0)), ADAM.init({})),
        TypeError,
        ("splice: params", "an NNX model", "nnx.state(model, nnx.Param)"),
    ),
    case(
        "splice_a_state_with_other_leaves",
        lambda: jaxprune.splice(PRUNED_ADAM, params(), ADAM.init({"other": ones(2, 4)})),
        ValueError,
        ("inner_state:", ("0/mu/other", "0/mu/w"), "optimizer.init(params)"),
    ),
    case(
        "upgrade_a_state_of_words",
        lambda: jaxprune.upgrade_state(jaxprune.prune(HALF), params(), ["w", {}, {}, {}, {}]),
        ValueError,
        ("prune_step:", ("'w'", "int32[]"), "Build tx"),
    ),
    case(
        "masks_of_two_models",
        lambda: jaxprune.get_masks(two_prunes({"v": ones(2, 4), "b": ones(4), "n": ones(3)})),
        ValueError,
        ("prune states", "trees", "one of these prune states"),
    ),
    case(
        "masks_of_two_shapes",
        lambda: jaxprune.get_masks(two_prunes({"w": ones(4, 4), "b": ones(4), "n": ones(3)})),
        ValueError,
        ("prune states", "trees", "one of these prune states"),
    ),
    case(
        "apply_unknown_path",
        lambda: jaxprune.apply_masks(params(), {"head": {"w": ones(2, 4)}}),
        ValueError,
        ("head/w:", "b, n, w", "jaxprune.prune"),
    ),
    case(
        "apply_to_other_params",
        lambda: jaxprune.apply_masks({f"w{i}": ones(2, 4) for i in range(10)}, start()),
        ValueError,
        ("b:", ("w0, w1, w2, w3, w4, w5, w6, w7,", "2 more"), "optimizer"),
    ),
    case(
        "apply_another_shape",
        lambda: jaxprune.apply_masks(params(), {"w": ones(4, 2)}),
        ValueError,
        ("w:", ("mask", "(4, 2)", "(2, 4)"), "model"),
    ),
    case(
        "apply_another_shape_at_the_root",
        lambda: jaxprune.apply_masks(ones(2, 4), ones(4, 2)),
        ValueError,
        ("(root):", ("mask", "(4, 2)", "(2, 4)"), "model"),
    ),
    case(
        "apply_nothing",
        lambda: jaxprune.apply_masks(params(), None),
        ValueError,
        ("mask", "NoneType", "jaxprune.prune"),
    ),
    case(
        "apply_a_state_without_masks",
        lambda: jaxprune.apply_masks(params(), optax.sgd(0.1).init(params())),
        ValueError,
        ("mask", "tuple", "jaxprune.prune"),
    ),
    case(
        "apply_the_state_of_another_optimizer",
        lambda: jaxprune.apply_masks(params(), optax.trace(0.9).init(params())),
        ValueError,
        ("trace/b:", "b, n, w", "jaxprune.prune"),
    ),
    case(
        "summarize_another_shape",
        lambda: jaxprune.summarize(params(), {"w": ones(3)}),
        ValueError,
        ("w:", ("mask", "(3,)", "(2, 4)"), "model"),
    ),
    case(
        "straight_through_another_shape",
        lambda: jaxprune.straight_through(
            {"fc": {"w": ones(2, 4)}, "b": ones(4)}, {"fc": {"w": ones(4)}, "b": ones(4)}
        ),
        ValueError,
        ("fc/w:", ("mask", "(4,)", "(2, 4)"), "jaxprune.get_masks(opt_state, params)"),
    ),
    case(
        "check_no_state",
        lambda: jaxprune.check(params(), ADAM.init(params())),
        ValueError,
        ("prune state", "tuple", "tx.init(params)"),
    ),
    case(
        "check_swapped",
        lambda: jaxprune.check(start(), params()),
        TypeError,
        ("check", "the optimizer state in the place of the params", "check(params, opt_state)"),
    ),
    case(
        "check_moved",
        lambda: jaxprune.check(*moved((0, 0.5), (2, -0.5))),
        ValueError,
        ("w:", "2 of 4", MISPLACED),
    ),
    case(
        "check_one_moved",
        lambda: jaxprune.check(*moved((0, 1e-45))),  # subnormal: XLA on CPU treats it as zero
        ValueError,
        ("w:", "1 of 4", MISPLACED),
    ),
    case(
        "check_nan",
        lambda: jaxprune.check(*moved((1, jnp.nan))),
        ValueError,
        ("w:", ("1 of 4", "finite"), REPAIR),
    ),
    case(
        "check_inf_and_moved",
        lambda: jaxprune.check(*moved((1, -jnp.inf), (2, 1.0), (3, jnp.nan))),
        ValueError,
        ("w:", ("3 of 4", "2", "finite"), REPAIR),
    ),
    case(
        "check_violations",
        lambda: jaxprune.check(
            half_pruned()[0], half_pruned()[1]._replace(violations=jnp.int32(3))
        ),
        ValueError,
        ("dropped weight", "3", MISPLACED),
    ),
    case(
        "check_other_params",
        lambda: jaxprune.check({"v": ones(2, 4)}, start()),
        ValueError,
        ("b:", "v", "optimizer"),
    ),
    case(
        "check_another_shape",
        lambda: jaxprune.check({**params(), "w": ones(4, 2)}, start()),
        ValueError,
        ("w:", ("mask", "(2, 4)", "(4, 2)"), "model"),
    ),
    case(
        "restored_without_a_target",
        lambda: jaxprune.get_masks({"0": start()._asdict()}),
        ValueError,
        ("prune state", ("dict", "0 has its fields"), "upgrade_state"),
    ),
    case(
        "an_nnx_optimizer_that_was_split",
        lambda: jaxprune.metrics(nnx.split(nnx_optimizer())[1]),
        ValueError,
        ("prune state", ("State", "has its fields"), "nnx.merge(graphdef, state)"),
    ),
    case(
        "straight_through_of_a_state",
        lambda: jaxprune.straight_through(params(), start()),
        ValueError,
        ("straight_through", ("masks/w", "b, n, w"), "jaxprune.get_masks(opt_state, params)"),
    ),
    case(
        "straight_through_swapped",
        lambda: jaxprune.straight_through(jaxprune.get_masks(start()), params()),
        TypeError,
        ("b:", "float32", "swap"),
    ),
    case(
        "apply_swapped",
        lambda: jaxprune.apply_masks(jaxprune.get_masks(start()), params()),
        TypeError,
        ("b:", "float32", "swap"),
    ),
    case(
        "apply_float_masks",
        lambda: jaxprune.apply_masks({"w": ones(2)}, {"w": ones(2)}),
        TypeError,
        ("w:", "float32", "mask != 0"),
    ),
    case(
        "apply_nan_masks",
        lambda: jaxprune.apply_masks({"w": ones(1)}, {"w": np.float32([np.nan])}),
        TypeError,
        ("w:", "float32", "mask != 0"),
    ),
    case(
        "apply_words",
        lambda: jaxprune.apply_masks({"w": 1.0}, {"w": "kept"}),
        TypeError,
        ("w:", "<U4", "mask != 0"),
    ),
    case(
        "set_the_params",
        lambda: jaxprune.set_masks(start(), params()),
        TypeError,
        ("b:", "float32", "swap"),
    ),
    case(
        "set_traced_masks",
        lambda: jax.jit(jaxprune.set_masks)(start(), jaxprune.get_masks(start())),
        ValueError,
        (None, ("counted on the host", "traced"), "outside the compiled function"),
        marks=pytest.mark.skip_in("disable_jit", reason="nothing is traced"),
    ),
    case(
        "summarize_a_file",
        lambda: jaxprune.summarize("model.zst"),
        TypeError,
        ("summarize: params", "'model.zst'", "jaxprune.load(path)"),
    ),
    case(
        "summarize_shapes",
        lambda: jaxprune.summarize({"w": jax.ShapeDtypeStruct((2,), jnp.float32)}),
        TypeError,
        ("summarize: w:", "ShapeDtypeStruct(shape=(2,), dtype=float32)", "jaxprune.plan"),
    ),
    *(
        case(
            f"{name}_{what}_as_params",
            call,
            TypeError,
            (
                f"{name}: params",
                "the state of an optimizer",
                ("state.params of a TrainState", "nnx.state(model, nnx.Param)"),
            ),
        )
        for what, value in (("state", start), ("train_state", train_state), ("nnx", nnx_optimizer))
        for name, call in (
            ("check", lambda value=value: jaxprune.check(value(), value(), done=True)),
            ("apply_masks", lambda value=value: jaxprune.apply_masks(value(), value())),
            ("get_masks", lambda value=value: jaxprune.get_masks(value(), value())),
        )
    ),
    case(
        "masks_of_a_dense_tree",  # passing them made `check` pass
        lambda: jaxprune.check(half_pruned()[1].masks, half_pruned()[1]),
        TypeError,
        ("w:", "uint8", "Pass the params"),
    ),
    case(
        "masks_of_a_restored_state",
        lambda: jaxprune.apply_masks({"masks": params(), "n": ones(2)}, params()),
        ValueError,
        (("b:", "masks/b"), "no param with this path", "Pass masks like the params"),
    ),
    case(
        "per_leaf",
        lambda: jaxprune.metrics(start(), per_leaf="yes"),
        TypeError,
        ("metrics: per_leaf", "'yes'", "True or False"),
    ),
    case(
        "splice_swapped",
        lambda: jaxprune.splice(params(), ADAM, ()),
        TypeError,
        ("splice: tx", "dict", "optax.chain(optimizer, jaxprune.prune(schedule))"),
    ),
    case(
        "splice_a_model",
        lambda: jaxprune.splice(optax.chain(ADAM, jaxprune.prune(HALF)), {"f": len}, ()),
        TypeError,
        ("splice: f:", "the function len", "eqx.filter(model, eqx.is_array)"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", STATES)
def test_an_error_about_a_state_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)


def test_states_that_mask_different_subtrees_are_merged():
    tree = {"fc": {"w": ones(2, 4), "b": ones(4)}, "head": {"w": ones(4, 2), "b": ones(2)}}
    hidden = {"fc": True, "head": False}  # one placeholder replaces all of `head`
    shown = {"fc": {"w": True, "b": True}, "head": {"w": True, "b": True}}
    tx = optax.chain(
        optax.masked(jaxprune.prune(HALF), hidden),
        optax.masked(jaxprune.prune(jaxprune.one_shot_schedule(0.25)), shown),
    )
    _, state = tx.update(tree, tx.init(tree), tree)
    masks = jaxprune.get_masks(state)
    assert jax.tree.structure(masks) == jax.tree.structure(tree)
    assert jax.tree.map(lambda m: int(jnp.sum(~m)), masks) == {
        "fc": {"w": 4, "b": 0},
        "head": {"w": 2, "b": 0},
    }
    merged = jaxprune.apply_masks(tree, state)
    jax.tree.map(lambda p, m: np.testing.assert_array_equal(p != 0, m), merged, masks)


CASTS = {
    "bfloat16": (jnp.bfloat16, jnp.floating),
    "float16": (jnp.float16, jnp.floating),
    "uint32": (jnp.uint32, jnp.signedinteger),
}
OF_CAST = {
    "prune": lambda: jaxprune.prune(jaxprune.cubic_schedule(0.75, 0, 4, 2), inner=ADAM),
    "list": lambda: jaxprune.prune([HALF, jaxprune.cubic_schedule(0.75, 0, 4, 2)]),
    "packed": lambda: jaxprune.prune(HALF, packed=True),
    "rigl": lambda: jaxprune.rigl(0.5, end_step=4, every=2, inner=optax.sgd(0.1)),
    "static_sparse": lambda: jaxprune.static_sparse(0.5, inner=optax.sgd(0.1)),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("tx", OF_CAST)
def test_a_state_that_was_cast_as_a_whole_prunes_as_before(tx, cast):
    """As users do who train in bfloat16. The error was that of a loop inside `update`."""
    dtype, kind = CASTS[cast]
    tx, start = OF_CAST[tx](), {"w": jnp.arange(1.0, 65.0).reshape(8, 8), "b": ones(3)}

    def run(state):
        params = start
        for _ in range(6):
            updates, state = jax.jit(tx.update)(start, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    is_cast = lambda x: jnp.issubdtype(x.dtype, kind)
    cast_state = jax.tree.map(lambda x: x.astype(dtype) if is_cast(x) else x, tx.init(start))
    params, state = run(cast_state)
    jaxprune.check(params, state, done=True)
    _, expected = run(tx.init(start))
    same = jax.tree.map(jnp.array_equal, jaxprune.get_masks(state), jaxprune.get_masks(expected))
    assert jax.tree.all(same)
    assert jaxprune.metrics(state) == jaxprune.metrics(expected)


@pytest.mark.parametrize("dtype", ("int8", "uint8", "int16", "float32"))
def test_a_step_that_could_not_count_on_is_refused(dtype):
    """An int8 would be -128 after 127."""
    tree, state = params(), start()
    state = state._replace(prune_step=state.prune_step.astype(dtype))
    with pytest.raises(ValueError, match=f"prune_step in the state must be an int32 .* {dtype}"):
        jaxprune.prune(HALF).update(tree, state, tree)


@pytest.mark.parametrize("reset_at", (5, 6))
@pytest.mark.parametrize("masked", (False, True))
def test_a_layer_that_is_reset_before_a_fire_is_explained(reset_at, masked):
    tx = jaxprune.prune(jaxprune.cubic_schedule(0.75, 2, 10, 2), inner=optax.sgd(0.01))
    normal = jax.random.normal
    tree = {"body": normal(jax.random.key(0), (8, 8)), "head": normal(jax.random.key(1), (8, 4))}
    tree["bias"] = ones(4)
    state = tx.init(tree)
    for t in range(14):
        if t == reset_at:
            tree |= {"head": normal(jax.random.key(2), (8, 4))}
            tree = jaxprune.apply_masks(tree, state) if masked else tree
        updates, state = tx.update(tree, state, tree)
        tree = optax.apply_updates(tree, updates)
    if reset_at == 6 and not masked:  # a fire
        with pytest.raises(ValueError, match="If you replaced weights, such as those of a layer"):
            jaxprune.check(tree, state, done=True)
        state = optax.tree.set(state, violations=jnp.int32(0))
    jaxprune.check(tree, state, done=True)
