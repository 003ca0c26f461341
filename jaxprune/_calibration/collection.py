"""From a model and its inputs to a compiled function that adds up moments.

A `Collection` is for one shape of the inputs. `collect` makes one for each shape that the batches
have, and runs them.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune._base.paths import check_values, listed, spec_of
from jaxprune._calibration.collector import Collector, Totals
from jaxprune._calibration.inputs_of_leaves import LayerInputs, counts_nothing
from jaxprune._calibration.kernel_view import KernelView
from jaxprune._calibration.moments import Moments
from jaxprune._calibration.product_moments import Second, why_not
from jaxprune._calibration.product_plans import LeafPlans, leaf_plans
from jaxprune._recipe.choice import LeafRules, RuleUse
from jaxprune._recipe.roles import AxisRoles
from jaxprune._recipe.unmatched import check_rules
from jaxprune._recipe.user_rules import UserRules
from jaxprune._trace.axis_roles import products_by_leaf, roles_of
from jaxprune._trace.leaf_views import UnclearError
from jaxprune._trace.model_arguments import check_arrays
from jaxprune._trace.program import (
    INFERENCE_MODE,
    OF_FUNCTION,
    OF_NNX,
    Program,
    array_program,
    trace_products,
)
from jaxprune._trace.random_numbers import draws_random
from jaxprune._trace.tracer import EquationPath
from jaxprune._trace.view_tracer import ViewTracer


def collect(
    function: str,
    apply_fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[tuple[Any, ...]],
    rules: LeafRules,
    *,
    diagonal: bool = False,
    params: Sequence[str] | None = None,
) -> LayerInputs:
    """The moments of all batches.

    Args:
      function: the name of the public function, for errors and warnings.
      apply_fn: the model.
      variables: its first argument.
      batches: tuples of its other arguments.
      rules: which leaves.
      diagonal: whether to collect only diagonals.
      params: the paths of the leaves that are params; None means all.

    Raises:
      ValueError: there is no batch, no batch has inputs for any leaf, or nothing to collect.
    """
    check_values(f"{function}: variables", variables)
    call = OF_NNX if function.endswith("_nnx") else OF_FUNCTION
    collections: dict[Any, Collection] = {}
    totals, collection = None, None
    empty_batch: Any = ()  # None as soon as a batch is not empty
    for batch in batches:
        check_arrays(f"{function}: inputs", batch)
        check_values(f"{function}: inputs", batch)
        key = shape_key(batch)
        if key not in collections:
            trace = ModelTrace.of(apply_fn, variables, batch, rules, params, call)
            if not collections:
                warn_of_training(function, trace.program)
            collections[key] = Collection(trace, trace.leaves, diagonal)
            is_empty = has_empty_array(batch) and empty_batch is not None
            empty_batch = batch if is_empty else None
        collection = collections[key]
        totals = collection.add(totals, collection.trace.program.leaves, batch)
    if collection is None or totals is None:
        raise ValueError(f"{function}: batches is empty. Pass at least one batch.")
    inputs = collection.result(totals)
    if empty_batch is not None and counts_nothing(inputs):
        raise no_inputs(function, empty_batch)
    return inputs


def warn_of_training(function: str, program: Program) -> None:
    """Warns if a model draws random numbers: dropout changes the inputs of later layers.

    The warning points to the caller of the caller of the caller.
    """
    if draws_random(program.jaxpr.jaxpr):
        warnings.warn(
            f"jaxprune.{function}: the model draws random numbers. If they are those of dropout, "
            f"later layers get other inputs than at inference. {INFERENCE_MODE}",
            stacklevel=4,
        )


def has_empty_array(batch: Any) -> bool:
    """Whether an array of a batch has no entries, as in a batch without rows."""
    return any(0 in jnp.shape(x) for x in jax.tree.leaves(batch))


def no_inputs(function: str, batch: Any) -> ValueError:
    """The error about batches without any input for any leaf; `batch` is one of them."""
    shapes = ", ".join(str(jnp.shape(x)) for x in jax.tree.leaves(batch))
    return ValueError(
        f"{function}: no leaf got any inputs: the batches have no rows, got inputs of shape "
        f"{shapes}. Pass batches with at least one row."
    )


def shape_key(batch: Any) -> Any:
    """A hashable value that is equal for batches of the same structure, shapes and shardings."""
    specs = [
        (jnp.shape(x), jnp.result_type(x), getattr(x, "sharding", None))
        for x in jax.tree.leaves(batch)
    ]
    return jax.tree.structure(batch), tuple(specs)


class ModelTrace(NamedTuple):
    """A model that was traced for one shape of its inputs.

    Attributes:
      program: of the model.
      roles: of its leaves.
      leaves: path -> the products of the leaf, for each that was chosen.
      without: path of a leaf that was chosen -> why its inputs can't be collected.
    """

    program: Program
    roles: AxisRoles
    leaves: dict[str, LeafPlans]
    without: dict[str, str]

    @staticmethod
    def of(
        apply_fn: Callable[..., Any],
        variables: Any,
        batch: Sequence[Any],
        rules: LeafRules,
        params: Sequence[str] | None = None,
        call: str = OF_FUNCTION,
    ) -> "ModelTrace":
        """Traces a model.

        Args:
          apply_fn: the model.
          variables: its first argument.
          batch: its other arguments.
          rules: which leaves are chosen.
          params: the paths of the leaves that are params; None means all.
          call: how users write the call of the model.

        Raises:
          ValueError: nothing can be collected.
        """
        program = array_program(apply_fn, variables, batch, call)
        tracer = trace_products(program)
        roles = roles_of(program, tracer, params)
        chosen = _chosen(program, rules, params)
        leaves, without = _plans(program, tracer, roles, chosen)
        if not leaves:
            raise _nothing(program.paths, without)
        return ModelTrace(program, roles, leaves, without)


class Collection:
    """A compiled function that adds the moments of a batch, for one shape of inputs.

    Args:
      trace: of the model.
      paths: of the leaves to collect moments for.
      diagonal: whether to collect only diagonals.
    """

    def __init__(self, trace: ModelTrace, paths: Iterable[str], diagonal: bool):
        self.trace = trace
        self._leaves = {path: trace.leaves[path] for path in paths}
        plans: dict[EquationPath, list[Any]] = {}
        for leaf in self._leaves.values():
            for where, several in leaf.plans.items():
                plans.setdefault(where, []).extend(several)
        self._collector, self._diagonal = Collector(plans, diagonal), diagonal
        self._add = jax.jit(self._added, donate_argnums=0)
        # Under vmap, the results are larger than the totals, which can't be donated to them.
        self._add_traced = jax.jit(self._added)

    def zeros(self) -> Totals:
        """Moments of no inputs."""
        totals = {}
        for path, (view, _) in self._leaves.items():
            shape = (view.n_matrices, view.n_rows)
            shape = shape if self._diagonal else (*shape, view.n_rows)
            totals[path] = Second(jnp.zeros(shape[0], jnp.float32), jnp.zeros(shape, jnp.float32))
        return totals

    def add(self, totals: Totals | None, leaves: Sequence[Any], batch: Any) -> Totals:
        """The moments with those of one more batch; the old ones are given up."""
        totals = self.zeros() if totals is None else totals
        operands = totals, list(leaves), jax.tree.leaves(batch)
        is_traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(operands))
        return (self._add_traced if is_traced else self._add)(*operands)

    def _added(self, totals: Totals, leaves: list[Any], inputs: list[Any]) -> Totals:
        jaxpr = self.trace.program.jaxpr
        operands = [
            jnp.asarray(x, var.aval.dtype)
            for x, var in zip([*leaves, *inputs], jaxpr.jaxpr.invars, strict=True)
        ]
        return self._collector.totals(jaxpr, operands, totals)

    def result(self, totals: Totals) -> LayerInputs:
        """The moments with the axes that `Moments` have."""
        moments = {}
        for path, (count, gram) in sorted(totals.items()):
            view = self._leaves[path].view
            slices = (*view.stack, view.n_groups) if view.n_groups > 1 else view.stack
            moments[path] = Moments(count.reshape(slices), gram.reshape(*slices, *gram.shape[1:]))
        return LayerInputs(moments, self.trace.roles, self.trace.without)


def _chosen(program: Program, rules: LeafRules, params: Sequence[str] | None) -> list[int]:
    """The leaves to collect inputs for, after a check that no rule is useless."""
    paths, leaves = program.paths, program.leaves
    rules = rules.spelled_for(paths)
    assigned: dict[str, Any] = {"structure": ()}
    check_rules(UserRules(rules.include, rules.exclude, assigned), leaves, paths, leaves)
    choices = rules.choose(paths, tuple(map(spec_of, leaves)), RuleUse())
    return [
        i
        for i, choice in enumerate(choices)
        if choice.chosen and (params is None or paths[i] in params)
    ]


def _plans(
    program: Program, tracer: ViewTracer, roles: AxisRoles, chosen: Sequence[int]
) -> tuple[dict[str, LeafPlans], dict[str, str]]:
    """The products of each chosen leaf, by path; and of the others why there are none."""
    used = products_by_leaf(tracer)
    leaves: dict[str, LeafPlans] = {}
    without = {program.paths[i]: roles.without.get(program.paths[i], "") for i in chosen}
    for i in chosen:
        path = program.paths[i]
        if path not in roles:
            continue
        view = KernelView(tuple(program.leaves[i].shape), roles[path])
        products = {
            where: [p for p in several if any(p is q for q in used[i])]
            for where, several in tracer.products.items()
        }
        try:
            planned = leaf_plans(path, view, {w: ps for w, ps in products.items() if ps})
            _check_equations(program.jaxpr.jaxpr, planned)
        except UnclearError as error:
            without[path] = str(error)
            continue
        leaves[path] = planned
        del without[path]
    return leaves, without


def _check_equations(jaxpr: Any, leaf: LeafPlans) -> None:
    """Raises an UnclearError where the moments of a product can't be collected."""
    for where, plans in leaf.plans.items():
        *outer, eqn = equations_to(jaxpr, where)
        names = {e.primitive.name for e in outer} & {"shard_map", "xla_pmap"}
        if names:
            raise UnclearError(f"it is used inside {names.pop()}; call layer_inputs without it")
        for plan in plans:
            if reason := why_not(eqn, plan):
                raise UnclearError(reason)
            for lookup, _, _ in plan.lookups:
                *around, _ = equations_to(jaxpr, lookup)
                loops = [e for e in around if e.primitive.name in ("scan", "while", "cond")]
                if not all(any(loop is e for e in outer) for loop in loops):
                    raise UnclearError("its position is computed in a loop or a branch before")


def equations_to(jaxpr: Any, path: EquationPath) -> list[Any]:
    """The equation at a path, after those that it is inside of."""
    equations: list[Any] = []
    for start in range(0, len(path), 3):
        equations.append(jaxpr.eqns[path[start]])
        if start + 1 < len(path):
            key, number = path[start + 1 : start + 3]
            inner = equations[-1].params[key]
            inner = inner[int(number)] if isinstance(inner, tuple) else inner
            jaxpr = getattr(inner, "jaxpr", inner)
    return equations


def _nothing(paths: Sequence[str], without: Mapping[str, str]) -> ValueError:
    """The error about a model of which no inputs can be collected."""
    reasons = [f"{listed([path])} ({reason})" for path, reason in without.items() if reason]
    problem = f": {', '.join(reasons[:8])}" if reasons else f" {listed(paths)}: in no product"
    return ValueError(
        f"layer_inputs: no inputs can be collected for the params{problem}. Check with "
        "jaxprune.axis_roles what the model does with its params."
    )
