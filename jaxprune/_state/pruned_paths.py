"""Which leaves of a tree were last pruned in this process, by the paths of the tree.

A prune state holds only arrays, so inside `jit` nothing in it tells which leaves are pruned. `init`
and `update` record it here while they are traced, and `metrics` looks it up for the names of its
values. With two transformations of the same tree, the one that was traced last counts.
"""

from collections.abc import Sequence

_MOST = 256  # trees to remember
_pruned: dict[tuple[str, ...], frozenset[str]] = {}


def record_pruned(paths: Sequence[str], chosen: Sequence[int]) -> None:
    """Records that the leaves with these indices are pruned."""
    key = tuple(paths)
    _pruned.pop(key, None)
    _pruned[key] = frozenset(paths[i] for i in chosen)
    while len(_pruned) > _MOST:
        del _pruned[next(iter(_pruned))]


def recorded_pruned(paths: Sequence[str]) -> frozenset[str]:
    """The paths that are pruned, as recorded last; all of them where nothing was recorded.

    Example:
      >>> record_pruned(["bias", "kernel"], [1])
      >>> sorted(recorded_pruned(["bias", "kernel"])), sorted(recorded_pruned(["a", "b"]))
      (['kernel'], ['a', 'b'])
    """
    return _pruned.get(tuple(paths), frozenset(paths))
