"""Layers of flax.linen."""

import jax
import jax.numpy as jnp
from flax import linen

from real_layers.table import IDS, KEY, Layer, layer, shape


def linen_layer(name, model, roles, *inputs):
    def make():
        variables = jax.eval_shape(model.init, KEY, *inputs)
        expected = {f"params/{path}": text for path, text in roles.items()}
        return Layer(model.apply, variables, inputs, expected)

    layer(f"linen_{name}", make)


class Attend(linen.Module):
    """An embedding that is the output layer, too."""

    @linen.compact
    def __call__(self, ids):
        embed = linen.Embed(8, 4)
        return embed.attend(linen.Dense(4)(embed(ids)))


class Mlp(linen.Module):
    """The body of a loop over layers."""

    @linen.compact
    def __call__(self, x, _=None):
        return linen.Dense(4)(jnp.tanh(linen.Dense(8)(x))), None


class Ensemble(linen.Module):
    """Three models, each with inputs of its own or all with the same."""

    in_axis: int | None

    @linen.compact
    def __call__(self, x):
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return linen.vmap(Mlp, in_axes=self.in_axis, axis_size=3, **axes)()(x)


def linen_scan(axis):
    axes = {"variable_axes": {"params": axis}, "split_rngs": {"params": True}}
    return linen.scan(linen.remat(Mlp), length=3, **axes)()


ATTENTION = {name: "in out out" for name in ("query/kernel", "key/kernel", "value/kernel")}
LSTM = {f"cell/{a}{b}/kernel": "in out" for a in "hi" for b in "ifgo"}
GRU = {f"cell/{a}{b}/kernel": "in out" for a in "hi" for b in "rzn"}
TWO_LAYERS = ("Dense_0/kernel", "Dense_1/kernel")

linen_layer("dense", linen.Dense(4), {"kernel": "in out"}, shape(2, 3))
linen_layer("dense_bf16", linen.Dense(4, dtype=jnp.bfloat16), {"kernel": "in out"}, shape(2, 3))
linen_layer("dense_1_to_1", linen.Dense(1), {"kernel": "in out"}, shape(2, 1))
linen_layer(
    "dense_general",
    linen.DenseGeneral((4, 5), axis=(-2, -1)),
    {"kernel": "in in out out"},
    shape(2, 3, 6),
)
linen_layer(
    "dense_general_batch",
    linen.DenseGeneral(4, axis=-1, batch_dims=(0,)),
    {"kernel": "stack in out"},
    shape(2, 3),
)
linen_layer(
    "attention",
    linen.MultiHeadDotProductAttention(4, qkv_features=8, out_features=6),
    {**ATTENTION, "out/kernel": "in in out"},
    shape(2, 3, 6),
)
for n in (1, 2, 3):
    linen_layer(
        f"conv_{n}d",
        linen.Conv(5, (3,) * n),
        {"kernel": "window " * n + "in out"},
        shape(2, *(7,) * n, 4),
    )
linen_layer(
    "conv_1x1", linen.Conv(5, (1, 1)), {"kernel": "window window in out"}, shape(2, 7, 7, 4)
)
linen_layer(
    "conv_depthwise",
    linen.Conv(8, (3, 3), feature_group_count=4),
    {"kernel": "window window in out"},
    shape(2, 7, 7, 4),
)
linen_layer(
    "conv_groups",
    linen.Conv(8, (3, 3), feature_group_count=2),
    {"kernel": "window window in out"},
    shape(2, 7, 7, 4),
)
linen_layer("conv_local", linen.ConvLocal(5, (3,)), {"kernel": "stack in out"}, shape(2, 7, 4))
linen_layer(
    "conv_transpose",
    linen.ConvTranspose(5, (3, 3), strides=(2, 2)),
    {"kernel": "window window in out"},
    shape(2, 7, 7, 4),
)
linen_layer(
    "conv_transpose_kernel",
    linen.ConvTranspose(5, (3, 3), transpose_kernel=True),
    {"kernel": "window window out in"},
    shape(2, 7, 7, 4),
)
linen_layer("embed", linen.Embed(8, 4), {}, IDS)
linen_layer("embed_tied", Attend(), {"Dense_0/kernel": "in out"}, IDS)
linen_layer("lstm", linen.RNN(linen.LSTMCell(4)), LSTM, shape(2, 5, 3))
linen_layer("lstm_optimized", linen.RNN(linen.OptimizedLSTMCell(4)), LSTM, shape(2, 5, 3))
linen_layer("gru", linen.RNN(linen.GRUCell(4)), GRU, shape(2, 5, 3))
linen_layer(
    "conv_lstm",
    linen.RNN(linen.ConvLSTMCell(4, (3,))),
    {"cell/hh/kernel": "window in out", "cell/ih/kernel": "window in out"},
    shape(2, 5, 6, 3),
)
linen_layer(
    "weight_norm",
    linen.WeightNorm(linen.Dense(4)),
    {"layer_instance/kernel": "in out"},
    shape(2, 3),
)
linen_layer("norms", linen.Sequential([linen.LayerNorm(), linen.GroupNorm(2)]), {}, shape(2, 4))
linen_layer("scan_first", linen_scan(0), dict.fromkeys(TWO_LAYERS, "stack in out"), shape(2, 4))
linen_layer("scan_second", linen_scan(1), dict.fromkeys(TWO_LAYERS, "in stack out"), shape(2, 4))
linen_layer(
    "vmap",
    Ensemble(0),
    {f"VmapMlp_0/{path}": "stack in out" for path in TWO_LAYERS},
    shape(3, 2, 4),
)
linen_layer(
    "vmap_same_input",
    Ensemble(None),
    {f"VmapMlp_0/{path}": "stack in out" for path in TWO_LAYERS},
    shape(2, 4),
)
