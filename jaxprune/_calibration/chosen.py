"""Which leaves of a model are pruned with calibration data, and how they form matrices."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune._base.arguments import BadValue
from jaxprune._base.paths import Rule, as_rules, rule_for, shown_path, spec_of
from jaxprune._calibration.kernel_view import KernelView, view_of
from jaxprune._recipe import errors
from jaxprune._recipe.choice import LeafRules, RuleUse
from jaxprune._recipe.role_table import AxisRoles
from jaxprune._recipe.roles import RoleRules, as_roles
from jaxprune._recipe.spelling import is_matched, spelled, spelled_pairs, spelled_roles
from jaxprune._recipe.tree_errors import nothing_chosen
from jaxprune._recipe.unmatched import check_rules
from jaxprune._recipe.user_rules import UserRules, as_include


class Rules(NamedTuple):
    """The rules of a user, checked.

    Attributes:
      leaves: which leaves are chosen.
      overrides: rules, each with what it assigns.
      roles: of the axes; None where none are given.
    """

    leaves: LeafRules
    overrides: tuple[tuple[Rule, Any], ...]
    roles: RoleRules | None

    @staticmethod
    def of(
        include: Any, exclude: Any, overrides: Sequence[tuple[Rule, Any]], roles: Any
    ) -> "Rules":
        """The rules in the arguments of a user."""
        exclude = as_rules(() if exclude is None else exclude, "exclude")
        leaf_rules = LeafRules(as_include(include), exclude)
        return Rules(leaf_rules, tuple(overrides), as_roles(roles))

    def spelled_for(self, paths: Sequence[str]) -> "Rules":
        """The rules in the spelling of the paths, apart from the overrides, which name slices."""
        return self._replace(
            leaves=self.leaves.spelled_for(paths), roles=spelled_roles(self.roles, paths)
        )

    def chosen(self, params: Any, paths: Sequence[str], leaves: Sequence[Any]) -> list[int]:
        """The indices of the leaves to prune, after a check that no rule is useless.

        Args:
          params: the tree.
          paths: of its leaves.
          leaves: of the tree.

        Raises:
          ValueError: a rule that matches nothing, or no leaf is chosen.
        """
        include, exclude, _ = self.leaves
        check_rules(
            UserRules(include, exclude, {"structure": ()}, self.roles), params, paths, leaves
        )
        specs = tuple(map(spec_of, leaves))
        choices = self.leaves.choose(paths, specs, RuleUse())
        chosen = [i for i, choice in enumerate(choices) if choice.chosen]
        if paths and not chosen:
            raise nothing_chosen(paths, choices, specs, include)
        return chosen

    def views(
        self, shapes: Mapping[str, tuple[int, ...]], collected: AxisRoles | None
    ) -> dict[str, KernelView]:
        """How each chosen leaf forms matrices, by path.

        Args:
          shapes: of the chosen leaves, by path.
          collected: the roles from `layer_inputs`, for leaves to which the user gives none.

        Raises:
          ValueError: listing all leaves whose roles are not known.
        """
        views, misfits = {}, []
        known = as_roles(collected)
        for path, shape in shapes.items():
            try:
                is_given = self.roles is not None and self.roles.of(path, shape) is not None
                roles = self.roles if is_given or known is None else known
                views[path] = view_of(path, shape, roles)
            except BadValue as error:
                misfits.append((path, error))
        if misfits:
            raise errors.together(misfits, len(shapes))
        return views

    def checked_overrides(
        self,
        params: Any,
        paths: Sequence[str],
        leaves: Sequence[Any],
        views: Mapping[str, KernelView],
        *,
        finds_roles: bool = False,
    ) -> tuple[tuple[Rule, Any], ...]:
        """The overrides in the spelling of the paths of the leaves and their slices.

        Args:
          params: the tree.
          paths: of its leaves.
          leaves: of the tree.
          views: how the leaves that are pruned form matrices.
          finds_roles: whether the function takes no roles from the user.

        Raises:
          ValueError: an override matches no leaf and no slice of a leaf.
        """
        slices = {name: path for path, view in views.items() for name in view.slice_paths(path)}
        overrides = spelled_pairs(self.overrides, (*paths, *slices))
        pairs = [
            (rule, target.sparsity)
            for rule, target in overrides
            if not (isinstance(rule, str) and is_matched(rule, slices))
        ]
        for rule, _ in pairs:
            if isinstance(rule, str) and not is_matched(rule, paths):
                _check_not_a_slice(rule, views, finds_roles)
        include, exclude, _ = self.leaves
        assigned = {"structure": (), "overrides": pairs}
        rules = UserRules(include, exclude, assigned, slices=slices)
        check_rules(rules, params, paths, leaves)
        return overrides


def _check_not_a_slice(rule: str, views: Mapping[str, KernelView], finds_roles: bool) -> None:
    """Raises where a regex names an index of an axis that is not a stack axis."""
    for path, view in views.items():
        outs = view.axes("out")
        if view.stack or len(outs) < 2:
            continue
        names = [f"{path}/{k}" for k in range(view.shape[outs[0]])]
        if not is_matched(str(spelled(rule, names)), names):
            continue
        roles = list(view.roles)
        roles[outs[0]] = "stack"
        fix = "To prune its slices one by one, pass {roles}; or override the leaf: {overrides}."
        if finds_roles:
            fix = "Override the whole leaf, {overrides}, or call wanda or sparsegpt with {roles}."
        raise BadValue(
            f"overrides: {rule!r} matches no leaf. {shown_path(path)} has no slices, since no axis "
            f"has the role 'stack': its roles are {view.roles}, and all of its weights share their "
            "inputs.",
            fix,
            roles={rule_for(path): tuple(roles)},
            overrides={rule_for(path): ...},
        )
