"""Whether the weights of a file are (in, out), as in JAX, or (out, in), as in PyTorch.

A file does not say it, but its metadata and the names and shapes of its leaves do. Where they do
not agree, the layout is unclear, and what depends on it needs `--layout`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune._base.paths import parts_of
from jaxprune._cli.words import WrongOption, structure_text
from jaxprune._files.any_kind import Source
from jaxprune._files.leaves import Leaf
from jaxprune._recipe.leaf_axes import is_in_out, is_table
from jaxprune._recipe.role_table import AxisRoles
from jaxprune._recipe.roles import as_roles, torch_roles
from jaxprune._recipe.traits import traits_of

_FLAX_NAMES = ("kernel", "embedding", "w")
_LAYOUT_OF_FORMAT = {"pt": "torch", "flax": "jax", "jax": "jax"}
_ORDER = {"torch": "(out, in)", "jax": "(in, out)"}


class Layout(NamedTuple):
    """The layout of a file.

    Attributes:
      name: "torch", "jax" or "unclear".
      reason: why.
    """

    name: str
    reason: str


def with_layout(
    rules: Mapping[str, Any], asked: str, source: Source, chosen: Sequence[Leaf]
) -> tuple[dict[str, Any], list[str]]:
    """The rules with the roles of axes, and a line that says which layout was chosen.

    Args:
      rules: arguments of `prune_params`.
      asked: what `--layout` says.
      source: the file.
      chosen: the leaves that are pruned.

    Raises:
      WrongOption: the layout is needed, but it is unclear.
    """
    option = _option_that_needs_it(rules, chosen)
    if asked == "auto" and option is None:
        return dict(rules), []
    layout = _layout_of(source, chosen)
    if asked == "auto" and layout.name == "unclear":
        raise WrongOption(
            f"{option} depends on whether weights are (in, out) or (out, in), which is unclear: "
            f"{layout.reason}. Type --layout jax for (in, out), or --layout torch for (out, in)."
        )
    name = layout.name if asked == "auto" else asked
    line = f"layout: {name}, {_ORDER[name]}"
    if asked == "auto":
        line += f", because {layout.reason}"
    elif misfits := _misfits(name, source.leaves, chosen):
        line += f" as asked, although {misfits}"
    return {**rules, "roles": _roles(name, asked == "auto", chosen)}, [line]


def _option_that_needs_it(rules: Mapping[str, Any], chosen: Sequence[Leaf]) -> str | None:
    """The option that depends on the layout; None where there is none."""
    structure, distribution = rules["structure"], str(rules["distribution"])
    if traits_of(structure).follows_roles:
        return f"--structure {structure_text(structure)}"
    if distribution in ("er", "erk") and any(len(leaf.shape) > 2 for leaf in chosen):
        return f"--distribution {distribution}"
    return None


def _layout_of(source: Source, chosen: Sequence[Leaf]) -> Layout:
    """The layout that the file shows."""
    says_format = _LAYOUT_OF_FORMAT.get(source.metadata.get("format", ""))
    torch_names = [leaf.path for leaf in chosen if _torch_roles(leaf) is not None]
    flax_names = [leaf.path for leaf in chosen if _name(leaf.path) in _FLAX_NAMES]
    reasons: dict[str, list[str]] = {"torch": [], "jax": []}
    if says_format is not None:
        reasons[says_format].append(f"the metadata say format: {source.metadata['format']}")
    if torch_names:
        reasons["torch"].append(f"{torch_names[0]} is named as in PyTorch")
    if flax_names:
        reasons["jax"].append(f"{flax_names[0]} is named as in Flax")
    if source.kind == "orbax" and not torch_names:
        reasons["jax"].append("it is a checkpoint of JAX")
    if not any(reasons.values()):
        return Layout("unclear", "neither the metadata nor the names of the leaves show it")
    if all(reasons.values()):
        return Layout("unclear", f"{reasons['torch'][0]}, but {reasons['jax'][0]}")
    [name] = [name for name, given in reasons.items() if given]
    reason = " and ".join(reasons[name])
    if misfits := _misfits(name, source.leaves, chosen):
        return Layout("unclear", f"{reason}, but {misfits}")
    return Layout(name, reason)


def _misfits(name: str, leaves: Sequence[Leaf], chosen: Sequence[Leaf]) -> str:
    """A leaf whose bias does not fit the layout; empty where there is none.

    A bias has one entry for each output: in GPT-2, whose weights are (in, out) in files of PyTorch,
    a weight of shape (768, 2304) has a bias of 2304.
    """
    length_of = {leaf.path: leaf.shape[0] for leaf in leaves if len(leaf.shape) == 1}
    for leaf in chosen:
        n_outputs = length_of.get(_bias_of(leaf.path))
        if n_outputs is not None and n_outputs != leaf.shape[_axis_of_outputs(name, leaf)]:
            return f"{leaf.path} of shape {leaf.shape} has a bias of {n_outputs}"
    return ""


def _axis_of_outputs(name: str, leaf: Leaf) -> int:
    """The axis of outputs in a layout: transposed convolutions of torch are (in, out, ...)."""
    if name != "torch":
        return -1
    roles = _torch_roles(leaf)
    return 0 if roles is None else roles.index("out")


def _bias_of(path: str) -> str:
    """The path of the bias beside a weight."""
    name = _name(path)
    return path.removesuffix(name) + ("b" if name == "w" else "bias")


def _name(path: str) -> str:
    return parts_of(path)[-1]


def _torch_roles(leaf: Leaf) -> tuple[str, ...] | None:
    rules = as_roles(torch_roles)
    return None if rules is None else rules.of(leaf.path, leaf.shape)


def _roles(name: str, is_guess: bool, chosen: Sequence[Leaf]) -> AxisRoles:
    """The roles of the leaves; those that the layout does not show have a reason instead.

    Where the layout of JAX is only a guess, tables of embeddings have neither: they are looked up,
    or multiplied as (out, in).
    """
    roles, without = {}, {}
    for leaf in chosen:
        n_axes = len(leaf.shape)
        if name == "torch":
            known = _torch_roles(leaf)
            if known is None and n_axes == 2 and not is_guess:
                known = ("out", "in")
        elif is_guess and is_table(leaf.path):
            continue
        else:
            is_conv = n_axes > 2 and is_in_out(leaf.path, leaf.shape)
            known = ("window",) * (n_axes - 2) + ("in", "out")
            known = known if n_axes == 2 or is_conv else None
        if known is None:
            without[leaf.path] = f"the layout {name} does not show them"
        else:
            roles[leaf.path] = known
    shapes = {leaf.path: leaf.shape for leaf in chosen}
    return AxisRoles(roles, without, shapes)
