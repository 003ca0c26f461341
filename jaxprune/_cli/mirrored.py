"""Optimizer states without a name, as in a checkpoint of the tuple `(params, opt_state)`.

Moments and masks are trees like the params, so the params of such a state are the tree in the same
file that has leaves of the same paths and shapes.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

_Keys = tuple[str, ...]
_Shapes = Mapping[_Keys, tuple[int, ...]]

# What states of optax hold for every param beside their count, and what some hold alone.
_MOMENTS = ("mu", "nu", "trace", "ema", "v", "z", "sum_of_squares", "acc_grads")
_ALONE = ("trace", "nu", "sum_of_squares")
_COUNTS = ("count", "mini_step", "gradient_step")


class Mirrored(NamedTuple):
    """An optimizer state, and the params that it belongs to, by the keys of both."""

    optimizer: _Keys
    params: _Keys


def mirrored(shapes: _Shapes) -> set[Mirrored]:
    """The optimizer states of a file that are like other trees in it. Those may be its root, ().

    Args:
      shapes: the shape of each leaf, by the keys of its path.

    Example:
      >>> state = {("1", "0", key, "w"): (8,) for key in ("mu", "nu")} | {("1", "0", "count"): ()}
      >>> mirrored({("0", "w"): (8,), **state})
      {Mirrored(optimizer=('1',), params=('0',))}
    """
    names: dict[_Keys, set[str]] = {}
    for keys in shapes:
        for n in range(keys.index("params") if "params" in keys else len(keys)):
            names.setdefault(keys[:n], set()).add(keys[n])
    states = {node for node in names if _is_state(node, names[node])}
    others = {k: shape for k, shape in shapes.items() if states.isdisjoint(_parents(k))}
    roots_of: dict[_Keys, list[_Keys]] = {}  # of all other leaves, by every end of a path
    for keys in others if states else ():
        for n in range(len(keys)):
            roots_of.setdefault(keys[n:], []).append(keys[:n])
    found = set()
    for node in sorted(states):
        most_common = len(node) - (2 if _is_link(node, names[node]) else 1)
        for name in sorted(names[node].intersection((*_MOMENTS, "masks"))):
            moments = {
                keys[len(node) + 1 :]: shape
                for keys, shape in shapes.items()
                if keys[: len(node) + 1] == (*node, name)
            }
            fits = {k: None if name == "masks" else shape for k, shape in moments.items()}
            roots = _like(fits, others, roots_of)
            roots = [root for root in roots if _n_common(node, root) <= most_common]
            if roots:
                nearest = min(roots, key=lambda root: (-_n_common(node, root), root))
                found.add(Mirrored(node[: _n_common(node, nearest) + 1], nearest))
    return found


def _is_state(node: _Keys, names: Collection[str]) -> bool:
    """Whether a node with these names is a state of optax or jaxprune.

    Layers may be called `mu` or `trace`, too. So there is a count beside moments, or the node is a
    link of a chain.
    """
    if {"prune_step", "masks"} <= set(names) or _is_link(node, names):
        return True
    return not (set(names).isdisjoint(_COUNTS) or set(names).isdisjoint(_MOMENTS))


def _is_link(node: _Keys, names: Collection[str]) -> bool:
    """Whether a node is the link of a chain that holds one kind of moment, and no count."""
    return len(node) > 1 and node[-1].isdigit() and len(names) == 1 and set(names) <= set(_ALONE)


def _like(
    fits: Mapping[_Keys, tuple[int, ...] | None],
    others: _Shapes,
    roots_of: Mapping[_Keys, list[_Keys]],
) -> list[_Keys]:
    """The trees that have leaves of these paths and shapes; a shape of None fits any other."""
    if not fits:
        return []
    first = next(iter(fits))
    return [
        root
        for root in roots_of.get(first, ())
        if all(
            (*root, *end) in others and shape in (None, others[*root, *end])
            for end, shape in fits.items()
        )
    ]


def _n_common(a: _Keys, b: _Keys) -> int:
    """How many keys two paths share from their start."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def _parents(keys: _Keys) -> Iterable[_Keys]:
    """The first key, the first two, and so on."""
    return (keys[:n] for n in range(1, len(keys) + 1))
