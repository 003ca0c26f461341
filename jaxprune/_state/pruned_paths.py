"""Which leaves of a tree were last pruned in this process, by the paths of the tree.

A prune state holds only arrays, so inside `jit` nothing in it tells which leaves are pruned. `init`
and `update` record it here while they are traced, and `metrics` looks it up for the names of its
values. If an optimizer contains several prune transformations of one tree, they record one after
the other, in the order of their states; the last ones count.
"""

from collections.abc import Sequence

_MOST = 256  # trees to remember
_MOST_OF_TREE = 16  # transformations of one tree to remember
_pruned: dict[tuple[str, ...], list[frozenset[str]]] = {}


def record_pruned(paths: Sequence[str], chosen: Sequence[int]) -> None:
    """Records that the leaves with these indices are pruned."""
    key = tuple(paths)
    recorded = _pruned.pop(key, [])
    _pruned[key] = [*recorded, frozenset(paths[i] for i in chosen)][-_MOST_OF_TREE:]
    while len(_pruned) > _MOST:
        del _pruned[next(iter(_pruned))]


def recorded_pruned(paths: Sequence[str], n_later: int = 0) -> frozenset[str]:
    """The paths that are pruned, as recorded last; all of them where nothing was recorded.

    Args:
      paths: of all leaves of the tree.
      n_later: how many later states of the same tree the optimizer has.

    Example:
      >>> record_pruned(["bias", "kernel"], [0])
      >>> record_pruned(["bias", "kernel"], [1])
      >>> sorted(recorded_pruned(["bias", "kernel"])), sorted(recorded_pruned(["a", "b"]))
      (['kernel'], ['a', 'b'])
      >>> sorted(recorded_pruned(["bias", "kernel"], n_later=1))
      ['bias']
    """
    recorded = _pruned.get(tuple(paths), [])
    return recorded[-1 - n_later] if n_later < len(recorded) else frozenset(paths)
