"""`AxisRoles`, the roles of all leaves of a model, as `axis_roles` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxprune._base.arguments import is_int, shown
from jaxprune._base.paths import shown_path
from jaxprune._base.text_table import Table
from jaxprune._recipe.role_words import as_role_tuple


class AxisRoles(Mapping[str, tuple[str, ...]]):
    """The role of each axis of each leaf, as `axis_roles` returns it: path -> tuple of roles.

    It is a read-only mapping. `print` shows it as a table. Pass it as `roles=`. To give other
    roles to some leaves, make a dict of it: `{**roles, "embed/embedding": ("out", "in")}`.

    Args:
      roles: path of a leaf -> the role of each of its axes: `"in"`, `"window"`, `"out"` or
        `"stack"`.
      without: path of a leaf that has no roles -> the reason, for errors and the table.
      shapes: path -> shape of the leaf, for the table. A leaf to prune that has the same sizes in
        another order is refused; other sizes are allowed.

    Raises:
      TypeError, ValueError: a value that is not a tuple of roles, with the path of the leaf.

    Example:
      >>> shapes = {"fc/kernel": (8, 4), "fc/bias": (4,)}
      >>> roles = AxisRoles({"fc/kernel": ("in", "out")}, {"fc/bias": "in no product"}, shapes)
      >>> print(roles)
      leaf       shape  roles    note
      fc/kernel  8x4    in, out
      fc/bias    4               in no product
      >>> roles["fc/kernel"]
      ('in', 'out')
    """

    def __init__(
        self,
        roles: Mapping[str, Sequence[str]],
        without: Mapping[str, str] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ):
        _check_mapping("roles", roles, '{"fc/kernel": ("in", "out")}')
        self._roles = {
            path: as_role_tuple("AxisRoles: roles", path, value) for path, value in roles.items()
        }
        self._without = {} if without is None else _checked_reasons(without)
        self._shapes = {} if shapes is None else _checked_shapes(shapes)

    @property
    def without(self) -> dict[str, str]:
        """The leaves that have no roles: path -> reason."""
        return dict(self._without)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the leaves, where they are known: path -> shape."""
        return dict(self._shapes)

    def __getitem__(self, path: str) -> tuple[str, ...]:
        return self._roles[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._roles)

    def __len__(self) -> int:
        return len(self._roles)

    def __hash__(self) -> int:
        return hash(frozenset(self._roles.items()))

    def __eq__(self, other: object) -> bool:
        """Whether another mapping gives the same roles to the same paths."""
        return super().__eq__(other)

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        return Table(("leaf", "shape", "roles", "note"), self._rows())

    def to_dict(self) -> dict[str, Any]:
        """The table as a dictionary for JSON.

        Returns:
          `leaves`, each with `path`, `shape`, `roles` and `note`, the reason why a leaf has no
          roles. What is not known is None.

        Example:
          >>> AxisRoles({"kernel": ("in", "out")}).to_dict()
          {'leaves': [{'path': 'kernel', 'shape': None, 'roles': ['in', 'out'], 'note': ''}]}
        """
        leaves = []
        for path in self._paths():
            shape, roles = self._shapes.get(path), self._roles.get(path)
            leaves.append(
                {"path": path, "shape": None if shape is None else list(shape)}
                | {"roles": None if roles is None else list(roles)}
                | {"note": self._without.get(path, "")}
            )
        return {"leaves": leaves}

    def _paths(self) -> list[str]:
        """The leaves of the table: in the order of the tree where the shapes show it."""
        paths = dict.fromkeys((*self._shapes, *self._roles, *self._without))
        return [path for path in paths if path in self._roles or path in self._without]

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """The cells of the table."""
        return [
            (
                shown_path(path),
                "x".join(map(str, self._shapes.get(path, ()))),
                ", ".join(self._roles.get(path, ())),
                self._without.get(path, ""),
            )
            for path in self._paths()
        ]


def _check_mapping(argument: str, value: Any, example: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"AxisRoles: {argument} must be a mapping such as {example}, got {shown(value)}."
        )
    for path in value:
        if not isinstance(path, str):
            raise TypeError(
                f"AxisRoles: {argument}: each key must be a path, got {shown(path)}. Write the "
                "path of a leaf, such as 'fc/kernel'."
            )


def _checked_reasons(without: Any) -> dict[str, str]:
    _check_mapping("without", without, '{"fc/bias": "in no product"}')
    for path, reason in without.items():
        if not isinstance(reason, str):
            raise TypeError(
                f"AxisRoles: without[{path!r}] must be the reason, a string, got {shown(reason)}."
            )
    return dict(without)


def _checked_shapes(shapes: Any) -> dict[str, tuple[int, ...]]:
    _check_mapping("shapes", shapes, '{"fc/kernel": (8, 4)}')
    for path, shape in shapes.items():
        if not isinstance(shape, (tuple, list)) or not all(map(is_int, shape)):
            raise TypeError(
                f"AxisRoles: shapes[{path!r}] must be a tuple of ints, got {shown(shape)}."
            )
    return {path: tuple(map(int, shape)) for path, shape in shapes.items()}


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
AxisRoles.__module__ = "jaxprune"
__test__ = {"AxisRoles": AxisRoles}
