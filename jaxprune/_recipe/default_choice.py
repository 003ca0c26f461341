"""Which leaves are chosen by default, recognised by dtypes, shapes and names.

By default, weights are chosen: see `default_reasons` and docs/guides/which-leaves.md.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._base.float_bits import can_compute, has_zero
from jaxprune._base.paths import Rule, parts_of

Specs = tuple[jax.ShapeDtypeStruct | None, ...]


def default_reasons(paths: Sequence[str], specs: Specs) -> list[str]:
    """Why each leaf is left out by default; an empty string for a leaf that is chosen.

    A leaf is chosen if its dtype is floating point or complex and it has two or more axes, unless
    its path shows that it is a bias, a scale, a logarithm, a mask, a parameter of a normalisation
    layer, a LoRA factor or a quantisation scale. A bias called `b` or `b1`, the scale of a weight
    norm and a quantisation scale are recognised by the other leaves of the same parent.

    Args:
      paths: of all leaves. Their parts are separated by `/`, or by dots, as in PyTorch.
      specs: of all leaves; None for a leaf that is not an array.

    Example:
      >>> leaf = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
      >>> specs = leaf("int8", 8, 4), leaf("float32", 8, 1), leaf("float32", 4)
      >>> default_reasons(["w", "w_scale", "b"], specs)
      ['dtype int8', 'quantisation scale', '1-D']
    """
    neighbours: dict[tuple[str, ...], _Neighbours] = {}
    for path, spec in zip(paths, specs, strict=True):
        if spec is not None:
            *parent, name = parts_of(path)
            neighbours.setdefault(tuple(parent), _Neighbours()).add(name, spec)
            if (*parent[-1:], name) == ("layer", "weight"):  # in a WeightNorm of Equinox
                outer = neighbours.setdefault(tuple(parent[:-1]), _Neighbours())
                outer.shapes.setdefault("v", tuple(spec.shape))
    return [
        _default_reason(path, spec, neighbours) for path, spec in zip(paths, specs, strict=True)
    ]


def may_keep_zeros(path: str, spec: Any) -> bool:
    """Whether `keep_zeros` keeps the zeros of a leaf by default: those of biases and norms, too.

    Example:
      >>> spec = jax.ShapeDtypeStruct((4,), jnp.float32)
      >>> may_keep_zeros("fc/bias", spec), may_keep_zeros("log_std", spec)
      (True, False)
    """
    return not free_reason(path, spec)


def is_default_of_keep_zeros(include: tuple[Rule, ...] | None) -> bool:
    """Whether these rules are what `keep_zeros` uses where a user gives no `include`."""
    return include == (may_keep_zeros,)


def free_reason(path: str, spec: Any) -> str:
    """Why `keep_zeros` leaves a leaf free by default; an empty string where it keeps its zeros.

    A zero logarithm, as in `log_std`, means one, not that something is dropped. A dtype without a
    zero, or one that JAX can't compute with, can't be masked.
    """
    dtype = spec.dtype
    if not jnp.issubdtype(dtype, jnp.inexact) or not (has_zero(dtype) and can_compute(dtype)):
        return f"dtype {dtype}"
    return "logarithm" if _LOGARITHM.fullmatch(parts_of(path)[-1]) else ""


class _Neighbours:
    """The leaves of one parent, as far as they show what another leaf of this parent is.

    Attributes:
      n_quantised: how many hold quantised weights.
      n_axes: the largest number of axes of those that are named like a weight, by what their names
        have behind that: `w` and `kernel` under the empty string, `W1` under `1`.
      numbered: the shapes of those that have no names, such as the leaves of a tuple.
      shapes: of all, by name.
    """

    def __init__(self) -> None:
        self.n_quantised = 0
        self.n_axes: dict[str, int] = {}
        self.numbered: list[tuple[int, ...]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, name: str, spec: jax.ShapeDtypeStruct) -> None:
        """Takes one more leaf into account."""
        self.n_quantised += _is_quantised(spec)
        self.shapes[name] = tuple(spec.shape)
        if name.isdecimal():
            self.numbered.append(tuple(spec.shape))
        if match := _WEIGHT.fullmatch(name):
            ending = match["ending"]
            self.n_axes[ending] = max(self.n_axes.get(ending, 0), len(spec.shape))

    def has_bias(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a leaf is the bias `b1` of a weight `w1`, or a row or column beside weights.

        Of a pair without names, `(w, b)`, the shapes show it.

        Example:
          >>> neighbours = _Neighbours()
          >>> neighbours.add("W1", jax.ShapeDtypeStruct((3, 8, 4), jnp.float32))
          >>> [neighbours.has_bias("b1", shape) for shape in ((3, 4), (1, 4), (3, 8, 4))]
          [True, True, False]
        """
        if name.isdecimal() and len(self.numbered) == 2:
            return _is_bias_of(self.numbered[0], tuple(shape))
        match = _SHORT_BIAS.fullmatch(name)
        if match is None:
            return False
        is_vector = sum(n != 1 for n in shape) <= 1
        return self.n_axes.get(match["ending"], 0) > len(shape) or (is_vector and bool(self.n_axes))

    def has_weight_norm(self, name: str) -> bool:
        """Whether a leaf holds the norms that a weight norm multiplies the leaf beside it with.

        As `weight_g` of torch beside `weight_v`, or `original0` beside `original1`.
        """
        if not _WEIGHT_NORM.fullmatch(name):
            return False
        beside = "original1" if name == "original0" else f"{name[:-1]}v"
        shape, weight = self.shapes[name], self.shapes.get(beside, ())
        return (
            len(shape) == len(weight)
            and all(n in (1, size) for n, size in zip(shape, weight, strict=True))
            and shape != weight
        )


def _is_bias_of(weight: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether the shape of a bias fits that of a weight (..., in, out): (..., out) or a row."""
    if len(weight) < 2 or weight[-2] < 2:
        return False
    row = (1,) * (len(weight) - 1) + weight[-1:]
    return shape in (row, weight[:-2] + weight[-1:])


def _default_reason(
    path: str, spec: jax.ShapeDtypeStruct | None, neighbours: dict[tuple[str, ...], _Neighbours]
) -> str:
    if spec is None:
        return "not an array"
    if not jnp.issubdtype(spec.dtype, jnp.inexact):
        return f"dtype {spec.dtype}"
    if len(spec.shape) < 2:
        return f"{len(spec.shape)}-D"
    *parent, name = parts_of(path)
    beside = neighbours[tuple(parent)]
    if name == "offset":
        return name
    if _BIAS.fullmatch(name) or beside.has_bias(name, spec.shape):
        return "bias"
    if _is_of_lora((*parent, name)):
        return "LoRA factor"
    if beside.n_quantised > _is_quantised(spec) and is_quantisation_scale(name):
        return "quantisation scale"
    if _is_of_norm(parent, name):
        return "normalisation"
    if _is_scale(parent, name) or beside.has_weight_norm(name):
        return "scale"
    if _MASK.fullmatch(name):
        return "mask"
    return "logarithm" if _LOGARITHM.fullmatch(name) else ""


def _is_of_lora(parts: Sequence[str]) -> bool:
    """Whether a part of a path is named like a LoRA factor, or two of them are.

    As in `lora/up`, `lora/up/kernel` and `lora/fc/A`; but `lora/mlp/up` may be the layer `up`.
    """
    pairs = itertools.pairwise(parts)
    *parents, name = parts
    return (
        any(map(_LORA_FACTOR.fullmatch, parts))
        or any(_LORA.fullmatch(layer) and _FACTOR.fullmatch(factor) for layer, factor in pairs)
        or (name.lower() in ("a", "b") and any(map(_LORA.fullmatch, parents)))
    )


def _is_of_norm(parent: Sequence[str], name: str) -> bool:
    """Whether a leaf is named like a normalisation layer, or is the scale or bias of one."""
    in_layer = name in _OF_LAYER and _NORM.fullmatch(_layer(parent))
    return bool(in_layer or _NORM.fullmatch(name))


def _is_scale(parent: Sequence[str], name: str) -> bool:
    """Whether a leaf is named like a scale, or is that of a layer scale (`ls1/gamma`)."""
    in_layer = name in _OF_LAYER and _LAYER_SCALE.fullmatch(_layer(parent))
    return bool(in_layer or _SCALE.fullmatch(name))


def _layer(parent: Sequence[str]) -> str:
    """The last part of a path that is not an index, as in `norms/0`."""
    return next((part for part in reversed(parent) if not part.isdecimal()), "")


def is_quantisation_scale(name: str) -> bool:
    """Whether a leaf beside quantised weights is named like their scales, zero points or codebook.

    Example:
      >>> [is_quantisation_scale(name) for name in ("weight_scale_inv", "qzeros", "upscale")]
      [True, True, False]
    """
    return _QUANTISATION_SCALE.fullmatch(name) is not None


def is_embedding(path: str) -> bool:
    """Whether a leaf or its parent is named like an embedding table.

    Example:
      >>> [is_embedding(p) for p in ("Embed_0/embedding", "wte.weight", "embed/mlp/kernel")]
      [True, True, False]
    """
    return any(_EMBEDDING.fullmatch(part) for part in parts_of(path)[-2:])


_ENDING = "(?P<ending>[0-9]*|[a-zA-Z]{1,2}[0-9]*|_[a-zA-Z0-9]+)"
_WEIGHT = re.compile("([wW]|kernel|weights?)" + _ENDING)
_SHORT_BIAS = re.compile("b" + _ENDING)
# `bias_n` of Equinox's GRU; `bias_k` and `bias_ih_l0` of torch.
_BIAS = re.compile(r"(.*_)?bias(es)?|bias_([nkv]|[ih]h(_l[0-9]+)?(_reverse)?)", re.DOTALL)
_OF_LAYER = ("weight", "w", "g", "b", "gamma", "beta")
_SCALE = re.compile("(.*_)?(layer)?scales?(_?[0-9]+)?", re.DOTALL | re.IGNORECASE)
_LAYER_SCALE = re.compile("ls[0-9]*|layer_?scale(_?[0-9]+)?", re.DOTALL | re.IGNORECASE)
# As in log_std, A_log: zero there stands for exp(0) = 1, so it must not be pruned.
_LOGARITHM = re.compile("(.*_)?log(_.*|std|var|sigma|scale|alpha|dt)?", re.DOTALL | re.IGNORECASE)
# As in lora_a, kernel_lora_b, loraA, lora_embedding_A (PEFT), lora_up (kohya); lora.up (diffusers).
_LORA = re.compile("(.*_)?lora(_?(params|weights|layers|adapters?))?", re.IGNORECASE | re.DOTALL)
_FACTOR = re.compile("a|b|up|down", re.IGNORECASE)
_LORA_FACTOR = re.compile(
    f"(.*_)?lora_?(embedding_)?({_FACTOR.pattern})", re.IGNORECASE | re.DOTALL
)
# As in layer_norm, LayerNorm_0, input_layernorm, rms_norm, norm1, norms, ln_f, bn2; but weight norm
# and spectral norm rescale a weight, and are named after its layer.
_NORM = re.compile(
    "(?!.*(weight|spectral)_?norm)(.*norms?|(.*_)?(ln|bn|gn))(_?[0-9]+|_[a-z])?",
    re.IGNORECASE | re.DOTALL,
)
# `weight_g`, `g` and, of torch's parametrizations, `original0`.
_WEIGHT_NORM = re.compile("(.*_)?g|original0", re.DOTALL)
# As `weight_mask`, which torch.nn.utils.prune saves beside `weight_orig`.
_MASK = re.compile("(.*_)?masks?(_?[0-9]+)?", re.DOTALL | re.IGNORECASE)
# As in weight_scale_inv, wscales, qzeros, weight_zero_point; the codebooks of AQLM and VPTQ.
_QUANTISATION_SCALE = re.compile(
    "(.*_)?([a-z]?scales?(_inv|_?[0-9]+)?|[a-z]?zeros?(_?points?)?|absmax|codebooks?|centroids)",
    re.DOTALL,
)
_EMBEDDING = re.compile(
    "wte|wpe|(.*_)?emb(ed(s|der|ding|dings)?)?(_.*)?", re.IGNORECASE | re.DOTALL
)


def _is_quantised(spec: jax.ShapeDtypeStruct) -> bool:
    is_integer = bool(jnp.issubdtype(spec.dtype, jnp.integer))
    return len(spec.shape) >= 2 and (is_integer or spec.dtype.name.startswith("float8"))
