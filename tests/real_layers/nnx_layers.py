"""Layers of flax.nnx."""

import jax.numpy as jnp
from flax import nnx

from real_layers.table import IDS, Layer, layer, shape


def nnx_layer(name, make_model, roles, *inputs):
    def make():
        graphdef, state = nnx.split(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))))
        apply_fn = lambda state, *inputs: nnx.merge(graphdef, state)(*inputs)
        return Layer(apply_fn, state, inputs, roles)

    layer(f"nnx_{name}", make)


class NnxLayers(nnx.Module):
    """Three layers in one, looped over or run side by side."""

    def __init__(self, transform, rngs):
        self.transform = transform
        make = nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs), in_axes=0, out_axes=0)
        self.layers = nnx.split_rngs(splits=3)(make)(rngs)

    def __call__(self, x):
        step = nnx.remat(lambda x, layer: jnp.tanh(layer(x)))
        return self.transform(step)(x, self.layers)


def nnx_attention(n_heads):
    return lambda rngs: nnx.MultiHeadAttention(
        4, 8, num_key_value_heads=n_heads, decode=False, rngs=rngs
    )


nnx_layer("linear", lambda rngs: nnx.Linear(3, 4, rngs=rngs), {"kernel": "in out"}, shape(2, 3))
nnx_layer(
    "linear_general",
    lambda rngs: nnx.LinearGeneral((3, 6), (4, 5), axis=(-2, -1), rngs=rngs),
    {"kernel": "in in out out"},
    shape(2, 3, 6),
)
nnx_layer(
    "einsum",
    lambda rngs: nnx.Einsum("btd,ndh->btnh", (4, 6, 5), rngs=rngs),
    {"kernel": "out in out"},
    shape(2, 3, 6),
)
nnx_layer(
    "conv_depthwise",
    lambda rngs: nnx.Conv(4, 8, (3, 3), feature_group_count=4, rngs=rngs),
    {"kernel": "window window in out"},
    shape(2, 7, 7, 4),
)
nnx_layer(
    "conv_transpose",
    lambda rngs: nnx.ConvTranspose(4, 5, (3, 3), rngs=rngs),
    {"kernel": "window window in out"},
    shape(2, 7, 7, 4),
)
nnx_layer(
    "lstm_optimized",
    lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=rngs)),
    {"cell/dense_h/kernel": "in out", "cell/dense_i/kernel": "in out"},
    shape(2, 5, 3),
)
nnx_layer(
    "gru",
    lambda rngs: nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs)),
    {"cell/dense_h/kernel": "in out", "cell/dense_i/kernel": "in out"},
    shape(2, 5, 3),
)
nnx_layer("embed", lambda rngs: nnx.Embed(8, 4, rngs=rngs), {}, IDS)
nnx_layer(
    "lora",
    lambda rngs: nnx.LoRALinear(4, 6, lora_rank=2, rngs=rngs),
    {"kernel": "in out", "lora/lora_a": "in out", "lora/lora_b": "in out"},
    shape(2, 4),
)
nnx_layer(
    "scan",
    lambda rngs: NnxLayers(nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry), rngs),
    {"layers/kernel": "stack in out"},
    shape(2, 4),
)
nnx_layer(
    "vmap",
    lambda rngs: NnxLayers(nnx.vmap(in_axes=0), rngs),
    {"layers/kernel": "stack in out"},
    shape(3, 2, 4),
)
