"""What is pruned by default, and the reason that `plan` gives for every other leaf."""

import re

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune
from helpers import ones

HALF = jaxprune.one_shot_schedule(0.5)


def reasons(tree, **rules):
    """The note of each leaf in `plan`."""
    return {leaf.path: leaf.note for leaf in jaxprune.plan(tree, 0.5, **rules).leaves}


def spec(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


F32 = spec("float32", 8, 4)
SCALES = spec("float32", 8, 1)
CASES = {
    "bias": ({"q": {"bias": F32}}, {"q/bias": "bias"}),
    "bias of three axes": ({"bias": spec("bfloat16", 3, 4, 5)}, {"bias": "bias"}),
    "a short bias": ({"bias": spec("float32", 4)}, {"bias": "1-D"}),
    "scale": ({"norm": {"scale": F32}}, {"norm/scale": "scale"}),
    "a name that only contains bias": ({"bias_kernel": F32, "biased": F32}, {}),
    "a parent called bias": ({"bias": {"kernel": F32}, "scale": {"w": F32}}, {}),
    "names that end in _bias": (
        {"gate_up_proj_bias": F32, "gru": {"bias_n": F32}},
        {"gate_up_proj_bias": "bias", "gru/bias_n": "bias"},
    ),
    "stacked biases of Haiku": (
        {"linear": {"w": spec("float32", 3, 8, 4), "b": spec("float32", 3, 4)}},
        {"linear/b": "bias"},
    ),
    "bias of a Haiku convolution with channels first": (
        {"conv": {"w": spec("float32", 3, 3, 2, 8), "b": spec("float32", 8, 1, 1)}},
        {"conv/b": "bias"},
    ),
    "biases of dicts, by the weight that they belong to": (
        {
            "stacked": {"w1": spec("float32", 3, 8, 4), "b1": spec("float32", 3, 4)},
            "rnn": {"Wxh": F32, "Whh": F32, "bh": SCALES, "by": spec("float32", 1, 4)},
            "attn": {"w_out": spec("float32", 2, 4, 8), "b_out": spec("float32", 2, 8)},
            "numpy": {"W": F32, "b": spec("float32", 1, 4)},
            "words": {"weights": F32, "biases": F32},
        },
        {
            "stacked/b1": "bias",
            "rnn/bh": "bias",
            "rnn/by": "bias",
            "attn/b_out": "bias",
            "numpy/b": "bias",
            "words/biases": "bias",
        },
    ),
    "biases of pairs": (
        {
            "stacked": (spec("float32", 3, 8, 4), spec("float32", 3, 4)),
            "row": [spec("float32", 8, 4), spec("float32", 1, 4)],
            "weights": (spec("float32", 8, 4), spec("float32", 4, 8)),
            "one input": (spec("float32", 1, 4), spec("float32", 4)),
            "experts": (spec("float32", 3, 4), spec("float32", 3, 8, 4)),  # the weight is not first
            "three": (spec("float32", 8, 4), spec("float32", 1, 4), spec("float32", 4, 4)),
        },
        {"stacked/1": "bias", "row/1": "bias", "one input/1": "1-D"},
    ),
    "biases of torch": (
        {"attn": {"bias_k": spec("float32", 1, 1, 8)}, "lstm.bias_hh_l0_reverse": F32},
        {"attn/bias_k": "bias", "lstm.bias_hh_l0_reverse": "bias"},
    ),
    "names like b that are weights": (
        {
            "ab": {"a": F32, "b": SCALES},  # no neighbour is named like a weight
            "mlp": {"w1": F32, "b1": F32, "basis": SCALES},
            "other": {"w1": spec("float32", 3, 8, 4), "b2": F32},
        },
        {},
    ),
    "scales": (
        {
            "blocks": {"ls1": {"gamma": F32}, "layer_scale_2": F32, "layer_scale": {"gamma": F32}},
            "attn": {"logit_scale": spec("float32", 4, 1, 1)},
            "auto_scale": F32,
            "conv": {"kernel_scale": F32},
        },
        {
            "blocks/ls1/gamma": "scale",
            "blocks/layer_scale_2": "scale",
            "blocks/layer_scale/gamma": "scale",
            "attn/logit_scale": "scale",
            "auto_scale": "scale",
            "conv/kernel_scale": "scale",
        },
    ),
    "logarithms": (
        {
            "policy": {"log_std": F32, "logstd": F32},
            "mamba": {"A_log": F32},
            "kernel_log_var": F32,
        },
        {
            "policy/log_std": "logarithm",
            "policy/logstd": "logarithm",
            "mamba/A_log": "logarithm",
            "kernel_log_var": "logarithm",
        },
    ),
    "names that only contain scale or log": (
        {"scaled": F32, "upscale": F32, "scale_net": {"kernel": F32}, "logits": F32, "dialog": F32},
        {},
    ),
    "a weight called b": ({"ab": {"a": F32, "b": F32}, "wb": {"w": F32, "b": F32}, "b": F32}, {}),
    "offset of a Haiku normalisation": (
        {"batch_norm": {"offset": spec("float32", 1, 1, 1, 8), "scale": F32}},
        {"batch_norm/offset": "offset", "batch_norm/scale": "scale"},
    ),
    "normalisation layers": (
        {
            "ln_f": {"weight": F32},
            "blocks": {"attn_norm": {"w": F32}, "bn2": {"gamma": F32, "beta": F32}},
            "layers.0.input_layernorm.weight": F32,
            "norms": [{"weight": F32}],
            "LayerNorm_0": {"b": F32},
            "stacked": {"rms_norm": F32, "norm1": F32},
        },
        {
            "LayerNorm_0/b": "normalisation",
            "blocks/attn_norm/w": "normalisation",
            "blocks/bn2/beta": "normalisation",
            "blocks/bn2/gamma": "normalisation",
            "layers.0.input_layernorm.weight": "normalisation",
            "ln_f/weight": "normalisation",
            "norms/0/weight": "normalisation",
            "stacked/norm1": "normalisation",
            "stacked/rms_norm": "normalisation",
        },
    ),
    "weights below or beside a normalisation": (
        {
            "norm1": {"linear": {"weight": F32}, "kernel": F32},
            "normalizer": {"w": F32},
            "weight_norm": {"w": F32},
            "SpectralNorm_0": {"weight": F32},
            "normal": F32,
            "line": F32,
            "gamma": F32,
            "bnd": F32,
        },
        {},
    ),
    "scales of weight norms": (
        {
            "conv.weight_g": spec("float32", 8, 1, 1),
            "conv.weight_v": spec("float32", 8, 4, 3),
            "fc.parametrizations.weight.original0": SCALES,
            "fc.parametrizations.weight.original1": F32,
            "stack": {"g": spec("float32", 3, 8, 1), "v": spec("float32", 3, 8, 4)},
        },
        {
            "conv.weight_g": "scale",
            "fc.parametrizations.weight.original0": "scale",
            "stack/g": "scale",
        },
    ),
    "names of weight norms that are weights": (
        {
            "glu": {"g": F32, "v": F32},  # a gate and its values
            "gate": {"w_g": SCALES, "w_u": F32},
            "other": {"g": spec("float32", 4, 1), "v": F32},
            "conv": {"g": spec("float32", 8, 1, 1), "v": F32},
            "original0": SCALES,
        },
        {},
    ),
    "masks": (
        {
            "fc.weight_orig": F32,
            "fc.weight_mask": F32,
            "attn": {"mask": F32, "causal_masks": F32, "Mask_0": F32},
        },
        {
            "fc.weight_mask": "mask",
            "attn/mask": "mask",
            "attn/causal_masks": "mask",
            "attn/Mask_0": "mask",
        },
    ),
    "names that only contain mask": (
        {"mask": {"kernel": F32}, "unmasked": F32, "masked_w": F32},
        {},
    ),
    "torch names": (
        {"layers.0.q.bias": F32, "layers.0.q.weight": F32},
        {"layers.0.q.bias": "bias"},
    ),
    "lora": (
        {"fc": {"lora_a": F32, "kernel_lora_b": F32, "kernel": F32}},
        {"fc/lora_a": "LoRA factor", "fc/kernel_lora_b": "LoRA factor"},
    ),
    "lora as PEFT names it": (
        {"q_proj.lora_A.default.weight": F32, "q_proj.lora_B.default.weight": F32},
        {
            "q_proj.lora_A.default.weight": "LoRA factor",
            "q_proj.lora_B.default.weight": "LoRA factor",
        },
    ),
    "lora as a tree of its own": (
        {"lora": {"fc": {"A": F32, "B": F32}}, "lora_params": {"q": {"a": F32}}, "fc": {"A": F32}},
        {"lora/fc/A": "LoRA factor", "lora/fc/B": "LoRA factor", "lora_params/q/a": "LoRA factor"},
    ),
    "lora as kohya and diffusers name it": (
        {"q": {"lora_down": {"weight": F32}, "lora": {"up": {"weight": F32}}}},
        {"q/lora_down/weight": "LoRA factor", "q/lora/up/weight": "LoRA factor"},
    ),
    "lora of embeddings": (
        {"embed": {"lora_embedding_A": F32, "lora_embedding_B": {"default": F32}}},
        {
            "embed/lora_embedding_A": "LoRA factor",
            "embed/lora_embedding_B/default": "LoRA factor",
        },
    ),
    "lora without underscores": (
        {"fc": {"loraA": F32, "q_loraB": F32, "to_q_lora": {"a": F32}}},
        {"fc/loraA": "LoRA factor", "fc/q_loraB": "LoRA factor", "fc/to_q_lora/a": "LoRA factor"},
    ),
    "lora with layers below": (
        {"lora_a": {"kernel": F32}, "lora_up": {"kernel": F32}},
        {"lora_a/kernel": "LoRA factor", "lora_up/kernel": "LoRA factor"},
    ),
    "lora_c": ({"lora_c": F32, "flora_a": F32, "lora": F32}, {}),
    "no lora": (
        {
            "flora_up": F32,
            "explore_a": F32,
            "explora": {"a": F32},
            "lora_upper": F32,
            "lora": {"mlp": {"up": F32}, "kernel": F32},
            "lora_unet_down": {"kernel": F32},
        },
        {},
    ),
    "int8": (
        {"fc": {"weight": spec("int8", 8, 4), "weight_scale": SCALES}},
        {"fc/weight": "dtype int8", "fc/weight_scale": "quantisation scale"},
    ),
    "float8": (
        {"fc.weight": spec("float8_e4m3fn", 8, 4), "fc.weight_scale_inv": SCALES},
        {"fc.weight_scale_inv": "quantisation scale"},
    ),
    "GPTQ": (
        {"fc": {"qweight": spec("int32", 2, 4), "scales": F32, "zero_point": F32, "zero": F32}},
        {
            "fc/qweight": "dtype int32",
            "fc/scales": "quantisation scale",
            "fc/zero_point": "quantisation scale",
            "fc/zero": "quantisation scale",
        },
    ),
    "scales and codebooks under more names": (
        {
            "svdquant": {"qweight": spec("int8", 8, 2), "wscales": SCALES, "qzeros": SCALES},
            "deepseek": {"weight": spec("float8_e4m3fn", 8, 4), "scale_inv": SCALES},
            "aqlm": {"codes": spec("int16", 8, 2, 1), "codebooks": spec("float16", 1, 9, 1, 8)},
            "vptq": {"indices": spec("uint16", 1, 8), "centroids": F32},
            "bnb": {"weight": spec("uint8", 8, 1), "weight_absmax": SCALES},
        },
        {
            "svdquant/qweight": "dtype int8",
            "svdquant/wscales": "quantisation scale",
            "svdquant/qzeros": "quantisation scale",
            "deepseek/scale_inv": "quantisation scale",
            "aqlm/codes": "dtype int16",
            "aqlm/codebooks": "quantisation scale",
            "vptq/indices": "dtype uint16",
            "vptq/centroids": "quantisation scale",
            "bnb/weight": "dtype uint8",
            "bnb/weight_absmax": "quantisation scale",
        },
    ),
    "weights beside integers": (
        {
            "vq": {"codebook": F32, "n_used": spec("int32", 8), "step": spec("int32")},
            "swin": {"index": spec("int32", 8, 8), "upscale": F32, "scaled": F32, "zeroth": F32},
        },
        {"swin/index": "dtype int32", "vq/n_used": "dtype int32", "vq/step": "dtype int32"},
    ),
    "a scale that cannot be pruned": (
        {"w": spec("uint8", 8, 4), "w_scale": spec("float8_e8m0fnu", 8, 1)},
        {"w": "dtype uint8", "w_scale": "quantisation scale"},
    ),
    "scales of another parent": (
        {"a": {"w": spec("int8", 8, 4)}, "b": {"w_scale": F32, "zero_point": F32, "zeros": F32}},
        {"a/w": "dtype int8", "b/w_scale": "scale"},
    ),
    "a float8 leaf is not its own neighbour": ({"zero_point": spec("float8_e4m3fn", 8, 4)}, {}),
    "bools and keys are not quantised": (
        {"flags": spec("bool", 2, 2), "zero_point": F32},
        {"flags": "dtype bool"},
    ),
}


@pytest.mark.parametrize("tree, expected", CASES.values(), ids=CASES)
def test_leaves_that_are_not_weights_are_left_out_with_a_reason(tree, expected):
    tree = {**tree, "other": F32}
    found = reasons(tree)
    assert {path: note for path, note in found.items() if note} == expected
    report = jaxprune.plan(tree, 0.5)
    assert all((leaf.n_zero == 0) == (leaf.path in expected) for leaf in report.leaves)


def test_an_explicit_include_replaces_the_default():
    tree = {"fc": {"kernel": F32, "bias": F32, "scale": F32, "lora_a": F32, "w_scale": F32}}
    tree["fc"]["w"] = spec("int8", 8, 4)
    report = jaxprune.plan(tree, 0.5, include=lambda path, leaf: leaf.dtype != "int8")
    assert [leaf.n_zero for leaf in report.leaves] == [16, 16, 16, 16, 0, 16]
    assert reasons(tree, include="fc/bias")["fc/kernel"] == "not matched by include"
    assert reasons(tree, exclude="fc/bias")["fc/bias"] == "excluded by 'fc/bias'"


def test_every_function_uses_the_default():
    tree = {"fc": {"kernel": ones(4, 4), "bias": ones(4, 4)}}
    expected = {"fc": {"kernel": 8, "bias": 0}}
    count = lambda masks: jax.tree.map(lambda m: int(np.sum(~np.asarray(m, bool))), masks)
    assert count(jaxprune.prune_params(tree, 0.5)[1]) == expected
    tx = jaxprune.prune(HALF)
    _, state = tx.update(tree, tx.init(tree), tree)
    assert count(jaxprune.get_masks(state)) == expected
    rigl = jaxprune.rigl(0.5, 9, inner=optax.sgd(0.1)).init(tree)
    assert count(jaxprune.get_masks(rigl)) == expected
    sparse = jax.tree.map(lambda leaf: leaf.at[:2].set(0), tree)
    assert count(jaxprune.masks_from_params(sparse)) == expected


def test_attention_keeps_its_biases():
    module = nn.MultiHeadDotProductAttention(num_heads=2)
    x = ones(1, 3, 8)
    params = module.init(jax.random.key(0), x, x)["params"]
    notes = reasons(params)
    assert notes["query/bias"] == "bias"  # (heads, width)
    assert notes["query/kernel"] == ""


def test_scanned_layers_and_ensembles_keep_their_biases_and_scales():
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(key):
        rngs = nnx.Rngs(key)
        return nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs))

    notes = reasons(nnx.state(create(jax.random.split(jax.random.key(0), 3)), nnx.Param))
    assert notes == {
        "layers/0/bias": "bias",
        "layers/0/kernel": "",
        "layers/1/bias": "bias",
        "layers/1/scale": "scale",
    }


def test_stacked_layers_of_haiku_and_equinox_keep_their_biases_and_scales():
    layer = lambda x: hk.Linear(4)(hk.LayerNorm(-1, True, True)(x))
    stack = hk.without_apply_rng(hk.transform(hk.layer_stack(3)(layer)))
    notes = reasons(stack.init(jax.random.key(0), ones(2, 4)))
    assert sorted(notes.values()) == ["", "bias", "offset", "scale"]

    @eqx.filter_vmap
    def create(key):
        layers = {"norm": eqx.nn.LayerNorm((4, 2)), "cell": eqx.nn.GRUCell(4, 4, key=key)}
        return {**layers, "conv": eqx.nn.Conv1d(4, 4, 3, key=key)}

    notes = reasons(create(jax.random.split(jax.random.key(0), 3)))
    assert {path for path in notes if not notes[path]} == {
        "cell/weight_hh",
        "cell/weight_ih",
        "conv/weight",
    }


def test_the_scale_of_a_weight_norm_of_equinox_is_left_out():
    layer = eqx.nn.Linear(4, 8, key=jax.random.key(0))
    notes = reasons(eqx.filter(eqx.nn.WeightNorm(layer), eqx.is_inexact_array))
    assert notes == {"layer/weight": "", "layer/bias": "1-D", "g": "scale"}
    conv = eqx.nn.WeightNorm(eqx.nn.Conv2d(3, 8, 3, key=jax.random.key(0)))
    notes = reasons({"conv": eqx.filter(conv, eqx.is_inexact_array)})
    assert {path for path in notes if not notes[path]} == {"conv/layer/weight"}


def test_nnx_lora_factors_are_left_out():
    model = nnx.LoRALinear(4, 6, lora_rank=2, rngs=nnx.Rngs(0))
    notes = reasons(nnx.state(model, nnx.Any(nnx.Param, nnx.LoRAParam)))
    assert notes["lora/lora_a"] == notes["lora/lora_b"] == "LoRA factor"
    assert notes["kernel"] == ""


EMBEDDINGS = (
    "Embed_0/embedding",
    "wte/weight",
    "model.embed_tokens.weight",
    "pos_emb",
    "embedder/w",
)


def test_plan_marks_embeddings_which_are_pruned():
    others = "unembedding/w", "embed/mlp/kernel", "patch_embed/kernel", "member"
    tree = dict.fromkeys((*EMBEDDINGS, *others), F32)
    report = jaxprune.plan(tree, 0.5, overrides={"wte/weight": 0.25})
    notes = {leaf.path: leaf.note for leaf in report.leaves}
    assert {path for path in notes if notes[path].startswith("embedding")} == set(EMBEDDINGS)
    assert notes["wte/weight"] == "embedding; override 'wte/weight'"
    assert all(leaf.n_zero for leaf in report.leaves)


NAMES = {
    "token": ("cls", "cls_token", "encoder/class_token", "vit.mask_token", "register_tokens"),
    "positions": ("pos", "position", "relative_position_bias_table", "positional_encoding"),
    "": ("token_mixer/kernel", "tokenizer/w", "classes", "position/kernel", "pos_proj/w", "out"),
}


def test_plan_marks_tokens_and_tables_of_positions_which_are_pruned():
    tree = dict.fromkeys((path for paths in NAMES.values() for path in paths), F32)
    report = jaxprune.plan(tree, 0.5)
    assert {leaf.path: leaf.note for leaf in report.leaves} == {
        path: note for note, paths in NAMES.items() for path in paths
    }
    assert all(leaf.n_zero for leaf in report.leaves)


def test_a_rule_may_return_what_re_search_returns():
    tree = {"fc": {"kernel": F32, "bias": F32}, "head": F32}
    found = jaxprune.plan(tree, 0.5, include=lambda path, leaf: re.search("kernel|head", path))
    assert {leaf.path for leaf in found.leaves if leaf.n_zero} == {"fc/kernel", "head"}
