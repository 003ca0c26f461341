"""`upgrade_state`: continue from an optimizer state that an older release saved.

The state is fitted to the one that `tx.init` makes, from the root down. Children are looked up by
their keys, so that the nested dicts and lists to which checkpoint libraries reduce a state fit too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune._base.arguments import shown
from jaxprune._base.counting import counting, is_wide
from jaxprune._base.paths import (
    check_array_library,
    check_not_donated,
    flattened,
    path_str,
    paths_of,
    shown_path,
)
from jaxprune._base.sharding import placed_like
from jaxprune._base.trees import ArrayTree
from jaxprune._state.bit_masks import are_parts, split_bits, width_of_each
from jaxprune._state.choose import following
from jaxprune._state.new_state import batch_of, new_state
from jaxprune._state.progress import LANDS, WILL_LAND, Choices, Progress
from jaxprune._state.prune_state import PruneState, computable, unboxed
from jaxprune._state.recount import recounted, with_counts, with_saved_counts
from jaxprune._state.splice import check_transformation

_MISSING = object()


def upgrade_state(tx: optax.GradientTransformation, params: ArrayTree, old_state: Any) -> Any:
    """A saved optimizer state in the form of this release, to continue training with `tx`.

    Every array of the saved state is kept. What older releases did not save (`progress`) is derived
    from its masks and its step. For `NM`, `Block`, `Channel` and slices, masks do not tell how many
    units they drop; without a saved `progress`, the next update chooses such masks anew. If the
    saved run had another score, the sums of a score that adds up over steps (`movement`) begin at
    zero. It runs on the host, outside `jit` and `vmap`.

    A state made under `vmap` or `pmap`, with one `prune_step` per member, needs the params of all
    members, stacked as they are trained. If the members hold parts of a leaf (`axis_name`), the
    next update counts over all parts; call `check` and `metrics` after it. Masks do not change.

    With a list of schedules, the number of the chosen one is kept. A state without `progress`, such
    as one that went through `shrink`, does not say which schedule it follows, and raises: continue
    with that schedule alone, `prune(schedules[number])`. Read the number before `shrink`, from
    `get_state(opt_state).progress.choices.number`. A state of a single schedule follows the first
    of a list until `choose_schedule` says otherwise.

    Args:
      tx: the transformation to continue with, built as it was for the saved run.
      params: the params, or any tree with their paths, shapes and dtypes. Where `init` needs values
        (`keep_zeros`, `rigl`, `set_`, `static_sparse`), arrays.
      old_state: the saved optimizer state: either with the same states inside as `tx.init(params)`,
        or as the nested dicts and lists that `flax.serialization.msgpack_restore`, or orbax without
        a target, return; or what holds it as `.opt_state` or under the key `opt_state`.

    Returns:
      An optimizer state with the structure of `tx.init(params)`.

    Raises:
      TypeError: `tx` is not an optax transformation.
      ValueError: `tx` does not prune, or the saved state belongs to another optimizer or other
        params (the error names the first difference), or its arrays were donated or are traced; or
        it is unclear which of several schedules it follows.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
      >>> old_state = tx.init(params)._replace(progress=None)
      >>> int(upgrade_state(tx, params, old_state).progress.fires_left)
      1
    """
    check_transformation("upgrade_state", tx, "the saved state")
    _check_untraced((params, old_state))
    with warnings.catch_warnings():
        # The masks are those of the saved state, also where the params have no zeros (any more).
        warnings.filterwarnings("ignore", r"jaxprune\.keep_zeros: ")
        fresh = new_state("upgrade_state", tx, params, batch_of(old_state))
    if not _has_fields_of(fresh, old_state):
        old_state = getattr(old_state, "opt_state", old_state)
        if isinstance(old_state, Mapping):
            old_state = old_state.get("opt_state", old_state)
    check_not_donated("upgrade_state: old_state", old_state)
    return _fitted(fresh, old_state, ())


def _check_untraced(arguments: Any) -> None:
    """Raises a ValueError where an array has no values yet, as inside `jit` and `vmap`."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in flattened(arguments)[0]):
        raise ValueError(
            "upgrade_state: runs on the host, but params or old_state are traced by jit, vmap or "
            "grad. Call it outside the compiled function, and pass the result in. It accepts the "
            "state of an ensemble, with stacked params, without vmap."
        )


def _has_fields_of(fresh: Any, old: Any) -> bool:
    """Whether a saved state has all fields of the new one, as one of `optax.contrib.sam` may.

    It has a field `opt_state`, which is not that of a train state.
    """
    fields = getattr(fresh, "_fields", ())
    keys = map(jax.tree_util.GetAttrKey, fields)
    return bool(fields) and all(_child(old, k, i) is not _MISSING for i, k in enumerate(keys))


def _fitted(fresh: Any, old: Any, path: tuple[Any, ...]) -> Any:
    """`fresh` with the arrays of `old`. `path` is the key path of both nodes, for errors."""
    if jax.tree_util.all_leaves([fresh]):
        return _fitted_leaf(fresh, old, path)
    if isinstance(fresh, PruneState):
        return _fitted_prune_state(fresh, old, path)
    if not jax.tree.leaves((fresh, old)):
        return fresh
    if hasattr(old, "_fields") and type(old).__name__ != type(fresh).__name__:
        raise ValueError(_misfit(path, fresh, old))
    flat, treedef = jax.tree_util.tree_flatten_with_path(fresh, is_leaf=lambda x: x is not fresh)
    children, n_used = [], 0
    for i, (key, child) in enumerate(flat):
        old_child = _child(old, key[-1] if key else None, i)
        if old_child is _MISSING:
            if jax.tree.leaves(child):
                raise ValueError(_misfit((*path, *key), child, old))
            old_child = None
        n_used += len(jax.tree.leaves(old_child))
        children.append(_fitted(child, old_child, (*path, *key)))
    if n_used < len(jax.tree.leaves(old)):
        raise ValueError(_misfit(path, fresh, old))
    return treedef.unflatten(children)


def _fitted_prune_state(fresh: PruneState, old: Any, path: tuple[Any, ...]) -> PruneState:
    """A prune state with the arrays of `old`; of its progress, those that fit its masks."""
    _check_packed(fresh, old, path)
    fields = {}
    for i, name in enumerate(PruneState._fields[:-1]):
        fresh_field, key = getattr(fresh, name), jax.tree_util.GetAttrKey(name)
        old_field = _child(old, key, i)
        if old_field is _MISSING:
            if jax.tree.leaves(fresh_field):
                raise ValueError(_misfit((*path, key), fresh_field, old))
            old_field = None  # `nnx.state` leaves out what is None
        if name == "score_state" and not (
            jax.tree.leaves(old_field) and jax.tree.leaves(fresh_field)
        ):
            fields[name] = fresh_field
            continue
        fields[name] = _fitted(fresh_field, old_field, (*path, key))
        if name == "masks" and fresh.widths is not None:
            _check_bit_masks((*path, key), old_field)
        if name == "widths" and fresh.widths is not None:
            _check_widths(fresh, fields[name], path)
            fields[name] = fresh_field  # of the whole leaves, where a map has split them
    state = fresh._replace(**fields)
    if fresh.progress is None:  # this JAX can't pass on its counts
        return state
    old_progress = _child(old, jax.tree_util.GetAttrKey("progress"), len(fields))
    old_progress = None if old_progress is _MISSING else old_progress
    saved = _saved_arrays(fresh.progress, old_progress)
    state = _without_stale_masks(state, fresh, saved)
    state = state._replace(progress=recounted(fresh.progress, computable(state)))
    if fresh.progress.choices is not None:
        state = following(state, _chosen(fresh.progress.choices, old_progress))
    return _with_saved_progress(state, fresh.progress, saved)


def _without_stale_masks(
    state: PruneState, fresh: PruneState, saved: Mapping[str, Any]
) -> PruneState:
    """The state with new masks for leaves that are not pruned now, or were not when it was saved.

    A leaf that was left out for a while still has its mask of the time before.
    """
    are_stale = np.asarray(unboxed(fresh.progress.pool_of)) < 0
    if "pool_of" in saved:
        are_stale = are_stale | (np.asarray(saved["pool_of"]) < 0)
    of_all_members = np.all(are_stale, tuple(range(are_stale.ndim - 1))).tolist()
    masks, treedef = jax.tree.flatten(state.masks)
    new = jax.tree.leaves(fresh.masks)
    masks = [n if stale else m for n, m, stale in zip(new, masks, of_all_members, strict=True)]
    return state._replace(masks=treedef.unflatten(masks))


def _with_saved_progress(
    state: PruneState, fresh: Progress, saved: Mapping[str, Any]
) -> PruneState:
    """The state with what its masks don't tell: the units they drop, and if they are applied."""
    names = ["reached"]
    if not np.any(unboxed(fresh.fires_left)):  # `keep_zeros`: what it dropped first is due
        names += ["due", "target"]
    progress = with_saved_counts(state.progress, saved, names)
    if "lands" in saved:
        lands, saved_lands = np.asarray(unboxed(fresh.lands)), np.asarray(saved["lands"])
        lands = np.where((lands == LANDS) & (saved_lands != LANDS), WILL_LAND, lands)
        progress = with_counts(progress, lands=lands)
    return state._replace(progress=progress)


def _chosen(fresh: Choices, old: Any) -> jax.Array:
    """Which of the schedules a saved progress follows: int32[...], 0 where it had only one.

    Raises:
      ValueError: it had another list, or none, so that this is not known.
    """
    n, first = jnp.shape(unboxed(fresh.target))[-1], jnp.zeros_like(unboxed(fresh.number))
    old_choices = _child(
        old, jax.tree_util.GetAttrKey("choices"), Progress._fields.index("choices")
    )
    if jax.tree.leaves(old) and (old_choices is _MISSING or not jax.tree.leaves(old_choices)):
        return first
    choices = _saved_arrays(fresh, old_choices)
    if n == 1 or choices:
        return choices["number"] if choices else first
    reason = "was made for another list" if jax.tree.leaves(old) else "has no `progress`"
    raise ValueError(
        f"upgrade_state: old_state {reason}, so that it does not say which of the {n} schedules of "
        "tx it follows. Build tx with that schedule alone, such as jaxprune.prune(schedules[1]), "
        "and pass it in place of this tx."
    )


def _check_widths(fresh: PruneState, saved: Any, path: tuple[Any, ...]) -> None:
    """Raises a ValueError where bit masks are of axes of another length."""
    pairs = zip(width_of_each(unboxed(saved)), width_of_each(unboxed(fresh.widths)), strict=True)
    for i, (width, whole) in enumerate(pairs):
        if not are_parts(width, whole):
            name, mask = paths_of(fresh.masks)[i], jax.tree.leaves(fresh.masks)[i]
            name = f"{path_str((*path, jax.tree_util.GetAttrKey('masks')))}/{name}"
            raise ValueError(split_bits(name, jnp.shape(mask), width))


def _saved_arrays(fresh: Any, old: Any) -> dict[str, Any]:
    """The arrays in the fields of a saved NamedTuple, by name; {} unless they fit the new one."""
    saved = {}
    for i, name in enumerate(fresh._fields):
        field, key = getattr(fresh, name), jax.tree_util.GetAttrKey(name)
        if len(jax.tree.leaves(field)) != 1:
            continue
        try:
            saved[name] = _fitted_leaf(unboxed(field), _child(old, key, i), (key,))
        except ValueError:
            return {}
    return saved


def _check_packed(fresh: PruneState, old: Any, path: tuple[Any, ...]) -> None:
    """Raises a ValueError where only one of the states has bit masks."""
    key = jax.tree_util.GetAttrKey("widths")
    saved = _child(old, key, PruneState._fields.index("widths"))
    was_packed = saved is not _MISSING and bool(jax.tree.leaves(saved))
    masks = _child(old, jax.tree_util.GetAttrKey("masks"), PruneState._fields.index("masks"))
    is_packed = fresh.widths is not None
    if is_packed == was_packed or masks is _MISSING:
        return
    name = shown_path(path_str((*path, jax.tree_util.GetAttrKey("masks"))))
    kinds = ("one byte for each weight", "one bit for each weight")
    convert = "pack_masks" if is_packed else "unpack_masks"
    raise ValueError(
        f"{name}: the saved state has {kinds[was_packed]}, but tx has packed={is_packed}. Call "
        f"upgrade_state with packed={was_packed} in tx, and then jaxprune.{convert}(opt_state)."
    )


def _check_bit_masks(path: tuple[Any, ...], masks: Any) -> None:
    """Raises a ValueError where bit masks were saved as bool: seven of eight weights are lost."""
    for keys, mask in jax.tree_util.tree_leaves_with_path(masks):
        if jnp.issubdtype(jnp.result_type(mask), jnp.bool_):
            raise ValueError(
                f"{path_str((*path, *keys))}: the saved bit mask has dtype bool, but it needs "
                "uint8, for the bits of eight weights in each byte. Restore the checkpoint into "
                "the dtypes of tx.init(params)."
            )


def _fitted_leaf(fresh: Any, old: Any, path: tuple[Any, ...]) -> Any:
    """The array in `old`, in the dtype of `fresh`; a NumPy array also goes to its devices."""
    leaves = jax.tree.leaves(old)
    if len(leaves) != 1:
        raise ValueError(_misfit(path, fresh, old))
    [leaf] = leaves
    check_array_library(path_str(path), leaf)
    if not isinstance(fresh, jax.Array):
        return leaf
    if jnp.issubdtype(fresh.dtype, jax.dtypes.extended):  # PRNG keys
        is_key = getattr(leaf, "dtype", None) == fresh.dtype
        return leaf if is_key else jax.random.wrap_key_data(jnp.asarray(leaf))
    is_number = hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float, complex))
    if not is_number or jnp.shape(leaf) != fresh.shape:
        raise ValueError(_misfit(path, fresh, leaf))
    with counting(is_wide(fresh)):
        array = jnp.asarray(leaf).astype(fresh.dtype)
    return array if isinstance(leaf, jax.Array) else placed_like(array, fresh)


def _child(node: Any, key: Any, i: int) -> Any:
    """The child of a saved node at a key of the new one; `_MISSING` if it has none.

    Checkpoint libraries may have turned tuples into lists or into dicts with the keys "0", "1",
    and NamedTuples into dicts or lists.
    """
    name = next((getattr(key, k) for k in ("key", "name", "idx") if hasattr(key, k)), i)
    leaves = jax.tree.leaves(node)
    if name == "value" and len(leaves) == 1:  # the box that Flax puts around an array
        return leaves[0]
    if isinstance(node, Mapping):
        names = [k for k in (name, str(name), str(i)) if k in node]
        return node[names[0]] if names else _MISSING
    is_sequence = isinstance(node, (tuple, list))  # their methods, such as `count`, are no children
    names = getattr(node, "_fields", ()) if is_sequence else dir(node)
    if isinstance(name, str) and name in names:
        return getattr(node, name)
    children: Any = node
    if isinstance(key, jax.tree_util.FlattenedIndexKey):  # a class that is registered without keys
        children = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
    if isinstance(children, (tuple, list)) and i < len(children):
        return _MISSING if children[i] is node else children[i]
    return _MISSING


def _misfit(path: tuple[Any, ...], fresh: Any, old: Any) -> str:
    """The message for a saved state of another optimizer or of other params."""
    return (
        f"{shown_path(path_str(path))}: the saved state does not fit this transformation: it has "
        f"{_outline(old)}, but tx.init(params) has {_outline(fresh)}. Build tx as it was built for "
        "the saved run, and pass the params of that run. If the saved run did not prune, use "
        "jaxprune.splice(tx, params, dense_opt_state)."
    )


def _outline(node: Any) -> str:
    """An array as `float32[3, 4]`, or the type and the keys of a node."""
    if hasattr(node, "shape") and hasattr(node, "dtype"):
        return f"{node.dtype}{list(node.shape)}"
    if isinstance(node, Mapping):
        return f"a dict with the keys {', '.join(map(str, node)) or '(none)'}"
    if isinstance(node, (tuple, list)) and not hasattr(node, "_fields"):
        return f"a {type(node).__name__} of {len(node)}"
    return shown(node) if isinstance(node, str | bytes) else type(node).__name__
