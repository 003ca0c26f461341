"""From arguments and a tree of shapes to the leaves that are pruned and their budgets.

`Recipe` is the arguments, checked once; `Budget` is what they mean for one tree. Both live on the
host and are the same while tracing and outside. The transform, the one-shot form and the dry run
share them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import paths as paths_lib
from jaxprune.distribution import Distribution, LeafShape, Pools, uniform
from jaxprune.paths import Choice, Rule
from jaxprune.schedule import as_sparsity
from jaxprune.score import magnitude
from jaxprune.structure import Unstructured

Specs = tuple[jax.ShapeDtypeStruct | None, ...]


class Budget(NamedTuple):
    """What a recipe means for one tree.

    Attributes:
      choices: one per leaf of the tree.
      chosen: indices of the leaves that are pruned; `pools.pool_of` is parallel to it.
      pools: budgets.
      targets: per leaf in `chosen`, the sparsity asked of it at every fire.
      unused: one line per rule that decided nothing.
    """

    choices: tuple[Choice, ...]
    chosen: tuple[int, ...]
    pools: Pools
    targets: tuple[tuple[Fraction, ...], ...]
    unused: tuple[str, ...]


class Recipe(NamedTuple):
    """What to prune and how, checked; every field is a host value and hashable."""

    targets: tuple[Fraction, ...]
    include: tuple[Rule, ...] | None
    exclude: tuple[Rule, ...]
    overrides: tuple[tuple[Rule, Fraction], ...]
    distribution: Distribution
    structure: Any
    score: Callable[..., jax.Array]

    @staticmethod
    def of(
        targets: tuple[Fraction, ...],
        include: Any = None,
        exclude: Any = (),
        overrides: Any = None,
        distribution: Any = uniform,
        structure: Any = Unstructured(),
        score: Any = magnitude,
    ) -> "Recipe":
        """Checks a user's arguments.

        Raises:
          TypeError, ValueError: naming the argument, what was got, and what to type instead.
        """
        _check_part("distribution", distribution, isinstance(distribution, Distribution), "uniform")
        is_structure = hasattr(structure, "unit_scores") and not isinstance(structure, type)
        _check_part("structure", structure, is_structure, "Unstructured()")
        _check_part("score", score, callable(score) and not isinstance(score, type), "magnitude")
        if not paths_lib.is_hashable(score):
            raise TypeError(
                f"score: {score!r} cannot be hashed, so that its compilation can't be remembered. "
                "Wrap it: lambda params, grads, key: score(params, grads, key)."
            )
        include = None if include is None else paths_lib.as_rules(include, "include")
        if include == ():
            raise ValueError(
                "include must hold at least one rule, got none. Leave it out for the default."
            )
        return Recipe(
            targets=targets,
            include=include,
            exclude=paths_lib.as_rules(() if exclude is None else exclude, "exclude"),
            overrides=_as_overrides(overrides, targets[-1]),
            distribution=distribution,
            structure=structure,
            score=cast(Any, score),
        )

    def budget(self, paths: Sequence[str], leaves: Sequence[Any]) -> Budget:
        """The budget of a tree, from the paths and the leaves (arrays, tracers or shapes) of it.

        Raises:
          ValueError: with the path of a leaf that can't be pruned, or when nothing is.
        """
        return _budget(self, tuple(paths), tuple(paths_lib.spec_of(leaf) for leaf in leaves))


@functools.lru_cache(maxsize=64)
def _budget(recipe: Recipe, paths: tuple[str, ...], specs: Specs) -> Budget:
    rules = tuple(rule for rule, _ in recipe.overrides)
    choices, unused = paths_lib.choose(paths, specs, recipe.include, recipe.exclude, rules)
    chosen = tuple(i for i, choice in enumerate(choices) if choice.chosen)
    if paths and not chosen:
        raise ValueError(_nothing_chosen(paths, choices, specs, recipe.include is None))
    shapes = []
    for i in chosen:
        spec = specs[i]
        assert spec is not None  # only arrays are chosen
        _check_leaf(paths[i], spec)
        _check_score(paths[i], spec, recipe.score)
        override = choices[i].override
        targets = recipe.targets
        if override is not None:
            final = recipe.overrides[override][1]
            targets = tuple(target * final / recipe.targets[-1] for target in targets)
        n_units = recipe.structure.n_units(spec.shape)
        shapes.append(LeafShape(paths[i], spec.shape, n_units, targets))
    pools = recipe.distribution.assign(shapes)
    for shape, pool in zip(shapes, pools.pool_of, strict=True):
        if pools.n_units[pool] and pools.n_drop[-1, pool] >= pools.n_units[pool]:
            raise ValueError(_emptied(shape, pools.n_units[pool]))
    return Budget(tuple(choices), chosen, pools, tuple(s.targets for s in shapes), tuple(unused))


def _as_overrides(overrides: Any, final: Fraction) -> tuple[tuple[Rule, Fraction], ...]:
    if overrides is None:
        return ()
    if not isinstance(overrides, Mapping):
        raise TypeError(
            f'overrides must map regexes to sparsities, like {{".*head/kernel": 0.5}}, got '
            f"{overrides!r}."
        )
    if overrides and final == 0:
        raise ValueError(
            "overrides scale the schedule to another final sparsity, but this schedule ends at 0. "
            "Use a schedule with a positive final_sparsity."
        )
    rules = paths_lib.as_rules(tuple(overrides), "overrides")
    values = [as_sparsity(value, f"overrides[{key!r}]") for key, value in overrides.items()]
    return tuple(zip(rules, values, strict=True))


def _check_part(name: str, value: Any, ok: bool, example: str) -> None:
    if ok:
        return
    hint = ""
    if isinstance(value, (jax.Array, np.ndarray)):
        hint = (
            " If optax.inject_hyperparams made an array of it, name it there: "
            f"inject_hyperparams(prune, static_args=({name!r},))."
        )
    article = {"distribution": "a Distribution", "structure": "a structure", "score": "a function"}[
        name
    ]
    raise TypeError(f"{name} must be {article} such as jaxprune.{example}, got {value!r}.{hint}")


def _check_score(path: str, spec: jax.ShapeDtypeStruct, score: Callable[..., jax.Array]) -> None:
    try:
        out = jax.eval_shape(score, spec, None, None)
    except TypeError as error:
        raise TypeError(
            f"score: {getattr(score, '__name__', score)!r} fails on (params, grads, key) of "
            f"{path or '(root)'}: "
            f"{error}. A score takes all three; wrap one that does not: "
            "lambda params, grads, key: jnp.abs(params)."
        ) from error
    got = paths_lib.spec_of(out)
    if got is None or got.shape != spec.shape or not jnp.issubdtype(got.dtype, jnp.floating):
        what = type(out).__name__ if got is None else f"{got.dtype} of shape {got.shape}"
        raise ValueError(
            f"{path or '(root)'}: score returned {what} for {spec.dtype} of shape {spec.shape}; "
            "it must return one real floating point score per weight, elementwise, as "
            "jaxprune.magnitude does."
        )


def _check_leaf(path: str, spec: jax.ShapeDtypeStruct) -> None:
    rule, path = paths_lib.rule_for(path), path or "(root)"
    if not jnp.issubdtype(spec.dtype, jnp.inexact):
        raise ValueError(
            f"{path}: dtype {spec.dtype} cannot be pruned; only floating point and complex weights "
            f"can. Leave the leaf out with exclude={rule!r}."
        )
    if spec.dtype.name == "float8_e8m0fnu":
        raise ValueError(
            f"{path}: dtype float8_e8m0fnu has no zero, so a weight cannot be dropped. Leave the "
            f"leaf out with exclude={rule!r}."
        )
    if spec.size >= 2**31 - 1:
        raise ValueError(
            f"{path}: {spec.size} weights (shape {spec.shape}); at most 2**31 - 2 can be counted "
            f"exactly in one leaf. Split the leaf, or leave it out with exclude={rule!r}."
        )


def _emptied(leaf: LeafShape, n_units: int) -> str:
    rule = paths_lib.rule_for(leaf.path)
    return (
        f"{leaf.path or '(root)'}: shape {leaf.shape} would lose all of its {n_units} weights at "
        f"sparsity {float(leaf.targets[-1]):g}. Leave it out with exclude={rule!r}, or lower its "
        f"sparsity with overrides={{{rule!r}: ...}}."
    )


def _nothing_chosen(
    paths: Sequence[str], choices: Sequence[Choice], specs: Specs, by_default: bool
) -> str:
    shown = ", ".join(
        f"{p or '(root)'} ({c.reason})" for p, c in list(zip(paths, choices, strict=True))[:8]
    )
    more = f", and {len(paths) - 8} more" if len(paths) > 8 else ""
    fix = 'A regex matches the whole path: write include=".*kernel", not "kernel".'
    if by_default:
        fix = (
            'By default leaves of inexact dtype with two or more axes are; pass include=".*" '
            "to choose others."
        )
    if by_default and tuple(paths) == ("",) and specs[0] is not None and specs[0].ndim == 1:
        fix += (
            " If optax.flatten made one leaf of many, flatten the optimizer alone: "
            "optax.chain(optax.flatten(optimizer), jaxprune.prune(schedule))."
        )
    return f"nothing to prune: none of the {len(paths)} leaves is chosen: {shown}{more}. {fix}"
