"""Checks of the argument `roles` against the leaves of a tree."""

from collections.abc import Callable, Sequence

from jaxprune._base.arguments import BadValue
from jaxprune._base.paths import listed, shown_path
from jaxprune._recipe.default_choice import Specs
from jaxprune._recipe.roles import RoleMisfit, RoleRules


def check_known(roles: RoleRules, paths: Sequence[str], is_hidden: Callable[[str], bool]) -> None:
    """Raises where roles that are exempt from checks of single rules hold for no leaf at all.

    Args:
      roles: what the user gave.
      paths: of all leaves.
      is_hidden: whether a regex may match a leaf that a placeholder hides.

    Raises:
      ValueError: listing the leaves, and the leaves that the roles are for.
    """
    exempt = roles.exempt()
    if not exempt or roles.knows(paths) or any(map(is_hidden, exempt)):
        return
    known = listed([path for path, _ in roles.exact]) if roles.exact else "leaves named weight"
    raise BadValue(
        f"roles: none of the leaves {listed(paths)} has roles; these are the roles of {known}. "
        "Call axis_roles with the model of these params, or write {'.*kernel': ('in', 'out')}."
    )


def check_numbers_of_axes(
    roles: RoleRules, paths: Sequence[str], specs: Specs, is_hidden: Callable[[str], bool]
) -> None:
    """Raises where a rule matches leaves, but none with as many axes as it has roles.

    Such a rule would be ignored, and the axes of these leaves would be guessed.

    Args:
      roles: what the user gave.
      paths: of all leaves.
      specs: the shapes of all leaves; None for what is not an array.
      is_hidden: whether a regex may match a leaf that a placeholder hides.

    Raises:
      ValueError: listing these rules, their roles and the leaves that they match.
    """
    pairs = zip(paths, specs, strict=True)
    shapes = {path: spec.shape for path, spec in pairs if spec is not None}
    misfits = [misfit for misfit in roles.misfits(shapes) if not is_hidden(misfit.rule)]
    if not misfits:
        return
    problems = [_problem(misfit) for misfit in misfits[:8]]
    more = f"; and {len(misfits) - 8} more rules" if len(misfits) > 8 else ""
    raise BadValue(
        f"roles: {'; '.join(problems)}{more}.",
        "Write a role for each axis, for example {roles}, or remove the rule.",
        roles={misfit.rule: _example(misfit) for misfit in misfits[:8]},
    )


def _problem(misfit: RoleMisfit) -> str:
    n_roles = " or ".join(str(len(roles)) for roles in misfit.choices)
    given = ", ".join(map(repr, misfit.choices))
    leaves = [f"{shown_path(path)} of shape {x}" for path, x in list(misfit.leaves.items())[:3]]
    more = f" and {len(misfit.leaves) - 3} more" if len(misfit.leaves) > 3 else ""
    noun = "role" if n_roles == "1" else "roles"
    return (
        f"{misfit.rule!r} has {n_roles} {noun}, {given}, but matches only leaves with other "
        f"numbers of axes: {', '.join(leaves)}{more}"
    )


def _example(misfit: RoleMisfit) -> tuple[str, ...]:
    """Roles for the first leaf of the rule that may be a matrix, or for its first leaf."""
    lengths = [len(shape) for shape in misfit.leaves.values()]
    n_axes = next((n for n in lengths if n >= 2), lengths[0])
    return (("in", "out") + ("out",) * (n_axes - 2))[:n_axes] if n_axes != 1 else ("out",)
