"""Finds the optimizer states in a file, and the params that each belongs to.

Some states have names, such as `opt_state`; others have none, as in a checkpoint of the tuple
`(params, opt_state)`. All states of optax have fields of known names, and moments and masks are
trees like the params: the params of a state are the tree outside it with the same paths.
"""

import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune._state.bit_masks import is_mask_shape

Keys = tuple[str, ...]
_Shapes = Mapping[Keys, tuple[int, ...]]

# By the fields that a state always has, those that it may have besides.
_FIELDS = {
    "prune_step masks": "thresholds violations inner_state widths score_state progress",
    "count mu": "nu nu_max ns_coeffs hessian_fn_state",
    "count nu": "",
    "count ema": "",
    "count v_row v_col v": "",
    "count count_m2 m1 m2 nu": "",
    "count grad_acc": "",
    "count grad_sum_sq s x0": "",
    "count r m v s x0": "base_optimizer_state",
    "count params updates diff_params_memory": "diff_updates_memory weights_memory",
    "m v n g t": "",
    "t m n": "",
    "e_g e_x": "",
    "exp_avg count": "exp_avg_sq grad_sum params0 estim_lr numerator_weighted barf gamma lb",
    "init_particles cumulative_gradients scale subgradients reward": "",
    "init_params max_dist grad_sum_of_squares": "",
    "init_params sum_sq_norm_grads": "is_init_step first_step max_dist estim_dist",
    "init_params weighted_sq_norm_grads estim_sq_dist": "",
    "is_initial_step previous_gradient": "",
    "step_sizes prev_updates": "",
    "weight_sum z": "b1 step_count max_lr base_optimizer_state",
    "acc_grads mini_step": "gradient_step inner_opt_state skip_state",
    "cache steps_since_sync": "opt_state adv_state",
    "micro_step avg_grad": "ready",
    "grad value": "learning_rate info",
}
_STATES = tuple((set(a.split()), set(f"{a} {b}".split())) for a, b in _FIELDS.items())
# Fields that are one array where the params are one.
_MOMENTS = ("masks", "mu", "nu", "m", "v", "z", "trace", "ema", "exp_avg", "acc_grads")
_WRAPPERS = frozenset(
    ("inner_state", "inner_states", "inner_opt_state", "base_optimizer_state", "opt_state")
    + ("adv_state",)
)
_TWINS = ("mu", "nu")
# States without a count; layers may be called so, too.
_ALONE = ({"trace"}, {"nu"}, {"mu", "nu"}, {"sum_of_squares"})

# Where these have not the shape of their param: what they have. Moments of Adafactor are factored.
_FITS: dict[str, Callable[[Any, Any], bool]] = {
    "masks": is_mask_shape,
    **dict.fromkeys(("v", "v_row", "v_col"), lambda moments, shape: True),
}

_ENDS = ("opt_state", "optimizer_state")
_ENDS_OF_NAMES = tuple(f"_{end}" for end in _ENDS)
# These may also be the names of layers; what is inside shows which.
_NAMES = ("optimizer", "opt", "optim")
_ONLY_IN_OPTIMIZERS = frozenset(
    ("slots", "param_groups", "exp_avg", "exp_avg_sq", "hyperparams", "inner_state")
    + ("opt_state", "prune_step")
)
_AT_TOP = frozenset(("m", "v", "mu", "nu", "step", "count", "momentum", "velocity", "t"))

PARAMS_KEYS = ("params", "model_params", "model")
_STEM = re.compile("(.*?)_?(opt_state|optimizer_state|optimizer|optim|opt|tx|params|model|state)")
# Copies of params, and what else has their paths.
_COPY = re.compile(
    "(.*_)?(ema|emas|avg|averages?|averaged|targets?|swa|polyak|shadow|slow|best|old|prev|frozen|"
    "reference|ref|teacher|copy|batch_stats|grads?|gradients)(_.*)?"
)


class OptimizerStates(NamedTuple):
    """The optimizer states of a file.

    Attributes:
      nodes: the keys of each; all below is a part of it.
      params: the trees of params that belong to them; () is the root of the file.
      param_of: the keys of the param of each mask.
      unclear: trees of which only one belongs to a state, for each state where that is not known.
    """

    nodes: set[Keys]
    params: set[Keys]
    param_of: dict[Keys, Keys]
    unclear: list[list[Keys]]


def find_optimizer_states(shapes: _Shapes, params: Collection[Keys] = ()) -> OptimizerStates:
    """The optimizer states of a file.

    Args:
      shapes: the shape of each leaf, by the keys of its path.
      params: the trees of params, if they are known.

    Example:
      >>> state = {("1", "0", key, "w"): (8,) for key in ("mu", "nu")} | {("1", "0", "count"): ()}
      >>> states = find_optimizer_states({("0", "w"): (8,), **state})
      >>> states.nodes, states.params
      ({('1',)}, {('0',)})
    """
    names = _names(shapes)
    named = _named(names)
    # Inside a state with a name, any node with moments is one.
    with_moments = {node for node in names if not names[node].isdisjoint(_MOMENTS)}
    sure = {node for node in with_moments if not named.isdisjoint(parents(node))}
    sure |= {node for node in names if _is_state(names[node])}
    weak = {node for node in names if node not in sure and names[node] in _ALONE}
    below, inside, given = _leaves_below(shapes, sure | weak), named | sure, set(params)
    others = {k: shape for k, shape in shapes.items() if inside.isdisjoint(parents(k))}
    if given:
        others = {k: shape for k, shape in others.items() if not given.isdisjoint(parents(k))}
    trees = _Trees(others)
    states = OptimizerStates(set(named), set(), {}, [])
    for node in sorted(sure | weak):
        for name, ends in sorted(below[node].items()):
            if () in ends and name not in _MOMENTS:
                continue
            likes = trees.like(ends, _FITS.get(name, operator.eq))
            likes = [tree for tree in likes if _n_common(node, tree) < len(node)]
            if node in weak:
                likes = [tree for tree in likes if weak.isdisjoint(parents(tree))]
                likes = [x for x in likes if _is_chain(node, x) and trees.is_all(x, ends)]
            if likes:
                _add(states, (*node, name), ends, _ranked(node, likes))
    # A state whose params are in another file has moments that are like each other.
    for node in sure:
        first, second = (below[node].get(name, {}).keys() for name in _TWINS)
        if first and first == second and states.nodes.isdisjoint(parents(node)):
            states.nodes.add(node)
    return states


def _add(
    states: OptimizerStates, moments: Keys, ends: Iterable[Keys], trees: Sequence[Keys]
) -> None:
    """Adds the state that some moments or masks are in, and the first of the trees for it."""
    tree, n_common = trees[0], _n_common(moments, trees[0])
    if states.nodes.isdisjoint(parents(moments)):
        states.nodes.add(_whole_state(moments[:-1], n_common + 1))
    states.params.add(tree[: n_common + 1])
    if moments[-1] == "masks":
        states.param_of.update({(*moments, *end): (*tree, *end) for end in ends})
    roots = list(dict.fromkeys(like[: n_common + 1] for like in trees))
    if len(roots) > 1 and roots not in states.unclear:
        states.unclear.append(roots)


def _whole_state(node: Keys, least: int) -> Keys:
    """The state that a node is a part of: up to a key that names it, or the first `least` keys."""
    n = len(node)
    while n > least and (node[n - 1].isdigit() or not _WRAPPERS.isdisjoint(node[n - 2 : n])):
        n -= 1
    return node[:n]


def _names(shapes: _Shapes) -> dict[Keys, set[str]]:
    """What is directly below each node but the root, down to a key `params`: below are layers."""
    names: dict[Keys, set[str]] = {}
    for keys in shapes:
        depth = keys.index("params") if "params" in keys else len(keys) - 1
        for n in range(1, depth + 1):
            names.setdefault(keys[:n], set()).add(keys[n])
    return names


def _named(names: Mapping[Keys, set[str]]) -> set[Keys]:
    """The optimizer states that are called so; the outermost ones."""
    outermost: set[Keys] = set()
    for node in sorted(names, key=len):
        if not outermost.isdisjoint(parents(node)):
            continue
        key = node[-1]
        is_named = key in _ENDS or key.endswith(_ENDS_OF_NAMES)
        if is_named or (key in _NAMES and _is_optimizer(node, names)):
            outermost.add(node)
    return outermost


def _is_optimizer(node: Keys, names: Mapping[Keys, set[str]]) -> bool:
    """Whether a node that is called like an optimizer is none of the layers."""
    if len(names[node]) > 1 and names[node] <= _AT_TOP:
        return True
    nodes = [other for other in names if other[: len(node)] == node]
    return any(
        _is_state(names[other]) or not _ONLY_IN_OPTIMIZERS.isdisjoint(names[other])
        for other in nodes
    )


def _is_state(names: set[str]) -> bool:
    """Whether a node with these names is a state of optax or jaxprune with several fields."""
    return any(needed <= names <= fields for needed, fields in _STATES)


def _is_chain(node: Keys, tree: Keys) -> bool:
    """Whether a node lies beside a tree as the state of a chain lies beside params."""
    n = _n_common(node, tree)
    is_beside = len(tree) <= n + 1 and (len(node) > n + 1 or n == 0)
    return is_beside and all(key.isdigit() or key == "inner_state" for key in node[n:])


def _leaves_below(
    shapes: _Shapes, nodes: Collection[Keys]
) -> dict[Keys, dict[str, dict[Keys, tuple[int, ...]]]]:
    """The shapes of the leaves below each of some nodes, by the next key and those behind it."""
    below: dict[Keys, dict[str, dict[Keys, tuple[int, ...]]]] = {node: {} for node in nodes}
    for keys, shape in shapes.items():
        for node in parents(keys[:-1]):
            if node in below:
                name, *end = keys[len(node) :]
                below[node].setdefault(name, {})[tuple(end)] = shape
    return below


class _Trees:
    """The leaves outside all optimizer states, by every end of their paths."""

    def __init__(self, shapes: _Shapes):
        self._shapes = shapes
        self._roots: dict[Keys, list[Keys]] = {}
        self._n_leaves: dict[Keys, int] = {}
        for keys in shapes:
            for n in range(len(keys) + 1):
                self._roots.setdefault(keys[n:], []).append(keys[:n])
                self._n_leaves[keys[:n]] = self._n_leaves.get(keys[:n], 0) + 1

    def like(self, ends: _Shapes, fits: Callable[[Any, Any], bool]) -> list[Keys]:
        """The trees that have leaves of fitting shapes at these ends of paths."""
        if not ends:
            return []
        first = next(iter(ends))
        if ends.keys() == {()}:  # params that are one array
            return [keys for keys, shape in self._shapes.items() if shape == ends[first] != ()]
        return [
            root
            for root in self._roots.get(first, ())
            if all(
                (*root, *end) in self._shapes and fits(shape, self._shapes[*root, *end])
                for end, shape in ends.items()
            )
        ]

    def is_all(self, tree: Keys, ends: _Shapes) -> bool:
        """Whether a tree, or its `params`, has no other leaves than at these ends of paths."""
        is_params = all(end[:1] == ("params",) for end in ends)
        return self._n_leaves[(*tree, "params") if is_params else tree] == len(ends)


def _ranked(node: Keys, trees: Sequence[Keys]) -> list[Keys]:
    """The best of some trees for an optimizer state, and those that are as good.

    Best are no copies by their names, then those that share most keys with the state, then, by the
    keys where they part, those with the name or the number of the state, then `params` or `model`.
    """

    def rank(tree: Keys) -> tuple[bool, int, bool, bool]:
        n = _n_common(node, tree)
        node_end, tree_end = node[n:], tree[n:]
        is_alike = bool(tree_end) and _stem(node_end[0]) == _stem(tree_end[0]) != ""
        is_at_same_key = len(tree_end) > 1 and tree_end[1:2] == node_end[1:2]
        is_copy = any(_COPY.fullmatch(key) for key in tree_end)
        is_params = bool(tree_end) and (tree_end[0] in PARAMS_KEYS or tree_end[-1] in PARAMS_KEYS)
        return is_copy, -n, not (is_alike or is_at_same_key), not is_params

    shared = [_n_common(node, tree) for tree in trees]
    most = max(shared)
    nearest = [tree for tree, n in zip(trees, shared, strict=True) if n == most]
    ranks = [(rank(tree), tree) for tree in nearest]
    if min(ranks)[0][0]:  # the nearest are copies
        ranks = [(rank(tree), tree) for tree in trees]
    least = min(ranks)[0]
    return sorted(tree for rank_, tree in ranks if rank_ == least)


def _stem(key: str) -> str:
    """The name of a network in the key of its params or its optimizer; a number has none.

    Example:
      >>> _stem("actor_opt_state"), _stem("actor_params"), _stem("gen_opt"), _stem("gen")
      ('actor', 'actor', 'gen', 'gen')
    """
    match = _STEM.fullmatch(key)
    return "" if key.isdigit() else match[1] if match else key


def _n_common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many keys two paths share from their start."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def parents(keys: Keys) -> Iterator[Keys]:
    """The first key, the first two, and so on, up to all of them."""
    return (keys[:n] for n in range(1, len(keys) + 1))
