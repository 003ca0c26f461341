"""What `prune` will do to the leaves of a file, decided from their shapes and dtypes alone."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxprune._cli.quantised import (
    BY_DEFAULT,
    default_for_quantised_weights,
    is_small_float,
    quantised_line,
)
from jaxprune._cli.words import in_options, wrong_option
from jaxprune._files.leaves import Leaf
from jaxprune._report.plan import plan as plan_params
from jaxprune._report.table import LeafReport, Report

Rules = Mapping[str, Any]  # arguments of `prune_params` and `plan`


def planned(leaves: Sequence[Leaf], sparsity: float, rules: Rules) -> Report:
    """The plan of a file, in its order and in the words of the command line.

    Raises:
      WrongOption: the options do not fit the leaves.
    """
    shapes: Any = {x.path: jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves}
    with all_dtypes(), wrong_option(rules):
        report = plan_params(shapes, sparsity, **_complete(rules, leaves))
    row_of = {row.path: _row(row, rules) for row in report.leaves}
    in_file_order = tuple(row_of[leaf.path] for leaf in leaves)  # JAX sorts keys of dicts
    notes = [in_options(note, rules) for note in report.notes]
    if line := quantised_line([leaf for leaf in leaves if row_of[leaf.path].n_zero == 0]):
        notes.append(line)
    return dataclasses.replace(report, leaves=in_file_order, notes=tuple(notes))


def _complete(rules: Rules, leaves: Sequence[Leaf]) -> dict[str, Any]:
    """The rules, with those that hold for files by default."""
    if rules.get("include") is not None or not any(is_small_float(x.dtype) for x in leaves):
        return dict(rules)
    return {**rules, "exclude": (*rules.get("exclude", ()), default_for_quantised_weights)}


def _row(row: LeafReport, rules: Rules) -> LeafReport:
    """A row of the plan in the words of the command line."""
    is_default = row.note == f"excluded by {BY_DEFAULT}"
    note = f"dtype {row.dtype}" if is_default else in_options(row.note, rules)
    return dataclasses.replace(row, note=note)


@contextlib.contextmanager
def all_dtypes() -> Iterator[None]:
    """Enables 64-bit dtypes in JAX, because files may hold them."""
    before: bool = jax.config.jax_enable_x64  # pyright: ignore
    try:
        jax.config.update("jax_enable_x64", True)
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
