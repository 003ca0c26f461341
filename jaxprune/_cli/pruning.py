"""Prunes a file leaf by leaf, also where leaves compete in one pool.

Where they do, the file is read several times: first to count how many units each leaf keeps, then
to prune it. Only one leaf is in memory at a time.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.counting import as_counts
from jaxprune._base.float_bits import keyed_dtype, order_key
from jaxprune._base.paths import listed, rule_for
from jaxprune._cli.planned import Part, Plan, all_dtypes
from jaxprune._recipe.distributions import uniform
from jaxprune._recipe.scores import magnitude
from jaxprune._report.table import Report
from jaxprune._state.masks import keep, wider_dtype
from jaxprune._transform.decide import tighten, unit_scores
from jaxprune._transform.operand import Operand, Rules

Arrays = Iterable[tuple[str, np.ndarray]]
_DIGIT = 16  # bits of the keys that one read of the file decides
_CHUNK = 2**22  # keys that are counted at a time


def decision_rules(rules: Mapping[str, Any]) -> Rules:
    """How units are compared, from the arguments of `prune_params`."""
    distribution = rules.get("distribution", uniform)
    score, ties = rules.get("score", magnitude), rules.get("ties", "index")
    return Rules(score, ties, distribution.normalized)


def pruned_leaf(part: Part, array: np.ndarray, rules: Rules) -> np.ndarray:
    """A leaf with +0.0 at every dropped weight; it has no pool in common with others."""
    assert part.n_keep is not None
    if not any(part.n_keep):
        return np.zeros_like(array)
    leaf = part.leaf._replace(pools=tuple(range(len(part.n_keep))), floor=0)
    with all_dtypes():
        n_keep = as_counts(np.array(part.n_keep))
        operand = _operand(part, array)
        [mask], _ = tighten([operand], None, n_keep, [leaf], rules._replace(normalized=False))
        return np.asarray(keep(operand.param, mask))


def _operand(part: Part, array: Any) -> Operand:
    """What the scores of a leaf are computed from, with the key that `prune_params` gives it."""
    key = jax.random.fold_in(jax.random.key(0), part.position)
    return Operand(jnp.asarray(array), None, key)


# Pools of several leaves


def with_shares(plan: Plan, rules: Rules, read: Callable[[str, Collection[str]], Arrays]) -> Plan:
    """The plan with a count for every leaf, after reading the leaves that share a pool.

    Args:
      plan: of the file.
      rules: how units are compared.
      read: given a title and paths, reads these leaves of the file once more.
    """
    parts = dict(plan.parts)
    for pool, n_keep in plan.shared.items():
        members = {path: part for path, part in parts.items() if part.leaf.pools == (pool,)}
        for path, n in _Shares(members, rules, read).n_keep_of_leaves(n_keep).items():
            parts[path] = parts[path]._replace(n_keep=(n,))
    return plan._replace(parts=parts, shared={}, report=_with_counts(plan.report, parts))


class _Shares:
    """Finds how many units each leaf of a pool keeps.

    Scores are compared as keys, unsigned integers that sort like them. The smallest key that is
    kept is found digit by digit, the highest digit first: one read of the file counts how often
    each value of a digit occurs among the keys that begin with the digits before it.
    """

    def __init__(
        self,
        members: Mapping[str, Part],
        rules: Rules,
        read: Callable[[str, Collection[str]], Arrays],
    ):
        self._members, self._rules, self._read = members, rules, read
        with all_dtypes():
            specs = [
                jax.eval_shape(functools.partial(self._scores, part), part.spec)
                for part in members.values()
            ]
        dtypes = [keyed_dtype(spec.dtype) for spec in specs]
        self._dtype = np.dtype(functools.reduce(wider_dtype, dtypes))
        self._n_bits = 8 * self._dtype.itemsize
        self._n_reads = 0

    def n_keep_of_leaves(self, n_keep: int) -> dict[str, int]:
        """How many units each leaf keeps if all together keep the best `n_keep`.

        Among equal scores those of earlier leaves are kept, in the order of the tree.
        """
        smallest, n_above = 0, 0  # the digits that are known, and how many keys are above them
        for shift in range(self._n_bits - _DIGIT, -1, -_DIGIT):
            counts = self._digit_counts(smallest, shift)
            at_least = counts[::-1].cumsum()[::-1]
            digit = int(np.flatnonzero(n_above + at_least >= n_keep)[-1])
            n_above += int(at_least[digit] - counts[digit])
            smallest = smallest << _DIGIT | digit
        above, equal = dict.fromkeys(self._members, 0), dict.fromkeys(self._members, 0)
        for path, keys in self._keys():
            above[path] += int(np.count_nonzero(keys > smallest))
            equal[path] += int(np.count_nonzero(keys == smallest))
        n_left = n_keep - n_above
        kept = {}
        for path in self._members:
            n_tied = min(equal[path], n_left)
            kept[path], n_left = above[path] + n_tied, n_left - n_tied
        return kept

    def _digit_counts(self, prefix: int, shift: int) -> np.ndarray:
        """How often each digit occurs at `shift`, among the keys whose higher digits are these."""
        counts = np.zeros(2**_DIGIT, np.int64)
        for _, keys in self._keys():
            if shift + _DIGIT < self._n_bits:
                keys = keys[keys >> (shift + _DIGIT) == prefix]
            digits = (keys >> shift & (2**_DIGIT - 1)).astype(np.int64)
            counts += np.bincount(digits, minlength=2**_DIGIT)
        return counts

    def _keys(self) -> Iterator[tuple[str, np.ndarray]]:
        """The path of each leaf with its keys, in pieces; reads the file once."""
        self._n_reads += 1
        title = f"comparing, {self._n_reads} of {self._n_bits // _DIGIT + 1}"
        for path, array in self._read(title, self._members):
            with all_dtypes():
                scores = self._scores(self._members[path], array)
                keys = np.asarray(order_key(scores.astype(self._dtype))).reshape(-1)
            for start in range(0, keys.size, _CHUNK):
                yield path, keys[start : start + _CHUNK]

    def _scores(self, part: Part, array: Any) -> jax.Array:
        return unit_scores(_operand(part, array), part.leaf, self._rules)


def _with_counts(report: Report, parts: Mapping[str, Part]) -> Report:
    """The report with the counts of leaves that share a pool."""
    rows = []
    emptied = []
    for row in report.leaves:
        if row.n_zero is None:
            part = parts[row.path]
            assert part.n_keep is not None
            n_zero = row.size - round(row.size * part.n_keep[0] / max(part.n_units[0], 1))
            emptied += [row.path] if row.size and not any(part.n_keep) else []
            is_exact = len(part.leaf.unit_sizes(part.spec.shape)) < 2
            row = dataclasses.replace(row, n_zero=n_zero, is_exact=is_exact)
        rows.append(row)
    notes = [note for note in report.notes if not note.startswith("pool:")]
    if emptied:
        notes.append(
            f"emptied: {listed(emptied)}: all weights are dropped, because those of all leaves "
            f"compete. Leave leaves out with --exclude '{rule_for(emptied[0])}'."
        )
    return dataclasses.replace(report, leaves=tuple(rows), notes=tuple(notes), pools=())
