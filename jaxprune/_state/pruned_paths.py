"""Which leaves of a tree were last pruned in this process, by the paths of the tree.

A prune state holds only arrays, so inside `jit` nothing in it tells which leaves are pruned. `init`
and `update` record it here while they are traced, and `metrics` looks it up for the names of its
values. If an optimizer contains several prune transformations of one tree, they record one after
the other, in the order of their states; the last ones count. A transformation that is traced more
than once in a step, as `optax.MultiSteps` does in two branches, counts once.
"""

from collections.abc import Sequence

_MOST = 256  # trees to remember
_MOST_OF_TREE = 16  # transformations of one tree to remember
_pruned: dict[tuple[str, ...], dict[int, frozenset[str]]] = {}  # by tree and transformation


def record_pruned(transformation: object, paths: Sequence[str], chosen: Sequence[int]) -> None:
    """Records that a transformation prunes the leaves with these indices.

    It is known by its `id`, which keeps nothing alive. If another one gets the same `id` later,
    the record that it replaces is of one that is gone.
    """
    key = tuple(paths)
    recorded = _pruned.pop(key, {})
    recorded.pop(id(transformation), None)
    recorded[id(transformation)] = frozenset(paths[i] for i in chosen)
    _pruned[key] = dict([*recorded.items()][-_MOST_OF_TREE:])
    while len(_pruned) > _MOST:
        del _pruned[next(iter(_pruned))]


def recorded_pruned(paths: Sequence[str], n_later: int = 0) -> frozenset[str]:
    """The paths that are pruned, as recorded last; all of them where nothing was recorded.

    Args:
      paths: of all leaves of the tree.
      n_later: how many later states of the same tree the optimizer has.

    Example:
      >>> record_pruned(first := object(), ["bias", "kernel"], [0])
      >>> record_pruned(second := object(), ["bias", "kernel"], [1])
      >>> sorted(recorded_pruned(["bias", "kernel"])), sorted(recorded_pruned(["of", "no tree"]))
      (['kernel'], ['no tree', 'of'])
      >>> sorted(recorded_pruned(["bias", "kernel"], n_later=1))
      ['bias']
    """
    recorded = list(_pruned.get(tuple(paths), {}).values())
    # A transformation that a chain has twice is recorded once.
    return recorded[max(-1 - n_later, -len(recorded))] if recorded else frozenset(paths)
