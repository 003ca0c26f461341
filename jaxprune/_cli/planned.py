"""What `prune` will do to the leaves of a file, decided from their shapes and dtypes alone."""

import contextlib
import dataclasses
import re
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from jaxprune._base.arguments import as_sparsity
from jaxprune._base.paths import as_rules, leaves_with_paths, listed
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._cli.layout import with_layout
from jaxprune._cli.quantised import (
    default_for_quantised_weights,
    is_small_float,
    quantised_line,
)
from jaxprune._cli.words import as_option, in_options, wrong_option
from jaxprune._files.any_kind import Source
from jaxprune._files.leaves import Leaf
from jaxprune._recipe import budget
from jaxprune._recipe.budget import Budget, Recipe
from jaxprune._recipe.spelling import is_matched, spelled_rules
from jaxprune._report.plan import plan as plan_params
from jaxprune._report.table import LeafReport, Report, leaf_report

Rules = Mapping[str, Any]  # arguments of `prune_params` and `plan`


class Part(NamedTuple):
    """How one chosen leaf is pruned.

    Attributes:
      leaf: its structure, and its pools in the budget.
      n_keep: how many units each of its pools keeps; None where the leaf shares its pool.
      position: of the leaf in the tree, which decides its random numbers.
      spec: its shape and dtype.
      n_units: how many units the leaf has in each of its pools.
    """

    leaf: budget.Leaf
    n_keep: tuple[int, ...] | None
    position: int
    spec: Any
    n_units: tuple[int, ...]


class Plan(NamedTuple):
    """What happens to a file.

    Attributes:
      report: the table of all leaves, in the order of the file.
      parts: the chosen leaves by path, in the order of the tree.
      shared: how many units each pool of several leaves keeps, by its number in the budget.
    """

    report: Report
    parts: dict[str, Part]
    shared: dict[int, int]


def planned(
    source: Source,
    sparsity: float,
    rules: Rules,
    layout: str = "auto",
    outside: Mapping[str, str] = types.MappingProxyType({}),
) -> Plan:
    """The plan of a file, in the words of the command line.

    Args:
      source: the file.
      sparsity: fraction of zeros.
      rules: arguments of `prune_params`.
      layout: what `--layout` says.
      outside: leaves that are no params, by path, with the notes that say so.

    Raises:
      WrongOption: the options do not fit the leaves.
    """
    leaves = [leaf for leaf in source.leaves if leaf.path not in outside]
    rules = _complete(rules, leaves)
    # The order of the tree that `load` returns, whose dicts JAX sorts level by level.
    in_tree_order = sorted(source.leaves, key=lambda leaf: leaf.path.split("/"))
    specs = {x.path: jax.ShapeDtypeStruct(x.shape, x.dtype) for x in in_tree_order}
    # A placeholder is no leaf, but rules may match it.
    shapes: Any = OrderedDict(
        (path, optax.MaskedNode() if path in outside else spec) for path, spec in specs.items()
    )
    with all_dtypes(), wrong_option(rules):
        _check_include(rules, [leaf.path for leaf in leaves], outside)
        rules, layout_notes = with_layout(rules, layout, source, _chosen(shapes, rules, leaves))
        report = plan_params(shapes, sparsity, **rules)
        chosen = _budget(shapes, sparsity, rules)
    row_of = {row.path: _row(row, rules) for row in report.leaves}
    notes = layout_notes + [in_options(note, rules) for note in report.notes]
    if line := quantised_line([leaf for leaf in leaves if row_of[leaf.path].n_zero == 0]):
        notes.append(line)
    if outside:
        notes = [re.sub(r"(?<=matches no leaf)$", " of the params", note) for note in notes]
        n_leaves = counted(len(outside), "leaf", "leaves")
        verb = is_or_are(len(outside))
        notes.append(f"outside the params: {n_leaves} {verb} not pruned, but in the total")
    row_of |= {path: leaf_report(path, specs[path], 0, note) for path, note in outside.items()}
    rows = tuple(row_of[leaf.path] for leaf in source.leaves)
    title = f"plan: sparsity {sparsity:.4g}"  # a file has no steps
    report = dataclasses.replace(report, title=title, leaves=rows, notes=tuple(notes))
    in_params = [spec for path, spec in specs.items() if path not in outside]
    return Plan(report, *_parts(chosen, in_params))


def _check_include(rules: Rules, params: Sequence[str], outside: Mapping[str, str]) -> None:
    """Raises an error where `include` matches leaves outside the params, but none of them."""
    include = as_rules(rules.get("include") or (), "include")
    regexes = spelled_rules(include, [*params, *outside])
    if any(is_matched(regex, params) for regex in regexes):
        return
    matched = [path for path in outside if any(is_matched(regex, [path]) for regex in regexes)]
    if matched:
        root = re.split("[/.]", matched[0])[0]
        raise ValueError(
            f"nothing to prune: {as_option('include', include)} matches only leaves outside the "
            f"params: {listed(matched)}. The params are {listed(params)}. To prune others, say "
            f"where they are: --params {root}"
        )


def _chosen(shapes: Any, rules: Rules, leaves: Sequence[Leaf]) -> list[Leaf]:
    """The leaves that the rules choose."""
    simple = {name: rules[name] for name in ("include", "exclude")}
    chosen = _budget(shapes, 0.0, simple)
    paths = {chosen.paths[i] for i in chosen.chosen}
    return [leaf for leaf in leaves if leaf.path in paths]


def _budget(shapes: Any, sparsity: float, rules: Rules) -> Budget:
    """The budget that `prune_params` would compute."""
    of_recipe = {name: value for name, value in rules.items() if name != "ties"}
    recipe = Recipe.of((as_sparsity(sparsity, "sparsity"),), **of_recipe)
    paths, specs, _ = leaves_with_paths(shapes)
    return recipe.checked_budget(shapes, paths, specs)


def _parts(chosen: Budget, specs: Sequence[Any]) -> tuple[dict[str, Part], dict[int, int]]:
    """The chosen leaves by path, and the pools that several leaves share."""
    n_keep = chosen.n_keep()[-1].tolist()
    users: dict[int, int] = {}
    for leaf in chosen.leaves:
        for pool in set(leaf.pools):
            users[pool] = users.get(pool, 0) + 1
    parts, shared = {}, {}
    for position, leaf in zip(chosen.chosen, chosen.leaves, strict=True):
        is_shared = any(users[pool] > 1 for pool in leaf.pools)
        if is_shared:
            shared[leaf.pools[0]] = n_keep[leaf.pools[0]]
        own = None if is_shared else tuple(n_keep[pool] for pool in leaf.pools)
        n_units = tuple(chosen.pools.n_units[pool] for pool in leaf.pools)
        if is_shared:
            n_units = (leaf.structure.n_units(specs[position].shape),)
        parts[chosen.paths[position]] = Part(leaf, own, position, specs[position], n_units)
    return parts, shared


def _complete(rules: Rules, leaves: Sequence[Leaf]) -> Rules:
    """The rules, with those that hold for files by default."""
    defaults: list[Any] = []
    if rules.get("include") is None and any(is_small_float(x.dtype) for x in leaves):
        defaults.append(default_for_quantised_weights)
    return {**rules, "exclude": (*rules.get("exclude", ()), *defaults)}


def _row(row: LeafReport, rules: Rules) -> LeafReport:
    """A row of the plan in the words of the command line."""
    note = in_options(row.note, rules) if row.note else ""
    for rule in rules["exclude"]:
        if row.note == f"excluded by {getattr(rule, '__name__', '')}":
            note = f"dtype {row.dtype}"
    return dataclasses.replace(row, note=note)


def with_zeros_written(report: Report, n_zero: Mapping[str, int]) -> Report:
    """The report of a plan that was carried out.

    Averages become counts. A note tells of leaves that had more zeros than were asked for, which
    stay zero.

    Args:
      report: of the plan.
      n_zero: how many weights of each chosen leaf are zero in the file that was written.
    """
    with_counts = tuple(
        row if row.is_exact else dataclasses.replace(row, n_zero=n_zero[row.path], is_exact=True)
        for row in report.leaves
    )
    notes = tuple(note for note in report.notes if not note.startswith("units:"))
    report = dataclasses.replace(report, leaves=with_counts, notes=notes)
    rows = [row for row in report.leaves if n_zero.get(row.path, 0) > (row.n_zero or 0)]
    if not rows:
        return report
    n_planned = sum(row.n_zero or 0 for row in rows)
    total = sum(n_zero[row.path] for row in rows)
    weights = counted(sum(row.size for row in rows), "weight")
    note = (
        f"zeros: {listed([row.path for row in rows])}: had zeros before, which stay: {total:,} of "
        f"{weights} {is_or_are(total)} zero, more than the {n_planned:,} planned"
    )
    return dataclasses.replace(report, notes=(*report.notes, note))


@contextlib.contextmanager
def all_dtypes() -> Iterator[None]:
    """Enables 64-bit dtypes in JAX, because files may hold them."""
    before: bool = jax.config.jax_enable_x64  # pyright: ignore
    try:
        jax.config.update("jax_enable_x64", True)
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
