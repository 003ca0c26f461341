"""Mutants of the prune state, and what an update and a fire do to it."""

from __future__ import annotations

from mutation.runner import Mutant

MUTANTS = (
    # _state
    Mutant(
        "mask-of-256-drops",
        "_state/convert.py",
        "jnp.asarray(new[path]).astype(bool).astype(jnp.uint8)",
        "jnp.asarray(new[path]).astype(jnp.uint8)",
        ("state/test_set_masks.py",),
    ),
    Mutant(
        "mask-of-one-half-is-accepted",
        "_state/convert.py",
        "        check_mask_dtype(path, new[path])\n",
        "",
        ("state/test_set_masks.py",),
    ),
    Mutant(
        "splice-of-another-dtype",
        "_state/splice.py",
        'return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"',
        'return f"{list(jnp.shape(leaf))}"',
        ("state/test_splice.py::test_moments_of_another_dtype_raise_with_their_path",),
    ),
    Mutant(
        "tangent-of-16-bits-is-not-masked",
        "_state/masks.py",
        "return _keep_bits(*primals), jnp.where(primals[1].astype(bool), dx, jnp.zeros_like(dx))",
        "return _keep_bits(*primals), dx",
        ("state/test_bit_masks.py::test_the_tangent_of_a_masked_array_is_masked",),
    ),
    Mutant(
        "violations-wrap",
        "_state/masks.py",
        "return jnp.minimum(total, np.iinfo(np.int32).max).astype(jnp.int32)",
        "return total.astype(jnp.int32)",
        ("topk/test_wide.py::test_violations_of_several_leaves_saturate_together",),
    ),
    Mutant(
        "violations-of-the-largest-int32",
        "_state/masks.py",
        "sum(p.size for p in params) >= WIDE",
        "sum(p.size for p in params) > WIDE",
        equivalent="2**31 - 1 weights have at most 2**31 - 1 violations, which 32 bits hold",
    ),
    Mutant(
        "progress-of-the-largest-int32",
        "_state/progress.py",
        "return jnp.int64 if n >= WIDE",
        "return jnp.int64 if n > WIDE",
        ("base/test_counting.py",),
    ),
    Mutant(
        "padding-bits-are-dropped",
        "_state/bit_masks.py",
        "constant_values=True",
        "constant_values=False",
        (
            "state/test_bit_masks.py::test_packing_is_undone_by_unpacking",
            "state/test_bit_masks.py::test_masks_take_a_bit_per_weight",
        ),
    ),
    Mutant(
        "bits-in-the-other-order",
        "_state/bit_masks.py",
        'jnp.packbits(flags, axis=-1, bitorder="little")',
        'jnp.packbits(flags, axis=-1, bitorder="big")',
        ("state/test_bit_masks.py::test_packing_is_undone_by_unpacking",),
    ),
    Mutant(
        "a-cache-keeps-traced-values",
        "_base/caching.py",
        "if holds_tracer(args) or holds_tracer(kwargs):",
        "if False:",
        ("transform/test_conformance.py::test_a_score_can_use_an_injected_hyperparameter",),
    ),
    Mutant(
        "a-fire-keeps-traced-values",
        "_transform/update.py",
        "decide = jitted_unless_traced(fire, settings.recipe)",
        "decide = fire",
        ("transform/test_conformance.py::test_a_score_can_use_an_injected_hyperparameter",),
    ),
    Mutant(
        "a-fire-reads-what-has-a-gradient",
        "_transform/fire.py",
        "arrays = lax.stop_gradient(_arrays_of(inputs))",
        "arrays = _arrays_of(inputs)",
        ("transform/test_gradients.py",),
    ),
    Mutant(
        "an-upgrade-loses-arrays",
        "_state/upgrade.py",
        "if n_used < len(jax.tree.leaves(old)):",
        "if False:",
        ("state/test_upgrade.py::test_no_array_of_another_optimizer_is_lost_without_a_word",),
    ),
    Mutant(
        "a-selection-keeps-traced-values",
        "_topk/topk.py",
        "select = jitted_unless_traced(_select, score)",
        "select = _select",
        ("transform/test_conformance.py::test_a_score_can_use_an_injected_hyperparameter",),
    ),
    Mutant(
        "the-end-is-not-left",
        "_state/recount.py",
        "return n_on_grid - n_past + (step <= end)",
        "return n_on_grid - n_past + (step < end)",
        ("state/test_upgrade.py::test_fires_that_are_left_are_those_at_or_after_a_step",),
    ),
    Mutant(
        "every-account-is-known",
        "_state/recount.py",
        "total = np.where(unit_size[..., account] > 0, total, UNKNOWN)",
        "total = np.where(unit_size[..., account] >= 0, total, UNKNOWN)",
        (
            "state/test_set_masks.py::test_what_masks_of_larger_units_reach_is_found_out_by_the_next_update",
        ),
    ),
    Mutant(
        "nan-updates-survive",
        "_state/masks.py",
        "return jnp.where(mask.astype(bool), update.astype(dtype), -param.astype(dtype))",
        (
            "return mask.astype(dtype) * update.astype(dtype) - (1 - mask.astype(dtype)) * "
            "param.astype(dtype)"
        ),
        ("transform/test_laws.py::test_a_nan_update_stops_at_a_dropped_weight",),
    ),
    Mutant(
        "landing-in-the-dtype-of-the-update",
        "_state/masks.py",
        "dtype = wider_dtype(param.dtype, update.dtype)",
        "dtype = update.dtype",
        ("transform/test_laws.py::test_dropped_weights_land_on_zero_in_mixed_dtypes",),
    ),
    Mutant(
        "landing-in-the-narrower-dtype",
        "_state/masks.py",
        "return a if narrow[1] else b",
        "return b if narrow[1] else a",
        ("integration/test_numerics.py",),
    ),
    Mutant(
        "straight-through-masks-its-gradient",
        "_state/masks.py",
        "return _straight_through(*primals), tangents[0]",
        "return _straight_through(*primals), keep(tangents[0], primals[1])",
        ("transform/test_laws.py::test_straight_through_masks_values_and_passes_gradients",),
    ),
    Mutant(
        "states-in-a-wrapped-optimizer-are-not-seen",
        "_state/prune_state.py",
        "(computable(state), *find_states(state.inner_state))",
        "(computable(state),)",
        ("state/test_nested_states.py",),
    ),
    Mutant(
        "states-in-a-wrapped-optimizer-do-not-change",
        "_state/convert.py",
        "_replace(inner_state=with_changed_states(change, x.inner_state))",
        "_replace(inner_state=x.inner_state)",
        ("state/test_nested_states.py",),
    ),
    Mutant(
        "kept-by-any-state",
        "_state/merged.py",
        "functools.reduce(operator.and_,",
        "functools.reduce(operator.or_,",
        (
            "state/test_bad_states.py",
            "transform/test_optimizers.py::"
            "test_partition_with_two_prunes_holds_both_budgets_and_get_masks_merges_them",
            "state/test_set_masks.py",
        ),
    ),
    Mutant(
        "a-chosen-schedule-is-one-fire-behind",
        "_state/choose.py",
        "past = jnp.clip((step - begin) // every + 1, 0, n_fires - 1)",
        "past = jnp.clip((step - begin) // every, 0, n_fires - 1)",
        ("transform/test_schedule_list.py",),
    ),
    # _transform
    Mutant(
        "step-wraps",
        "_transform/update.py",
        "optax.safe_increment(state.prune_step)",
        "state.prune_step + 1",
        ("transform/test_catch_up.py::test_the_step_stays_at_the_largest_integer",),
    ),
    Mutant(
        "norm-for-root-mean-square",
        "_transform/normalized.py",
        'n = 1 if by == "l2" else max(scores.size - traits.n_absent, 1)',
        "n = 1",
        ("recipe/test_distributions.py",),
    ),
    Mutant(
        "most-threshold-of-slices",
        "_transform/apart.py",
        "return kept, jnp.min(thresholds)",
        "return kept, jnp.max(thresholds)",
        ("recipe/test_slices.py::test_the_threshold_of_a_leaf_is_the_least_of_its_slices",),
    ),
    Mutant(
        "most-threshold-of-columns",
        "_transform/apart.py",
        "jnp.min(threshold)\n",
        "jnp.max(threshold)\n",
        ("recipe/test_slices.py::test_the_threshold_of_a_leaf_is_the_least_of_its_slices",),
    ),
    Mutant(
        "coupled-masks-by-or",
        "_transform/decide.py",
        "functools.reduce(jnp.logical_and, masks)",
        "functools.reduce(jnp.logical_or, masks)",
        (
            "shrink/test_shrink.py::"
            "test_a_channel_that_one_of_coupled_leaves_has_dropped_is_dropped_in_all",
        ),
    ),
    Mutant(
        "a-schedule-in-the-past-is-not-caught-up",
        "_transform/fire.py",
        "return due | is_behind(settings, accounts_of(settings, budget), step, progress)",
        "return due",
        (
            "transform/test_catch_up.py::"
            "test_a_schedule_in_the_past_is_caught_up_by_the_first_update",
        ),
    ),
    Mutant(
        "a-state-is-always-behind",
        "_transform/due.py",
        "jnp.maximum(progress.reached, 0) < asked_at(",
        "jnp.maximum(progress.reached, 0) <= asked_at(",
        (
            "transform/test_catch_up.py::test_nothing_is_caught_up_before_the_first_fire",
            "transform/test_laws.py::test_quiet_steps_run_no_selection_under_vmap",
            "transform/test_catch_up.py::test_a_state_that_lacks_nothing_continues_bit_by_bit",
        ),
    ),
    Mutant(
        "the-row-before-is-asked",
        "_transform/due.py",
        "return table[schedule.index(step) + 1]",
        "return table[schedule.index(step)]",
        (
            "transform/test_catch_up.py::"
            "test_a_schedule_in_the_past_is_caught_up_by_the_first_update",
        ),
    ),
    Mutant(
        "one-fire-more-is-left",
        "_transform/accounts.py",
        "len(schedule.targets) - 1 - schedule.index(step)",
        "len(schedule.targets) - schedule.index(step)",
        ("report/test_report.py::test_metrics_count_what_the_masks_and_thresholds_hold",),
    ),
    Mutant(
        "other-accounts-count-as-known",
        "_transform/due.py",
        "jnp.where(same, progress.reached, unknown)",
        "progress.reached",
        (
            "transform/test_catch_up.py::test_what_a_pool_has_reached_is_not_what_one_of_its_leaves_has",
        ),
    ),
    Mutant(
        "violations-of-the-first-step",
        "_transform/fire.py",
        "counts = (inputs.step > 0) & schedule.fires(inputs.step)",
        "counts = schedule.fires(inputs.step)",
        (
            "state/test_set_masks.py::"
            "test_weights_that_new_masks_drop_are_no_violations_at_the_first_update",
        ),
    ),
    Mutant(
        "violations-are-forgotten",
        "_transform/fire.py",
        "jnp.maximum(violations, _violations_now(settings, inputs, flags, before))",
        "_violations_now(settings, inputs, flags, before)",
        (
            "transform/test_laws.py::test_violations_stay_after_the_damage_is_repaired",
            "report/test_report.py::test_violations_stay_at_the_worst_that_any_fire_found",
        ),
    ),
    Mutant(
        "floors-are-counted-twice",
        "_transform/decide.py",
        "n_keep = n_keep - np.bincount(contest.pool_of, contest.floors).astype(n_keep.dtype)",
        "pass",
        ("recipe/test_distributions.py::test_a_leaf_is_never_below_its_least_density",),
    ),
    Mutant(
        "the-inner-optimizer-sees-dropped-weights",
        "_transform/update.py",
        "return grads if settings.regrow == TRAIN else list(map(keep, grads, trained))",
        "return grads",
        ("transform/test_laws.py::test_inner_sees_no_gradient_of_dropped_weights",),
    ),
    Mutant(
        "a-swap-drops-more-than-it-grows",
        "_transform/algorithms.py",
        "n_stay = n_keep - n_swap\n",
        "n_stay = n_keep - n_swap - 1\n",
        ("transform/test_regrowth.py::test_every_swap_conserves_the_count_and_takes_the_best",),
    ),
    Mutant(
        "grown-weights-are-trained-at-once",
        "_transform/algorithms.py",
        "((mask == 2) & ~fires)",
        "(mask == 2)",
        ("transform/test_regrowth.py",),
    ),
    Mutant(
        "a-key-for-all-steps",
        "_transform/algorithms.py",
        "        key = jax.random.fold_in(key, inputs.step)\n",
        "",
        ("transform/test_algorithms.py::test_random_scores_differ_by_leaf_step_and_seed",),
    ),
    Mutant(
        "a-key-for-all-leaves",
        "_transform/algorithms.py",
        "keys = [jax.random.fold_in(key, i) for i in budget.chosen]",
        "keys = [key for i in budget.chosen]",
        ("transform/test_algorithms.py::test_random_scores_differ_by_leaf_step_and_seed",),
    ),
    Mutant(
        "swaps-do-not-decrease",
        "_transform/rigl.py",
        "first / 2 * (1 + math.cos(math.pi * step / end_step)) if",
        "first if",
        ("transform/test_regrowth.py",),
    ),
    Mutant(
        "a-swap-at-step-zero",
        "_transform/rigl.py",
        "if step < end_step else 0.0",
        "if step <= end_step else 0.0",
        ("transform/test_regrowth.py::test_static_sparse_never_moves_and_erk_is_exact",),
    ),
    Mutant(
        "a-leaf-of-zeros-is-masked",
        "_transform/keep_zeros.py",
        "mask = mask | ~has_weights",
        "pass",
        ("transform/test_keep_zeros.py::test_leaves_of_zeros_are_free_and_a_warning_names_them",),
    ),
    Mutant(
        "a-leaf-of-zeros-is-divided-by-zero",
        "_transform/normalized.py",
        "jnp.clip(root * unit, _LEAST, _MOST)",
        "root * unit",
        (
            "recipe/test_distributions.py::"
            "test_a_leaf_of_zeros_loses_its_weights_first_whatever_the_norm",
        ),
    ),
)
