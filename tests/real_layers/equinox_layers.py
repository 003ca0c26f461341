"""Layers of Equinox, whose weights are (out, in)."""

import equinox as eqx
import jax
import jax.numpy as jnp

from real_layers.table import KEY, Layer, layer, shape


def as_float32(leaf):
    """The leaves of Equinox are float64 where JAX uses 64 bits."""
    is_float = eqx.is_inexact_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    return shape(*leaf.shape) if is_float else leaf


def equinox_layer(name, make_model, roles, *inputs, call=lambda model, *x: model(*x)):
    def make():
        model = eqx.filter_eval_shape(make_model, KEY)
        return Layer(call, jax.tree.map(as_float32, model), inputs, roles)

    layer(f"equinox_{name}", make)


def equinox_stack(make_model):
    """Three models in one."""
    return lambda key: eqx.filter_vmap(make_model)(jax.random.split(key, 3))


def each(model, x):
    return eqx.filter_vmap(lambda model, x: model(x))(model, x)


def one_after_another(model, x):
    arrays, rest = eqx.partition(model, eqx.is_array)
    return jax.lax.scan(lambda x, one: (eqx.combine(one, rest)(x), None), x, arrays)[0]


def unroll(cell, xs):
    state = jnp.zeros(4, jnp.float32)
    state = (state, state) if isinstance(cell, eqx.nn.LSTMCell) else state
    return jax.lax.scan(lambda state, x: (cell(x, state), None), state, xs)[0]


equinox_layer(
    "mlp",
    lambda key: eqx.nn.MLP(3, 2, 5, 1, key=key),
    {"layers/0/weight": "out in", "layers/1/weight": "out in"},
    shape(7, 3),
    call=lambda model, x: jax.vmap(model)(x),
)
equinox_layer(
    "attention",
    lambda key: eqx.nn.MultiheadAttention(4, 8, key=key),
    {f"{name}_proj/weight": "out in" for name in ("query", "key", "value", "output")},
    shape(5, 8),
    call=lambda model, x: model(x, x, x),
)
equinox_layer(
    "conv",
    lambda key: eqx.nn.Conv2d(3, 4, 3, key=key),
    {"weight": "out in window window"},
    shape(3, 8, 8),
)
equinox_layer(
    "conv_depthwise",
    lambda key: eqx.nn.Conv2d(4, 8, 3, groups=4, key=key),
    {"weight": "out in window window"},
    shape(4, 8, 8),
)
equinox_layer(
    "conv_transpose",
    lambda key: eqx.nn.ConvTranspose2d(4, 6, 3, groups=2, key=key),
    {"weight": "out in window window"},
    shape(4, 8, 8),
)
equinox_layer(
    "lstm",
    lambda key: eqx.nn.LSTMCell(3, 4, key=key),
    {"weight_ih": "out in", "weight_hh": "out in"},
    shape(5, 3),
    call=unroll,
)
equinox_layer(
    "gru",
    lambda key: eqx.nn.GRUCell(3, 4, key=key),
    {"weight_ih": "out in", "weight_hh": "out in"},
    shape(5, 3),
    call=unroll,
)
equinox_layer(
    "embed",
    lambda key: eqx.nn.Embedding(8, 4, key=key),
    {},
    jax.ShapeDtypeStruct((), jnp.int32),
)
equinox_layer(
    "weight_norm",
    lambda key: eqx.nn.WeightNorm(eqx.nn.Linear(3, 4, key=key)),
    {"layer/weight": "out in"},
    shape(3),
)
equinox_layer(
    "scan",
    equinox_stack(lambda key: eqx.nn.Linear(4, 4, key=key)),
    {"weight": "stack out in"},
    shape(4),
    call=one_after_another,
)
equinox_layer(
    "vmap_conv",
    equinox_stack(lambda key: eqx.nn.Conv1d(4, 6, 3, key=key)),
    {"weight": "stack out in window"},
    shape(3, 4, 9),
    call=each,
)
equinox_layer(
    "vmap_conv_depthwise",
    equinox_stack(lambda key: eqx.nn.Conv1d(4, 8, 3, groups=4, key=key)),
    {"weight": "stack out in window"},
    shape(3, 4, 9),
    call=each,
)
equinox_layer(
    "vmap_conv_depthwise_1",
    equinox_stack(lambda key: eqx.nn.Conv1d(4, 4, 3, groups=4, key=key)),
    {"weight": "stack out in window"},
    shape(3, 4, 9),
    call=each,
)
