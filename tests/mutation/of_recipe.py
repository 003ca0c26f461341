"""Mutants of schedules, scores, structures, distributions, budgets."""

from __future__ import annotations

from mutation.runner import Mutant

MUTANTS = (
    Mutant(
        "erk-floor-is-a-fraction",
        "_recipe/distributions.py",
        "least = [Fraction(math.ceil(n * floor), n) for n in sizes]",
        "least = [floor for n in sizes]",
        ("recipe/test_distributions.py",),
    ),
    Mutant(
        "global-floor-is-rounded-down",
        "_recipe/distributions.py",
        "math.ceil(leaf.n_units * floor)",
        "math.floor(leaf.n_units * floor)",
        ("recipe/test_distributions.py",),
    ),
    Mutant(
        "own-floor-is-rounded-down",
        "_recipe/distributions.py",
        "math.floor(n * (1 - floor))",
        "math.ceil(n * (1 - floor))",
        ("recipe/test_distributions.py",),
    ),
    Mutant(
        "leaf-floor-is-rounded-down",
        "_recipe/leaf.py",
        "math.ceil(part.entries[0].n_units * least)",
        "math.floor(part.entries[0].n_units * least)",
        ("recipe/test_distributions.py",),
    ),
    Mutant(
        "remainder-goes-to-full-leaves",
        "_recipe/pools.py",
        "counts[order[(counts < highest)[order]][:missing]] += 1",
        "counts[order[:missing]] += 1",
        equivalent="as many parts as are missing are below their ceiling, and they come first",
    ),
    Mutant(
        "remainder-goes-to-the-last",
        "_recipe/pools.py",
        "int(floors[i]) + k - parts[i]",
        "parts[i] - int(floors[i]) - k",
        ("recipe/test_distributions.py",),
    ),
    Mutant(
        "largest-of-padding",
        "_recipe/structures.py",
        "self._reduced(wide, -jnp.inf, jnp.max)",
        "self._reduced(wide, 0, jnp.max)",
        ("recipe/test_structures.py",),
    ),
    Mutant(
        "saliency-in-bfloat16",
        "_recipe/scores.py",
        "jnp.abs(_wide(params) * _wide(grads))",
        "jnp.abs(params * grads)",
        ("recipe/test_scores.py::test_saliency_is_a_product_of_float32",),
    ),
    Mutant(
        "halves-go-down",
        "_recipe/pools.py",
        "(2 * x.numerator + x.denominator) //",
        "(2 * x.numerator + x.denominator - 1) //",
        ("recipe/test_schedules.py::test_budgets_are_the_exact_product_rounded_half_up",),
    ),
    Mutant(
        "outputs-are-not-flattened",
        "_recipe/pools.py",
        'math.prod(lengths["out"]))',
        'sum(lengths["out"]))',
        ("recipe/test_slices.py::test_a_leaf_of_three_axes_has_the_density_of_its_matrix",),
    ),
    Mutant(
        "er-takes-the-first-axes",
        "_recipe/distributions.py",
        "ends = shape[-2:]",
        "ends = shape[:2]",
        ("recipe/test_distributions.py::test_erk_densities_and_the_exact_total",),
    ),
    Mutant(
        "erk-of-the-product-alone",
        "_recipe/distributions.py",
        "lambda shape: Fraction(sum(shape), math.prod(shape))",
        "lambda shape: Fraction(1, math.prod(shape))",
        ("recipe/test_distributions.py::test_erk_densities_and_the_exact_total",),
    ),
    Mutant(
        "a-fixed-leaf-shares",
        "_recipe/distributions.py",
        "if not leaf.fixed and leaf.n_units]",
        "if leaf.n_units]",
        ("recipe/test_distributions.py::test_overrides_work_with_every_distribution",),
    ),
    Mutant(
        "a-budget-may-fall",
        "_recipe/distributions.py",
        "previous = largest_remainder(parts, n_drop, previous, kind_of)",
        "previous = largest_remainder(parts, n_drop, 0 * previous, kind_of)",
        ("recipe/test_distributions.py::test_budgets_never_fall_while_the_schedule_rises",),
    ),
    Mutant(
        "the-second-corner-is-forgotten",
        "_recipe/densities.py",
        "- n * w\n",
        "- 0 * w\n",
        ("recipe/test_distributions.py::test_erk_densities_and_the_exact_total",),
    ),
    Mutant(
        "the-end-step-does-not-fire",
        "_recipe/schedules.py",
        "return on_grid | (step == end_step)",
        "return on_grid",
        (
            "recipe/test_schedules.py::"
            "test_last_step_fires_even_off_the_grid_and_reaches_the_target",
            "recipe/test_schedules.py::test_traced_steps_agree_with_host_steps",
        ),
    ),
    Mutant(
        "the-begin-step-does-not-fire",
        "_recipe/schedules.py",
        "inside = (step >= begin_step) & (step < end_step)",
        "inside = (step > begin_step) & (step < end_step)",
        (
            "recipe/test_schedules.py::"
            "test_last_step_fires_even_off_the_grid_and_reaches_the_target",
            "recipe/test_schedules.py::test_traced_steps_agree_with_host_steps",
        ),
    ),
    Mutant(
        "the-last-fire-is-one-late",
        "_recipe/schedules.py",
        "return last if step >= self.end_step else",
        "return last if step > self.end_step else",
        (
            "recipe/test_schedules.py::"
            "test_last_step_fires_even_off_the_grid_and_reaches_the_target",
            "recipe/test_schedules.py::test_traced_steps_agree_with_host_steps",
        ),
    ),
    Mutant(
        "the-traced-last-fire-is-one-late",
        "_recipe/schedules.py",
        "return jnp.where(step >= end_step, last,",
        "return jnp.where(step > end_step, last,",
        ("recipe/test_schedules.py::test_traced_steps_agree_with_host_steps",),
    ),
    Mutant(
        "a-polynomial-from-the-begin",
        "_recipe/schedules.py",
        "remaining = Fraction(end_step - step, end_step - begin_step)",
        "remaining = 1 - Fraction(end_step - step, end_step - begin_step)",
        ("recipe/test_schedules.py::test_cubic_targets_are_the_papers_equation",),
    ),
    Mutant(
        "acdc-ends-dense",
        "_recipe/schedules.py",
        "sparse = [i % 2 == 0 or step == end_step for",
        "sparse = [i % 2 == 0 for",
        ("transform/test_regrowth.py::test_acdc_phases_alternate_and_end_sparse",),
    ),
    Mutant(
        "large-powers-in-rationals",
        "_recipe/schedules.py",
        "power == int(power) and power <= _LARGEST_EXACT_POWER",
        "power == int(power) and power <= 1",
        (
            "recipe/test_schedules.py::test_cubic_targets_are_the_papers_equation",
            "recipe/test_schedules.py::test_optax_polynomials_give_the_same_targets",
        ),
    ),
    Mutant(
        "a-dip-is-not-levelled",
        "_recipe/optax_schedules.py",
        "itertools.accumulate(targets, max)",
        "iter(targets)",
        ("recipe/test_schedules.py::test_a_dip_of_rounding_size_is_levelled",),
    ),
    Mutant(
        "rows-of-a-list-begin-at-their-end",
        "_recipe/schedule_list.py",
        "np.cumsum(n_fires) - n_fires, n_fires]",
        "np.cumsum(n_fires), n_fires]",
        ("transform/test_schedule_list.py::test_budgets_are_those_of_each_schedule",),
    ),
    Mutant(
        "no-fires-are-left-before-the-first",
        "_recipe/schedule_list.py",
        "jnp.where(row < 0, self.n_fires, self.last_row - row)",
        "self.last_row - row",
        ("transform/test_schedule_list.py",),
    ),
    Mutant(
        "an-override-is-not-scaled",
        "_recipe/parts.py",
        "tuple(target * final / self.targets[-1] for target in self.targets)",
        "tuple(min(target, final) for target in self.targets)",
        ("base/test_paths.py::test_an_override_scales_the_whole_schedule",),
    ),
    Mutant(
        "edge-blocks-are-lost",
        "_recipe/structures.py",
        "grid[axis] = -(-shape[axis] // length)",
        "grid[axis] = shape[axis] // length",
        ("recipe/test_structures.py::test_blocks_are_scored_by_the_weights_they_have",),
    ),
    Mutant(
        "edge-blocks-count-padding",
        "_recipe/structures.py",
        "ones = jnp.ones(scores.shape, wide.dtype)",
        "ones = jnp.ones([-(-n // 8) * 8 for n in scores.shape], wide.dtype)",
        ("recipe/test_structures.py::test_blocks_are_scored_by_the_weights_they_have",),
    ),
    Mutant(
        "balanced-along-the-first-axis",
        "_recipe/structures.py",
        "max(self._grid(shape)[-1], 1) if self.balanced",
        "max(self._grid(shape)[0], 1) if self.balanced",
        ("recipe/test_structures.py::test_balanced_blocks_keep_as_many_in_every_column",),
    ),
    Mutant(
        "the-later-of-equal-neighbours",
        "_recipe/nm.py",
        (
            "wins = [other >= member for other in members[:i]]\n            wins += [other > "
            "member for"
        ),
        (
            "wins = [other > member for other in members[:i]]\n            wins += [other >= "
            "member for"
        ),
        ("recipe/test_structures.py::test_nm_keeps_the_best_n_of_every_m",),
    ),
    Mutant(
        "the-later-of-many-equal-neighbours",
        "_recipe/nm.py",
        "jnp.where(place > i, member >= groups, member > groups)",
        "jnp.where(place > i, member > groups, member >= groups)",
        ("recipe/test_structures.py",),
    ),
    Mutant(
        "nm-ignores-what-is-dropped",
        "_recipe/nm.py",
        "return mask & allowed.astype(bool)",
        "return mask",
        (
            "recipe/test_structures.py",
            "recipe/test_role_structures.py",
        ),
    ),
    Mutant(
        "channels-that-are-always-kept-are-dropped",
        "_recipe/coupled.py",
        "jnp.where(unit_of < 0, True,",
        "jnp.where(unit_of < 0, False,",
        ("shrink/test_shrink.py::test_coupled_leaves_drop_the_channels_of_the_least_norm",),
    ),
    Mutant(
        "coupled-norms-are-not-added",
        "_recipe/coupled.py",
        "total = total + score.astype(total.dtype) ** 2",
        "total = total + 0 * score",
        ("shrink/test_shrink.py::test_coupled_leaves_drop_the_channels_of_the_least_norm",),
    ),
    Mutant(
        "movement-without-its-sign",
        "_recipe/scores.py",
        "return -(jnp.conj(_wide(params)) * _wide(grads)).real",
        "return (jnp.conj(_wide(params)) * _wide(grads)).real",
        ("transform/test_algorithms.py::test_movement_sums_minus_weight_times_gradient",),
    ),
    Mutant(
        "movement-without-conjugation",
        "_recipe/scores.py",
        "-(jnp.conj(_wide(params)) * _wide(grads)).real",
        "-(_wide(params) * _wide(grads)).real",
        (
            "recipe/test_scores.py::"
            "test_the_movement_of_complex_weights_is_the_real_part_of_their_product_with_the_gradient",
        ),
    ),
    Mutant(
        "a-bias-is-pruned",
        "_recipe/choice.py",
        'if name in ("bias", "scale"):',
        'if name in ("scale",):',
        ("recipe/test_default_choice.py",),
    ),
    Mutant(
        "include-beats-exclude",
        "_recipe/choice.py",
        "if excluded is not None:",
        "if excluded is not None and self.include is None:",
        (
            "base/test_paths.py::"
            "test_a_leaf_is_chosen_if_some_include_and_no_exclude_matches_all_of_its_path",
        ),
    ),
    Mutant(
        "the-last-rule-decides",
        "_recipe/choice.py",
        "return matching[0][1] if matching else None",
        "return matching[-1][1] if matching else None",
        ("base/test_paths.py::test_the_first_override_that_matches_wins",),
    ),
    Mutant(
        "expected-zeros-are-rounded-apart",
        "_recipe/budget.py",
        "if len(pools) == 1 and len(members) > 1:",
        "if False:",
        (
            "report/test_forecast.py",
            "report/test_report.py::test_plan_agrees_exactly_with_what_training_reaches",
            "report/test_forms.py",
        ),
    ),
    Mutant(
        "a-pool-may-lose-all",
        "_recipe/budget.py",
        "pools.n_drop[-1, pool] >= pools.n_units[pool]",
        "pools.n_drop[-1, pool] > pools.n_units[pool]",
        ("transform/test_bad_leaves.py",),
    ),
)
