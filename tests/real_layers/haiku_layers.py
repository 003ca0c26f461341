"""Layers of Haiku."""

import haiku as hk
import jax

from real_layers.table import IDS, KEY, Layer, layer, shape


def haiku_layer(name, function, roles, *inputs):
    def make():
        model = hk.transform(function)
        variables = jax.eval_shape(model.init, KEY, *inputs)
        return Layer(model.apply, variables, (None, *inputs), roles)

    layer(f"haiku_{name}", make)


def haiku_unroll(core):
    def function(x):
        module = core(4)
        return hk.dynamic_unroll(module, x, module.initial_state(2))[0]

    return function


def haiku_attention(x):
    return hk.MultiHeadAttention(4, 2, w_init=hk.initializers.Constant(1.0))(x, x, x)


haiku_layer("linear", lambda x: hk.Linear(4)(x), {"linear/w": "in out"}, shape(2, 3))
haiku_layer(
    "conv",
    lambda x: hk.Conv2D(4, 3)(x),
    {"conv2_d/w": "window window in out"},
    shape(2, 8, 8, 3),
)
haiku_layer(
    "conv_depthwise",
    lambda x: hk.DepthwiseConv2D(2, 3)(x),
    {"depthwise_conv2_d/w": "window window in out"},
    shape(2, 8, 8, 3),
)
haiku_layer(
    "conv_transpose",
    lambda x: hk.Conv2DTranspose(4, 3)(x),
    {"conv2_d_transpose/w": "window window out in"},
    shape(2, 8, 8, 3),
)
haiku_layer(
    "attention",
    haiku_attention,
    {f"multi_head_attention/{name}/w": "in out" for name in ("query", "key", "value", "linear")},
    shape(2, 5, 8),
)
haiku_layer("lstm", haiku_unroll(hk.LSTM), {"lstm/linear/w": "in out"}, shape(5, 2, 3))
haiku_layer("gru", haiku_unroll(hk.GRU), {"gru/w_h": "in out", "gru/w_i": "in out"}, shape(5, 2, 3))
haiku_layer("embed", lambda ids: hk.Embed(8, 4)(ids), {}, IDS)
haiku_layer(
    "embed_one_hot",
    lambda ids: hk.Embed(8, 4, lookup_style="ONE_HOT")(ids),
    {"embed/embeddings": "in out"},
    IDS,
)
haiku_layer(
    "layer_stack",
    lambda x: hk.experimental.layer_stack(3)(lambda x: hk.Linear(4)(x))(x),
    {"__layer_stack_no_per_layer/linear/w": "stack in out"},
    shape(2, 4),
)
