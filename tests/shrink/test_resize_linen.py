"""`resize_linen`: a module with the sizes of shrunk variables. Nothing is compiled.

That its `init` and `apply` fit the variables of all kinds of layers is tested in `test_shrink`.
"""

import flax
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState

import jaxprune
from bad_input import assert_error, case
from helpers import assert_says


class Block(nn.Module):
    """Attention and a feed-forward layer beside a residual stream, with batch statistics."""

    width: int = 8

    @nn.compact
    def __call__(self, x, *, train):
        norm = nn.BatchNorm(use_running_average=not train)
        x = x + nn.MultiHeadDotProductAttention(4)(norm(x))
        y = nn.Dense(2 * self.width)(x)
        return x + nn.Dense(self.width)(nn.gelu(y))


X = jnp.ones((2, 5, 8))
ATTENTION = "MultiHeadDotProductAttention_0"


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def variables_of(model, n_heads=4, n_hidden=16):
    """The shapes of the variables, with so many heads and units of the hidden layer."""
    whole = jax.eval_shape(lambda: model.init(jax.random.key(0), X, train=False))

    def cut(path, leaf):
        name, shape = jax.tree_util.keystr(path, simple=True, separator="/"), list(leaf.shape)
        for part, axis, n in (
            *((f"{ATTENTION}/{part}/kernel", 1, n_heads) for part in ("query", "key", "value")),
            *((f"{ATTENTION}/{part}/bias", 0, n_heads) for part in ("query", "key", "value")),
            (f"{ATTENTION}/out/kernel", 0, n_heads),
            ("Dense_0/kernel", 1, n_hidden),
            ("Dense_0/bias", 0, n_hidden),
            ("Dense_1/kernel", 0, n_hidden),
        ):
            if name.endswith(part):
                shape[axis] = n
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(cut, whole)


def plain(resized):
    return flax.core.unfreeze(resized.sizes)


def test_sizes_lists_what_to_write_into_the_code():
    small = variables_of(Block(), n_heads=2, n_hidden=5)
    resized = jaxprune.resize_linen(Block(), small, X, train=False)
    assert plain(resized) == {
        ATTENTION: {"num_heads": 2, "qkv_features": 4},
        "Dense_0": {"features": 5},
    }
    assert resized == jaxprune.resize_linen(Block(), small, X, train=False)
    assert hash(resized) == hash(jaxprune.resize_linen(Block(), small, X, train=False))


def test_a_model_that_kept_its_sizes_has_none_to_change():
    resized = jaxprune.resize_linen(Block(), variables_of(Block()), X, train=False)
    assert plain(resized) == {}


@pytest.mark.parametrize("train", (True, False))
def test_init_and_apply_have_the_smaller_shapes_in_training_too(train):
    small = variables_of(Block(), n_heads=1, n_hidden=3)
    resized = jaxprune.resize_linen(Block(), small, X, train=False)
    made = jax.eval_shape(lambda: resized.init(jax.random.key(0), X, train=train))
    assert shapes(made) == shapes(small)
    run = lambda v: resized.apply(v, X, train=train, mutable=["batch_stats"])
    outputs, statistics = jax.eval_shape(run, small)
    assert outputs.shape == X.shape
    assert shapes(statistics) == {"batch_stats": shapes(small["batch_stats"])}


def test_it_can_be_a_part_of_a_larger_module_and_of_a_train_state():
    small = variables_of(Block(), n_heads=2, n_hidden=5)
    resized = jaxprune.resize_linen(Block(), small, X, train=False)

    class Larger(nn.Module):
        block: nn.Module

        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(self.block(nn.Dense(8)(x), train=False))

    made = jax.eval_shape(Larger(resized).init, jax.random.key(0), X)
    assert shapes(made["params"]["block"]) == shapes(small["params"])
    assert jax.eval_shape(Larger(resized).apply, made, X).shape == (2, 5, 3)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), small["params"])
    state = TrainState.create(apply_fn=resized.apply, params=params, tx=optax.sgd(0.1))
    variables = {**small, "params": state.params}
    assert jax.eval_shape(lambda v: state.apply_fn(v, X, train=False), variables).shape == X.shape


def test_layers_that_are_attributes_or_made_in_setup_are_resized():
    class WithSetup(nn.Module):
        def setup(self):
            self.model = nn.Dense(6)  # a name that the wrapper must not use
            self.last = [nn.Dense(2)]

        def __call__(self, x):
            return self.last[0](self.model(x))

    layers = {
        "model": {"kernel": jnp.ones((8, 5)), "bias": jnp.ones(5)},
        "last_0": {"kernel": jnp.ones((5, 2)), "bias": jnp.ones(2)},
    }
    sequential = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(2)])
    renamed = {"layers_0": layers["model"], "layers_2": layers["last_0"]}
    for model, params in ((WithSetup(), layers), (sequential, renamed)):
        resized = jaxprune.resize_linen(model, {"params": params}, X)
        assert list(plain(resized).values()) == [{"features": 5}]
        made = jax.eval_shape(resized.init, jax.random.key(0), X)
        assert shapes(made) == {"params": shapes(params)}
        assert jax.eval_shape(resized.apply, made, X).shape == (2, 5, 2)
    assert sequential.layers[0].features == 6


def test_the_module_can_be_called_twice_and_in_a_scan():
    small = variables_of(Block(), n_heads=2, n_hidden=5)
    resized = jaxprune.resize_linen(Block(), small, X, train=False)

    class Repeated(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = resized.copy(name="block")
            x = block(block(x, train=False), train=False)
            step = nn.scan(
                lambda block, x, _: (block(x, train=False), None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=3,
            )
            return step(resized.copy(name="blocks"), x, None)[0]

    made = jax.eval_shape(Repeated().init, jax.random.key(0), X)
    assert shapes(made["params"]["block"]) == shapes(small["params"])
    stacked = jax.tree.map(lambda leaf: (3, *leaf.shape), small["params"])
    assert shapes(made["params"]["blocks"]) == stacked
    assert jax.eval_shape(Repeated().apply, made, X).shape == X.shape


def test_a_resized_model_can_be_resized_again():
    small = variables_of(Block(), n_heads=2, n_hidden=5)
    resized = jaxprune.resize_linen(Block(), small, X, train=False)
    smaller = variables_of(Block(), n_heads=1, n_hidden=5)
    run = lambda v: resized.apply(v, X, train=False)
    assert jax.eval_shape(run, smaller).shape == X.shape  # `shrink` runs it like this
    again = jaxprune.resize_linen(resized, smaller, X, train=False)
    assert again == jaxprune.resize_linen(Block(), smaller, X, train=False)


def test_a_size_that_is_written_into_the_code_is_an_error():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x) * self.param("scale", nn.initializers.ones, (4,))

    layer = {"kernel": jnp.ones((8, 2)), "bias": jnp.ones(2)}
    variables = {"params": {"Dense_0": layer, "scale": jnp.ones(2)}}
    error = r"resize_linen: model.apply fails .*ScopeParamShapeError.*\"scale\".*before shrink"
    with pytest.raises(ValueError, match=error):
        jaxprune.resize_linen(Scaled(), variables, X)


WRONG = [
    case(
        "swapped",
        lambda: jaxprune.resize_linen({"params": {}}, nn.Dense(2), X),
        TypeError,
        ("resize_linen: model", "'params'", "resize_linen(model, variables, x)"),
    ),
    case(
        "variables_that_are_no_arrays",
        lambda: jaxprune.resize_linen(nn.Dense(2), {"params": {"kernel": "w"}}, X),
        TypeError,
        ("resize_linen: variables: params/kernel", "'w'", "Pass"),
    ),
    case(
        "inputs_of_another_size",
        lambda: jaxprune.resize_linen(
            nn.Dense(2), {"params": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}, X
        ),
        ValueError,
        ("resize_linen: model.apply", ("ScopeParamShapeError", "kernel"), "inputs as for shrink"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", WRONG)
def test_an_error_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)


class Options(nn.Module):
    """A model with an option that a call needs, or that is True by default."""

    required: bool = True

    @nn.compact
    def __call__(self, x, train=None):
        if self.required and train is None:
            raise TypeError("__call__() missing 1 required positional argument: 'train'")
        train = train is None or train
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class OnlyDropout(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x))


@pytest.mark.parametrize(
    "model, problem",
    (
        (Options(), "missing 1 required positional argument: 'train'"),
        (Options(required=False), "ModifyScopeVariableError"),
        (OnlyDropout(), "InvalidRngError"),
    ),
    ids=("required", "statistics", "random"),
)
def test_an_option_of_inference_that_was_forgotten_is_named(model, problem):
    x = jnp.ones((1, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    with pytest.raises(ValueError, match="resize_linen: ") as error:
        jaxprune.resize_linen(model, variables, x)
    assert_says(str(error.value), problem, "resize_linen(model, variables, x, train=False)")
    jaxprune.resize_linen(model, variables, x, train=False)
