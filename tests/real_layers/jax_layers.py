"""Products in plain JAX: the einsums of language models, experts, and kernels that are computed."""

import jax
import jax.numpy as jnp
import numpy as np

from real_layers.table import IDS, Layer, layer, shape


def jax_layer(name, apply_fn, variables, roles, *inputs):
    variables = {path: shape(*sizes) for path, sizes in variables.items()}
    layer(f"jax_{name}", lambda: Layer(apply_fn, variables, inputs, roles))


X = shape(2, 5, 6)  # batch, time, embed


# A transformer of google-tunix (gemma): embed 6, 4 heads of 3, 2 heads of keys and values, hidden 8


def rms_norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * (1 + scale[None, None])


def tunix_attention(p, x):
    query = jnp.einsum("BTD,NDH->BTNH", x, p["q_einsum"])
    key, value = jnp.einsum("BSD,CKDH->CBSKH", x, p["kv_einsum"])
    grouped = query.reshape(*query.shape[:2], 2, 2, 3)
    scores = jnp.einsum("BTKGH,BSKH->BTKGS", grouped * 3**-0.5, key)
    mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30))
    mixed = jnp.einsum("BTKGS,BSKH->BTKGH", weights, value).reshape(query.shape)
    return jnp.einsum("BTNH,NHD->BTD", mixed, p["attn_vec_einsum"])


def tunix_mlp(p, x):
    gate = jax.nn.gelu(x @ p["gate_proj"])
    return (gate * (x @ p["up_proj"])) @ p["down_proj"]


def tunix_transformer(p, ids):
    x = p["input_embedding"][ids] * 6**0.5
    x = x + tunix_attention(p, rms_norm(x, p["norm"]))
    x = x + tunix_mlp(p, rms_norm(x, p["norm"]))
    return rms_norm(x, p["norm"]) @ p["input_embedding"].T


TUNIX = {
    "q_einsum": (4, 6, 3),
    "kv_einsum": (2, 2, 6, 3),
    "attn_vec_einsum": (4, 3, 6),
    "gate_proj": (6, 8),
    "up_proj": (6, 8),
    "down_proj": (8, 6),
}
TUNIX_ROLES = {
    "q_einsum": "out in out",
    "kv_einsum": "out out in out",
    "attn_vec_einsum": "in in out",
    "gate_proj": "in out",
    "up_proj": "in out",
    "down_proj": "in out",
}
jax_layer(
    "tunix",
    tunix_transformer,
    {**TUNIX, "input_embedding": (10, 6), "norm": (6,)},  # the embedding is tied
    TUNIX_ROLES,
    IDS,
)
jax_layer(
    "tunix_scan",
    lambda p, x: jax.lax.scan(
        jax.remat(lambda x, p: (x + tunix_mlp(p, tunix_attention(p, x)), None)), x, p
    )[0],
    {name: (3, *sizes) for name, sizes in TUNIX.items()},
    {name: f"stack {roles}" for name, roles in TUNIX_ROLES.items()},
    X,
)
jax_layer(
    "gated_mlp_einsum",
    lambda p, x: jnp.einsum("BTF,NHF->NBTH", x, p["gating"]).prod(0) @ p["linear"],
    {"gating": (2, 8, 6), "linear": (8, 6)},
    {"gating": "out out in", "linear": "in out"},
    X,
)
jax_layer(
    "gated_mlp_indexed",
    lambda p, x: jax.nn.silu(x @ p["gating"][0].T) * (x @ p["gating"][1].T) @ p["linear"],
    {"gating": (2, 8, 6), "linear": (8, 6)},
    {"gating": "stack out in", "linear": "in out"},
    X,
)
jax_layer(
    "qkv_fused_heads",
    lambda p, x: jnp.einsum("bte,ecnh->cbtnh", x, p["w"]),
    {"w": (6, 3, 2, 4)},
    {"w": "in out out out"},
    X,
)
jax_layer(
    "qkv_fused_flat",
    lambda p, x: jnp.split((x @ p["w"]).reshape(2, 5, 3, 2, 4), 3, 2)[0],
    {"w": (6, 24)},
    {"w": "in out"},
    X,
)
jax_layer(
    "qkv_fused_flat_split",
    lambda p, x: [x @ w for w in jnp.split(p["w"], 3, axis=1)],
    {"w": (6, 24)},
    {"w": "in out"},
    X,
)
jax_layer(
    "qkv_concatenated",
    lambda p, x: x @ jnp.concatenate([p["q"], p["k"].T, p["v"].reshape(6, 4)], 1),
    {"q": (6, 8), "k": (4, 6), "v": (6, 2, 2)},
    {"q": "in out", "k": "out in", "v": "in out out"},
    X,
)
jax_layer(
    "latent_attention",  # each head of the query has a matrix of its own, and meets nothing else
    lambda p, x: jnp.einsum("bthd,rhd->bthr", jnp.einsum("bte,ehd->bthd", x, p["q"]), p["k_up"]),
    {"q": (6, 2, 4), "k_up": (3, 2, 4)},
    {"q": "in stack out", "k_up": "out stack in"},
    X,
)


def relative_attention(p, x):
    query, key = (jnp.einsum("bte,ehd->bthd", x, p[name]) for name in ("q", "k"))
    by_content = jnp.einsum("bthd,bshd->bhts", query, key)
    return by_content + jnp.einsum("bthd,shd->bhts", query, p["distances"])


jax_layer(
    "relative_attention",
    relative_attention,
    {"q": (6, 2, 4), "k": (6, 2, 4), "distances": (5, 2, 4)},
    {"q": "in out out", "k": "in out out", "distances": "out stack in"},
    X,
)
jax_layer(
    "state_space",  # each channel of the result meets weights of its own, but is a single output
    lambda p, x: jnp.exp(jnp.einsum("btc,cn->btcn", jax.nn.softplus(x @ p["dt"]), p["a"])),
    {"dt": (6, 4), "a": (4, 3)},
    {"dt": "in out"},
    X,
)
jax_layer(
    "associative_scan",  # it makes slices of length 0
    lambda p, x: jax.lax.associative_scan(jnp.add, x @ p["w"] + jnp.cumsum(p["b"], 2), axis=1),
    {"w": (6, 4), "b": (1, 1, 4)},
    {"w": "in out"},
    X,
)
jax_layer(
    "filters",
    lambda p, x: jnp.einsum("btc,cst->bsc", x @ p["w"], p["filters"]),
    {"w": (6, 4), "filters": (4, 3, 5)},
    {"w": "in out", "filters": "stack out in"},
    X,
)


# Experts


def experts_einsum(p, x):
    gates = jax.nn.softmax(x @ p["router"])
    hidden = jax.nn.relu(jnp.einsum("btd,edf->btef", x, p["up"]))
    return jnp.einsum("btef,efd,bte->btd", hidden, p["down"], gates)


def experts_all(p, x):
    gates = jax.nn.softmax(x @ p["router"])
    hidden = jax.nn.relu(jnp.einsum("btd,edf->btef", x, p["up"])) * gates[..., None]
    return jnp.einsum("btef,efd->bted", hidden, p["down"]).sum(2)


def experts_dispatched(p, x):
    gates = jax.nn.softmax(x @ p["router"])
    slots = jax.nn.one_hot(jnp.argsort(gates, 1)[:, :2], 5, axis=1)  # b t slot e
    inputs = jnp.einsum("btse,btd->ebsd", slots, x)
    hidden = jax.nn.relu(jnp.einsum("ebsd,edf->ebsf", inputs, p["up"]))
    return jnp.einsum("ebsf,efd->ebsd", hidden, p["down"])


def experts_ragged(p, x):
    rows = x.reshape(-1, 6)
    expert = jnp.argmax(rows @ p["router"], -1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=4)
    hidden = jax.nn.relu(jax.lax.ragged_dot(rows[order], p["up"], sizes))
    return jax.lax.ragged_dot(hidden, p["down"], sizes)[jnp.argsort(order)]


def experts_indexed(p, x):
    expert = jnp.argmax(x @ p["router"], -1)
    hidden = jax.nn.relu(jnp.einsum("btd,btdf->btf", x, p["up"][expert]))
    return jnp.einsum("btf,btfd->btd", hidden, p["down"][expert])


def experts_mapped(p, x):
    step = lambda total, w: (total + jax.nn.relu(x @ w[0]) @ w[1], None)
    total = jax.lax.scan(step, jnp.zeros_like(x), (p["up"], p["down"]))[0]
    return total * jax.nn.softmax(x @ p["router"])[..., :1]


EXPERTS = {"router": (6, 4), "up": (4, 6, 8), "down": (4, 8, 6)}
EXPERT_ROLES = {"router": "in out", "up": "stack in out", "down": "stack in out"}
for kind in (experts_dispatched, experts_ragged, experts_indexed, experts_mapped):
    jax_layer(kind.__name__, kind, EXPERTS, EXPERT_ROLES, X)
jax_layer("experts_all", experts_all, EXPERTS, EXPERT_ROLES, X)
# Here, the second product sums over experts, too.
jax_layer(
    "experts_einsum",
    experts_einsum,
    EXPERTS,
    {"router": "in out", "up": "out in out", "down": "in in out"},
    X,
)


# Kernels that are computed from params


def with_custom_derivative(kind):
    decorate = {"jvp": jax.custom_jvp, "vjp": jax.custom_vjp}[kind]
    product = decorate(lambda w, x: x @ w)
    if kind == "jvp":
        product.defjvp(lambda primals, tangents: (product(*primals), primals[1] @ tangents[0]))
    else:
        product.defvjp(lambda w, x: (x @ w, x), lambda x, g: (x.T @ g, g))
    return lambda p, x: product(p["w"].T, x)


def one_kernel(name, kernel, roles="in out", sizes=(6, 8), **others):
    """A product with a function of `w` and of other leaves, given as (sizes, roles)."""
    variables = {"w": sizes} | {path: sizes for path, (sizes, _) in others.items()}
    expected = {"w": roles} | {path: text for path, (_, text) in others.items() if text}
    jax_layer(f"kernel_{name}", lambda p, x: x @ kernel(p), variables, expected, X)


def unpacked(w):
    return jax.lax.bitcast_convert_type(w, jnp.int4).reshape(6, 8).astype(jnp.float32)


MASK = np.tri(6, 8)
one_kernel("masked", lambda p: p["w"] * MASK)
one_kernel("mask_leaf", lambda p: jnp.where(p["m"] > 0, p["w"], 0), m=((6, 8), "in out"))
one_kernel("largest", lambda p: jnp.where(jnp.abs(p["w"]) > jnp.sort(p["w"].ravel())[9], p["w"], 0))
one_kernel("cast", lambda p: p["w"].astype(jnp.bfloat16).T.astype(jnp.float32), "out in", (8, 6))
one_kernel(
    "weight_norm",
    lambda p: p["g"] * p["w"] / jnp.linalg.norm(p["w"], axis=0, keepdims=True),
    g=((1, 8), ""),
)
one_kernel("unit", lambda p: p["w"] / jnp.abs(p["w"]))
one_kernel(
    "standardized",
    lambda p: (p["w"] - p["w"].mean(0, keepdims=True)) / p["w"].std(0, keepdims=True),
)
one_kernel("row_scale", lambda p: p["s"] * p["w"], s=((6, 1), "in out"))
one_kernel("lora", lambda p: p["w"] + p["a"] @ p["b"], a=((6, 2), "in out"), b=((2, 8), "in out"))
one_kernel("two_factors", lambda p: p["w"].T @ p["b"], "out in", (2, 6), b=((2, 8), "in out"))
one_kernel(
    "blocks_of_scales", lambda p: (p["w"].reshape(-1, 4) * p["s"]).reshape(6, 8), s=((12, 1), "")
)
one_kernel("flat", lambda p: p["w"].reshape(6, 2, 4).reshape(6, -1), "in out", (6, 8))
one_kernel("reversed", lambda p: p["w"][::-1, ::2])
one_kernel("padded", lambda p: jnp.pad(p["w"], ((1, 2), (0, 0))), "in out", (3, 8))
one_kernel("cond", lambda p: jax.lax.cond(True, lambda w: w, lambda w: -w, p["w"]))
one_kernel("while", lambda p: jax.lax.while_loop(lambda w: w.sum() > 1, lambda w: w / 2, p["w"]))
one_kernel("jit", lambda p: jax.jit(lambda w: jax.checkpoint(jnp.tanh)(w))(p["w"]))
one_kernel("squeezed", lambda p: p["w"][0, :, :, 0], "stack in out stack", (1, 6, 8, 1))
one_kernel("updated", lambda p: p["w"].at[0].set(0.0))
layer(
    "jax_kernel_int4",  # two to a byte
    lambda: Layer(
        lambda p, x: x @ (unpacked(p["w"]) * p["scale"]),
        {"w": jax.ShapeDtypeStruct((6, 4), jnp.uint8), "scale": shape(1, 8)},
        (X,),
        {"w": "in out"},
    ),
)
for kind in ("jvp", "vjp"):
    jax_layer(
        f"custom_{kind}",
        with_custom_derivative(kind),
        {"w": (8, 6)},
        {"w": "out in"},
        shape(5, 6),
    )
jax_layer(
    "vector",
    lambda p, x: x @ p["w"][:, 0],
    {"w": (6, 1)},
    {"w": "in out"},
    X,
)
jax_layer(
    "outputs_indexed",
    lambda p, x, ids: jnp.einsum("bte,eo->bto", x, p["w"][:, ids[0]]),
    {"w": (6, 9)},
    {"w": "in out"},
    X,
    IDS,
)
jax_layer(
    "inputs_indexed",
    lambda p, x, ids: x[..., ids[0]] @ p["w"][ids[0]],
    {"w": (6, 9)},
    {"w": "in out"},
    X,
    IDS,
)
jax_layer(
    "tensor_product",
    lambda p, x: x @ jnp.kron(p["a"], p["b"]),
    {"a": (2, 4), "b": (3, 5)},
    {"a": "in out", "b": "in out"},
    X,
)
jax_layer(
    "three_factors",
    lambda p, x: jnp.einsum("bti,ir,ro->bto", x, p["a"], p["b"]),
    {"a": (6, 2), "b": (2, 8)},
    {"a": "in out", "b": "in out"},
    X,
)
jax_layer(
    "fori_loop",
    lambda p, x: jax.lax.fori_loop(0, 3, lambda i, x: x @ p["w"][i], x),
    {"w": (3, 6, 6)},
    {"w": "stack in out"},
    X,
)
jax_layer(
    "while_loop",
    lambda p, x: jax.lax.while_loop(
        lambda x: x.sum() < 9, lambda x: x @ p["w"] + p["b"][None, None], x
    ),
    {"w": (6, 6), "b": (6,)},
    {"w": "in out"},
    X,
)
jax_layer(
    "unrolled",
    lambda p, x: x @ p["w"][0] @ p["w"][1] @ p["w"][2],
    {"w": (3, 6, 6)},
    {"w": "stack in out"},
    X,
)
jax_layer(
    "conv_from_matrix",
    lambda p, x: jax.lax.conv_general_dilated(
        x, p["w"].reshape(3, 6, 4), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    {"w": (18, 4)},
    {"w": "in out"},
    X,
)
jax_layer(
    "both_ways",
    lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T,
    {"w": (6, 8)},
    {},
    X,
)
jax_layer(
    "learned_queries",
    lambda p, x: (
        p["latents"][None]
        + jax.nn.softmax((p["latents"] @ p["q"]) @ (x @ p["k"]).swapaxes(1, 2)) @ (x @ p["v"])
    ),
    {"latents": (3, 6), "q": (6, 4), "k": (6, 4), "v": (6, 6)},
    {"q": "in out", "k": "in out", "v": "in out"},
    X,
)
jax_layer(
    "class_token",
    lambda p, x: jnp.concatenate([jnp.tile(p["token"], (2, 1, 1)), x], 1) @ p["w"],
    {"token": (1, 6), "w": (6, 4)},
    {"w": "in out"},
    X,
)
