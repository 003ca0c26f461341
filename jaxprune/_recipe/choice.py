"""Which leaves are chosen, and which rule decides for each of them.

By default, weights are chosen: see `default_reasons` and docs/guides/which-leaves.md.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._base.float_bits import can_compute, has_zero
from jaxprune._base.paths import Rule, matches, parts_of, rule_name
from jaxprune._recipe.spelling import spelled_rules

Specs = tuple[jax.ShapeDtypeStruct | None, ...]

# What is pruned by default


def default_reasons(paths: Sequence[str], specs: Specs) -> list[str]:
    """Why each leaf is left out by default; an empty string for a leaf that is chosen.

    A leaf is chosen if its dtype is floating point or complex and it has two or more axes, unless
    its path shows that it is a bias, a scale, a logarithm, a parameter of a normalisation layer, a
    LoRA factor or a quantisation scale. A bias called `b` or `b1` and a quantisation scale are
    recognised by the other leaves of the same parent.

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
    return not _free_reason(path, spec)


def is_default_of_keep_zeros(include: tuple[Rule, ...] | None) -> bool:
    """Whether these rules are what `keep_zeros` uses where a user gives no `include`."""
    return include == (may_keep_zeros,)


def _free_reason(path: str, spec: Any) -> str:
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
    """

    def __init__(self) -> None:
        self.n_quantised = 0
        self.n_axes: dict[str, int] = {}
        self.numbered: list[tuple[int, ...]] = []

    def add(self, name: str, spec: jax.ShapeDtypeStruct) -> None:
        """Takes one more leaf into account."""
        self.n_quantised += _is_quantised(spec.dtype)
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
    if beside.n_quantised > _is_quantised(spec.dtype) and _QUANTISATION_SCALE.fullmatch(name):
        return "quantisation scale"
    if _is_of_norm(parent, name):
        return "normalisation"
    if _is_scale(parent, name):
        return "scale"
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
_QUANTISATION_SCALE = re.compile("scales?|.*_scale(_inv)?|(.*_)?zeros?(_points?)?", re.DOTALL)
_EMBEDDING = re.compile(
    "wte|wpe|(.*_)?emb(ed(s|der|ding|dings)?)?(_.*)?", re.IGNORECASE | re.DOTALL
)


def _is_quantised(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer)) or dtype.name.startswith("float8")


# Rules of the user


class RuleUse:
    """Matches rules against leaves, and remembers which rules have matched and decided.

    A rule decides for a leaf if it is the first of its argument that matches.

    Example:
      >>> use, spec = RuleUse(), jax.ShapeDtypeStruct((2, 2), float)
      >>> use.first("overrides", ("fc/.*", "fc/kernel", "head"), "fc/kernel", spec)
      0
      >>> print(*use.unused("overrides", ("fc/.*", "fc/kernel", "head"), decides=True), sep="; ")
      overrides: 'fc/kernel' only matches leaves ...; overrides: 'head' matches no leaf ...
    """

    def __init__(self) -> None:
        self._matched: set[tuple[str, int]] = set()  # arguments, and indices of their rules
        self._decided: set[tuple[str, int]] = set()

    def first(self, argument: str, rules: Sequence[Rule], path: str, spec: Any) -> int | None:
        """The index of the first rule of an argument that matches a leaf; None where none does."""
        matching = [(argument, i) for i, rule in enumerate(rules) if matches(rule, path, spec)]
        self._matched.update(matching)
        self._decided.update(matching[:1])
        return matching[0][1] if matching else None

    def unused(self, argument: str, rules: Sequence[Rule], *, decides: bool) -> list[str]:
        """One line for each rule that has had no effect.

        Args:
          argument: the name of the user's argument.
          rules: its rules.
          decides: whether the rules of the argument assign values to pruned leaves, so that only
            the first match counts.
        """
        lines = []
        for i, rule in enumerate(rules):
            if (argument, i) not in self._matched:
                which = " that is pruned" if decides else ""
                lines.append(f"{argument}: {rule_name(rule)} matches no leaf{which}")
            elif decides and (argument, i) not in self._decided:
                lines.append(
                    f"{argument}: {rule_name(rule)} only matches leaves that an earlier rule "
                    "matches"
                )
        return lines


class Choice(NamedTuple):
    """Whether a leaf is chosen.

    Attributes:
      chosen: whether it is.
      reason: why not; empty for a chosen leaf.
      override: the index of the override that applies to it, or None.
      by_rule: whether `include` or `exclude` left it out.
    """

    chosen: bool
    reason: str
    override: int | None = None
    by_rule: bool = False


class LeafRules(NamedTuple):
    """The rules that choose leaves.

    Attributes:
      include: a leaf must match one of these; None for the default, `default_reasons`.
      exclude: a leaf that matches one of these is not chosen.
      overrides: the first that matches a chosen leaf applies to it. They choose nothing.
    """

    include: tuple[Rule, ...] | None = None
    exclude: tuple[Rule, ...] = ()
    overrides: tuple[Rule, ...] = ()

    def spelled_for(self, paths: Sequence[str]) -> "LeafRules":
        """The rules in the spelling of the paths; see `jaxprune._recipe.spelling`."""
        return LeafRules(*(spelled_rules(rules, paths) for rules in self))

    def choose(self, paths: Sequence[str], specs: Specs, use: RuleUse) -> tuple[Choice, ...]:
        """Decides whether each leaf of a tree is chosen; what is not an array never is."""
        reasons = default_reasons(paths, specs)
        return tuple(
            self._choice(path, spec, reason, use)
            for path, spec, reason in zip(paths, specs, reasons, strict=True)
        )

    def _choice(
        self, path: str, spec: jax.ShapeDtypeStruct | None, default_reason: str, use: RuleUse
    ) -> Choice:
        if spec is None:
            return Choice(False, default_reason)
        excluded = use.first("exclude", self.exclude, path, spec)
        if self.include is not None and use.first("include", self.include, path, spec) is None:
            by_default = is_default_of_keep_zeros(self.include)
            reason = _free_reason(path, spec) if by_default else "not matched by include"
            return Choice(False, reason, by_rule=True)
        if excluded is not None:
            return Choice(False, f"excluded by {rule_name(self.exclude[excluded])}", by_rule=True)
        if self.include is None and default_reason:
            return Choice(False, default_reason)
        return Choice(True, "", use.first("overrides", self.overrides, path, spec))

    def unused(self, use: RuleUse) -> list[str]:
        """One line for each rule that had no effect on the leaves that were chosen with `use`."""
        return [
            *use.unused("include", self.include or (), decides=False),
            *use.unused("exclude", self.exclude, decides=False),
            *use.unused("overrides", self.overrides, decides=True),
        ]
