"""How many weights Wanda and SparseGPT drop: for the whole model, and by rule."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from jaxprune._base.argument_types import Sparsity
from jaxprune._base.arguments import as_sparsity, is_int, shown
from jaxprune._base.paths import Rule, as_rules, matches
from jaxprune._calibration.kernel_view import KernelView
from jaxprune._recipe.distributions import round_half_up
from jaxprune._recipe.nm import NM


class Target(NamedTuple):
    """How many weights to drop.

    Attributes:
      sparsity: the exact fraction of zeros.
      nm: (n, m) where n of every m neighbouring inputs of an output are kept; None if any are.
    """

    sparsity: Fraction
    nm: tuple[int, int] | None

    def n_keep(self, n: int) -> int:
        """How many of `n` weights are kept."""
        return n - round_half_up(self.sparsity * n)


def as_target(sparsity: Sparsity | None, nm: Any, name: str = "nm") -> Target:
    """The target that a user gives by exactly one of two arguments; `name` is that of `nm`."""
    if (sparsity is None) == (nm is None):
        raise ValueError(
            f"pass either sparsity or nm, got sparsity={sparsity!r} and nm={nm!r}. Pass "
            "sparsity=0.5 to drop half of the weights, or nm=(2, 4) to keep two of every four."
        )
    if nm is None:
        return Target(as_sparsity(sparsity, "sparsity"), None)
    if isinstance(nm, NM):
        raise TypeError(f"{name} must be two ints, got {nm!r}. Write ({nm.n}, {nm.m}).")
    if not (isinstance(nm, (tuple, list)) and len(nm) == 2 and all(map(is_int, nm))):
        raise TypeError(
            f"{name} must be two ints, such as (2, 4) for 2 of every 4, got {shown(nm)}."
        )
    n, m = map(int, nm)
    if not 1 <= n <= m:
        fix = f"Did you mean ({m}, {n})?" if 1 <= m < n else "Pass (2, 4) to keep 2 of every 4."
        raise ValueError(
            f"{name} must be (n, m) with 1 <= n <= m, to keep n of every m, got {nm!r}. {fix}"
        )
    return Target(Fraction(m - n, m), (n, m))


class Targets(NamedTuple):
    """The target of every leaf of a model, and of every slice of it.

    Attributes:
      default: where no override matches.
      overrides: rules, each with a target of its own. The first that matches decides. The path of
        a slice, such as `w_up/2`, comes before that of its leaf.
    """

    default: Target
    overrides: tuple[tuple[Rule, Target], ...] = ()

    def of(self, path: str, spec: Any, view: KernelView) -> list[Target]:
        """The target of each slice of a leaf; of the whole leaf where it has no stack axes."""
        whole = self._first([path], spec)
        slices = view.slice_paths(path)
        return [self._first([name, path], spec) for name in slices] if slices else [whole]

    def _first(self, paths: Sequence[str], spec: Any) -> Target:
        for path in paths:
            for rule, target in self.overrides:
                if matches(rule, path, spec):
                    return target
        return self.default


def as_targets(sparsity: Any, nm: Any, overrides: Any) -> Targets:
    """The targets that a user gives by the arguments `sparsity`, `nm` and `overrides`."""
    default = as_target(sparsity, nm)
    if overrides is None:
        return Targets(default)
    if not isinstance(overrides, Mapping):
        raise TypeError(
            f'overrides must map regexes to sparsities, like {{".*head/kernel": 0.5}}, got '
            f"{shown(overrides)}."
        )
    rules = as_rules(tuple(overrides), "overrides")
    targets = [_override(f"overrides[{rule!r}]", value) for rule, value in overrides.items()]
    return Targets(default, tuple(zip(rules, targets, strict=True)))


def _override(name: str, value: Any) -> Target:
    """The target of a rule: a sparsity, or (n, m)."""
    if isinstance(value, (tuple, list, NM)):
        return as_target(None, value, name)
    return Target(as_sparsity(value, name), None)
