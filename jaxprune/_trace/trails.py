"""Which axes of the result of a product are a stack of models, as the next products show.

With one input for all members, `vmap` over the params of an ensemble makes a plain product of its
first layer: of the kernel (members, in, out), two axes are in the result alone. The next product
has a matrix for each member, so it shows that the members are a stack. So it is with experts that
all see the same tokens.

To see this, the result of each product with a param has a trail: a view of the whole result, which
follows it through elementwise functions and whatever else moves entries, up to the next products.
An "out" axis that is only a batch axis in products with params, which sum over another "out" axis
of the same kernel, is a "stack" instead. The heads of attention are not, because queries are
multiplied with keys, which are data.
"""

from collections.abc import Sequence
from typing import Any

from jaxprune._trace.leaf_views import MAX_TABLE, Digits, UnclearError, Value, Views, leaf_view
from jaxprune._trace.view_rules import VIEW_RULES

_MAX_TRAILS = 12  # of one array; a residual stream is a sum of the results of all layers


def start(number: int, shape: tuple[int, ...]) -> Views:
    """The trail of the result of a product, which is given a number."""
    return () if max(shape, default=0) > MAX_TABLE else (leaf_view(number, shape),)


def moved(eqn: Any, path: tuple[int | str, ...], operands: Sequence[Value]) -> list[Views]:
    """The trails of the results of an equation that is not a product."""
    name, n_results = eqn.primitive.name, len(eqn.outvars)
    if name not in VIEW_RULES or not any(operand.trail for operand in operands):
        return [()] * n_results
    followed = [operand._replace(views=operand.trail, is_data=False) for operand in operands]
    try:
        results = VIEW_RULES[name](eqn, path, followed)
    except UnclearError:
        return [()] * n_results
    results = [tuple(view for view in trail if not view.is_empty()) for trail in results]
    return [trail if len(trail) <= _MAX_TRAILS else () for trail in results]


def met(trail: Views, roles: Sequence[str] | None) -> dict[tuple[int, int], set[str]]:
    """What a product does to the axes of earlier results.

    Args:
      trail: of the factor that is data.
      roles: of the axes of that factor; None if the other factor is no param.

    Returns:
      (number of the earlier result, axis of it) -> the roles that the axis has here. A result that
      does not vary along what is summed over, such as the weight of an expert, is left out.
    """
    names: dict[tuple[int, int], set[str]] = {}
    for view in trail:
        axes = range(len(view.start))
        if roles is None:
            names |= {(view.leaf, axis): {"data"} for axis in axes}
            continue
        pairs = list(zip(roles, view.axes, strict=True))
        if any(role in ("in", "window") and _is_blank(digits) for role, digits in pairs):
            continue
        for axis in axes:
            along = {role for role, digits in pairs if any(d.varies(axis) for d in digits)}
            names.setdefault((view.leaf, axis), set()).update(along)
    return names


def _is_blank(digits: Digits) -> bool:
    """Whether an axis of several indices has the same entries at each."""
    return any(digit.size > 1 and not digit.steps for digit in digits)
