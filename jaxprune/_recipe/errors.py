"""Checks of arguments and leaves: why they cannot be pruned as asked, and what to type instead."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import BadValue, dict_hint, shown
from jaxprune._base.float_bits import can_compute, has_zero
from jaxprune._base.functions import check_traceable
from jaxprune._base.paths import is_hashable, is_model, listed, rule_for, shown_path
from jaxprune._recipe.distributions import Distribution
from jaxprune._recipe.leaf_axes import AxesOf
from jaxprune._recipe.pools import LeafShape
from jaxprune._recipe.scores import accumulates, movement
from jaxprune._recipe.traits import Structure, traits_of

# What users name in strings, as other libraries do.
_DISTRIBUTIONS = ("uniform", "er", "erk", "global_pool", "l2_pool", "normalized_pool")
_SCORES = ("magnitude", "saliency", "movement", "gradient_magnitude", "random_score")
_STRUCTURES = ("Unstructured", "NM", "Block", "Channel")
_METHODS = ("wanda", "sparsegpt")

# Arguments


def check_distribution(value: Any) -> None:
    """Raises a TypeError unless this is a distribution."""
    if not isinstance(value, Distribution):
        needed = "a Distribution such as jaxprune.uniform, jaxprune.erk or jaxprune.global_pool"
        raise _wrong_type("distribution", value, needed)


def check_score_type(score: Any) -> None:
    """Raises a TypeError unless this is a score function or an accumulated score, with a hash."""
    is_function = callable(score) and not isinstance(score, type) and not is_model(score)
    name = getattr(score, "__name__", "")
    if name in _METHODS and score.__module__.startswith("jaxprune."):
        raise TypeError(f"score: jaxprune.{name} is not a score. {_method_named(name)}")
    if isinstance(score, type) or not (is_function or accumulates(score)):
        needed = "a function such as jaxprune.magnitude, jaxprune.saliency or jaxprune.movement"
        raise _wrong_type("score", score, needed)
    if not is_hashable(score):
        wrapped = "lambda params, grads, key: score(params, grads, key)"
        if accumulates(score):
            wrapped = "Accumulated(name, lambda params, grads: score.increment(params, grads))"
        raise TypeError(
            f"score: {shown(score)} cannot be hashed, so its compiled programs cannot be cached. "
            f"Wrap it: {wrapped}."
        )
    check_traceable("score", getattr(score, "increment", score))


def check_sign(score: Any, structure: Structure) -> None:
    """Raises where a structure would square a score that is negative for what is to be dropped."""
    is_squared = (
        traits_of(structure).coupled_group is not None or getattr(structure, "norm", 0) == 2
    )
    if is_squared and getattr(score, "increment", None) is movement.increment:
        raise ValueError(
            f"score: {shown(score)} is negative for weights that move towards zero, and "
            f"{structure!r} would square it. Write structure=jaxprune.Channel(norm=1), which adds "
            "the scores of a channel up, or score=jaxprune.saliency."
        )


def check_structure(argument: str, value: Any) -> None:
    """Raises a TypeError unless this has the methods of a `Structure`, and a hash."""
    methods = ("n_units", "n_groups", "unit_scores", "unit_mask", "expand")
    if isinstance(value, type) or not all(hasattr(value, method) for method in methods):
        needed = (
            "a structure such as jaxprune.Unstructured(), jaxprune.NM(2, 4), "
            "jaxprune.Block((1, 16)) or jaxprune.Channel()"
        )
        raise _wrong_type(argument, value, needed)
    if not is_hashable(value):
        raise TypeError(
            f"{argument}: {shown(value)} cannot be hashed, so its budgets cannot be cached. Make "
            "its class a frozen dataclass."
        )


def check_overrides(overrides: Any, finals: Sequence[Fraction]) -> None:
    """Raises where overrides are not a mapping, or a schedule they would scale ends at 0."""
    if not isinstance(overrides, Mapping):
        raise TypeError(
            f'overrides must map regexes to sparsities, like {{".*head/kernel": 0.5}}, got '
            f"{shown(overrides)}.{dict_hint(overrides)}"
        )
    if overrides and 0 in finals:
        which = "this schedule" if len(finals) == 1 else f"schedules[{finals.index(Fraction(0))}]"
        raise ValueError(
            f"overrides scale the schedule to another final sparsity, but {which} ends at 0. Use a "
            "schedule with a positive final_sparsity."
        )


def _wrong_type(argument: str, value: Any, needed: str) -> TypeError:
    hint = ""
    if isinstance(value, (jax.Array, np.ndarray)):
        hint = (
            " If optax.inject_hyperparams made an array of it, name it there: "
            f"inject_hyperparams(prune, static_args=({argument!r},))."
        )
    if isinstance(value, str):
        hint = f" {_object_named(value) or 'Pass the object, not its name.'}"
    if isinstance(value, type):
        hint = f" Pass an object of it: {value.__module__}.{value.__name__}(...)."
    is_list = isinstance(value, (tuple, list))
    if is_list and argument.startswith("structure") and list(map(type, value)) == [int, int]:
        hint = " Pass jaxprune.NM({}, {}).".format(*value)
    return TypeError(f"{argument} must be {needed}, got {shown(value)}.{hint or dict_hint(value)}")


def _object_named(text: str) -> str:
    """What to type for an object that was given as a string; empty if that is not known."""
    if re.fullmatch(r"[1-9]\d*:[1-9]\d*", text):
        return f"Pass jaxprune.NM({text.replace(':', ', ')})."
    if text.lower() in _METHODS:
        return _method_named(text.lower())
    names = (*_DISTRIBUTIONS, *_SCORES, *_STRUCTURES)
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(text.lower(), by_lower, n=1, cutoff=0.5)
    close = close or [name for name in by_lower if name.startswith(text.lower())]
    if not text or not close:
        return ""
    name = by_lower[close[0]]
    return f"Pass the object, jaxprune.{name}{'(...)' if name in _STRUCTURES else ''}."


def _method_named(name: str) -> str:
    """What to call for a method that needs the inputs of the model, not only the params."""
    return (
        "It needs the inputs of the model, and returns params and masks: "
        f"jaxprune.{name}(params, inputs, sparsity=0.5), with inputs of jaxprune.layer_inputs."
    )


# Leaves


def together(errors: Sequence[tuple[str, BadValue]], n_leaves: int) -> BadValue:
    """One error about all leaves that have the problem of the first, with one suggestion.

    Problems are the same if their suggestions have a sentence in common. An argument in a
    suggestion names the rules of at most 8 leaves, and none where one value of another argument is
    right for all leaves.

    Args:
      errors: paths of leaves, and the errors about them, which begin with the path.
      n_leaves: how many leaves there are, with those that have no problem.
    """
    shared = set(_sentences(errors[0][1].suggestion))
    alike = [pair for pair in errors if shared & set(_sentences(pair[1].suggestion))]
    if len(alike) < 2:
        return errors[0][1]
    paths_of: dict[str, list[str]] = {}
    for path, error in alike:
        problem = error.problem.removeprefix(f"{shown_path(path)}: ")
        paths_of.setdefault(problem, []).append(path)
    if len(paths_of) == 1 and len(alike) == n_leaves and (fix := _fix_for_all(alike)):
        (problem,) = paths_of
        return BadValue(f"all {n_leaves} leaves that are pruned: {problem}", **fix)
    problems = [f"{listed(paths)}: {problem}" for problem, paths in paths_of.items()]
    unlisted = [path for paths in list(paths_of.values())[8:] for path in paths]
    more = [f"And {len(problems) - 8} more problems, of {listed(unlisted)}."] if unlisted else []
    suggestion = _joined_sentences([error.suggestion for _, error in alike])
    suggestion = suggestion.replace(" it ", " them ").replace("the leaf", "these leaves")
    errors_with: dict[str, list[BadValue]] = {}
    for _, error in alike:
        for name in error.arguments:
            errors_with.setdefault(name, []).append(error)
    arguments = {
        name: _joined([error.arguments[name] for error in having[:8]])
        for name, having in errors_with.items()
    }
    named = {id(error) for having in errors_with.values() for error in having[:8]}
    if named and (n_more := len(alike) - len(named)):
        others = "leaf" if n_more == 1 else f"{n_more} leaves"
        suggestion += f" So for the other {others}; one regex may match them all."
    return BadValue(" ".join([*problems[:8], *more]), suggestion, **arguments)


def _fix_for_all(errors: Sequence[tuple[str, BadValue]]) -> dict[str, Any]:
    """The suggestion and its argument where one final sparsity is right for all of the leaves."""
    finals = {error.arguments.get("final_sparsity") for _, error in errors}
    if len(finals) > 1 or None in finals:
        return {}
    return {"suggestion": "Use {final_sparsity}.", "final_sparsity": finals.pop()}


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[^.]\.) ", text)


def _joined_sentences(texts: Sequence[str]) -> str:
    """The sentences of all texts, each once; one that precedes a shared sentence still does."""
    joined: list[str] = []
    for text in dict.fromkeys(texts):
        place = 0
        for sentence in _sentences(text):
            if sentence not in joined:
                joined.insert(place, sentence)
            place = joined.index(sentence) + 1
    return " ".join(joined)


def _joined(values: Sequence[Any]) -> Any:
    """Mappings as one mapping, different values as a list, equal ones as one."""
    if all(isinstance(value, Mapping) for value in values):
        return {key: item for value in values for key, item in value.items()}
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else different


def check_leaf(path: str, spec: jax.ShapeDtypeStruct) -> None:
    """Raises where the dtype of a leaf has no zero, or no magnitudes."""
    problem = ""
    if not jnp.issubdtype(spec.dtype, jnp.inexact):
        problem = "only floating point and complex weights can be pruned"
    elif not has_zero(spec.dtype):
        problem = "it has no zero, so a weight cannot be dropped"
    elif not can_compute(spec.dtype):
        problem = "JAX has arrays of it, but can't compute with them"
    if problem:
        raise BadValue(
            f"{shown_path(path)}: dtype {spec.dtype}: {problem}.",
            "Leave the leaf out with {exclude}.",
            exclude=rule_for(path),
        )


def fitted(structure: Any, leaf: AxesOf) -> Structure:
    """The structure that decides a leaf; raises where it is not known or does not fit."""
    for_leaf = getattr(structure, "for_leaf", None)
    if for_leaf is None:
        return structure
    try:
        return for_leaf(leaf)
    except BadValue:
        raise
    except ValueError as error:
        raise _does_not_fit(leaf.path, error) from None


def checked_units(path: str, structure: Structure, shape: tuple[int, ...]) -> tuple[int, int]:
    """The `n_units` and `n_groups` of a structure for a leaf; raises where it does not fit it."""
    try:
        return structure.n_units(shape), structure.n_groups(shape)
    except ValueError as error:
        if traits_of(structure).coupled_group is not None:
            raise BadValue(f"{shown_path(path)}: {error}.", _OTHER_SIZES) from None
        raise _does_not_fit(path, error) from None


_OTHER_SIZES = (
    "These groups of channels are of a model with other sizes: call jaxprune.channel_groups for "
    "this one. After jaxprune.shrink, train on with the optimizer that prune wraps; its state is "
    "jaxprune.get_state(opt_state).inner_state."
)


def _does_not_fit(path: str, error: ValueError) -> BadValue:
    rule = rule_for(path)
    return BadValue(
        f"{shown_path(path)}: {error}.",
        "Leave it out with {exclude}, or choose another structure for it with {structure}.",
        exclude=rule,
        structure={rule: ...},
    )


def checked_slices(path: str, shape: tuple[int, ...], axis: int, structure: Structure) -> int:
    """The axis of `per_slice`, counted from 0; raises where a leaf can't be sliced along it."""
    if traits_of(structure).coupled_group is not None:
        raise ValueError(
            f"{shown_path(path)}: {structure!r} covers several leaves, but per_slice splits this "
            "leaf into slices. Leave the leaf out of one of them."
        )
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"{shown_path(path)}: per_slice needs an axis {axis}, but the shape is {shape}. Change "
            "the axis, or the rule so that it does not match this leaf."
        )
    return axis % len(shape)


def check_final(path: str, structure: Structure, final: Fraction) -> None:
    """Raises where the final sparsity of a leaf is not the only one that its structure allows."""
    needed = traits_of(structure).final_sparsity
    if needed is None or abs(final - needed) <= Fraction(1, 10**6):
        return
    raise BadValue(
        f"{shown_path(path)}: {structure!r} drops {float(needed):g} of the weights, but the final "
        f"sparsity is {float(final):g}.",
        "Use {final_sparsity} for all leaves, or {overrides}.",
        final_sparsity=needed,
        overrides={rule_for(path): needed},
    )


def check_scaled(path: str, targets: Sequence[Fraction], schedule: Sequence[Fraction]) -> None:
    """Raises where a schedule that falls, scaled to end at an override, would drop too much."""
    peak = max(targets)
    if peak <= 1:
        return
    limit = float(schedule[-1] / max(schedule))
    raise BadValue(
        f"{shown_path(path)}: its override, {float(targets[-1]):g}, scales the schedule, which "
        f"ends at {float(schedule[-1]):g}, but reaches {float(max(schedule)):g} before. That would "
        f"be {float(peak):g} for this leaf.",
        f"Choose an override below {limit:.3g}.",
    )


def other_override(leaf: LeafShape, other: LeafShape) -> ValueError:
    """The error about two leaves of a group of coupled channels with different overrides."""
    finals = [f"{shown_path(x.path)} ({float(x.targets[-1]):g})" for x in (leaf, other)]
    return ValueError(
        f"overrides: {' and '.join(finals)} are pruned together, but have different sparsities. "
        "Give only one of them an override, which then holds for their whole group of channels."
    )


def all_dropped(leaf: LeafShape, n_units: int) -> BadValue:
    """The error about a leaf that would lose all of its weights."""
    rule = rule_for(leaf.path)
    units = "weights" if n_units == math.prod(leaf.shape) else "units"
    why = ""
    if leaf.n_groups > 1:
        n = n_units // leaf.n_groups
        why = f", because each of its {leaf.n_groups} groups of {n} drops a whole number of units"
    return BadValue(
        f"{shown_path(leaf.path)}: shape {leaf.shape} would lose all of its {n_units} {units} at "
        f"sparsity {float(max(leaf.targets)):g}{why}.",
        "Leave it out with {exclude}, or choose a lower sparsity with {overrides}.",
        exclude=rule,
        overrides={rule: ...},
    )


def check_shuffled(paths: Sequence[str], budget: Any) -> None:
    """Raises where a pool is too large for hashed ties."""
    chosen: Sequence[int] = budget.chosen
    for i, leaf in zip(chosen, budget.leaves, strict=True):
        n_units = max(budget.pools.n_units[pool] for pool in leaf.pools)
        if n_units >= 2**31 - 1 and not leaf.traits.decides_in_groups:
            raise ValueError(
                f"{shown_path(paths[i])}: its pool has {n_units} units, but "
                'ties="hashed" shuffles at most 2**31 - 2. Use ties="index".'
            )
