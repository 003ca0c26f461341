"""Mutants of calibration, packed blocks, reports, shrinking, tracing."""

from __future__ import annotations

from mutation.runner import Mutant

MUTANTS = (
    # _calibration
    Mutant(
        "kept-weights-are-rounded",
        "_calibration/targets.py",
        "n - round_half_up(self.sparsity * n)",
        "round_half_up((1 - self.sparsity) * n)",
        ("calibration/test_calibrate.py::test_half_a_weight_more_is_dropped_at_exact_halves",),
    ),
    Mutant(
        "wanda-with-squares",
        "_calibration/wanda_solver.py",
        "magnitudes * jnp.sqrt(squares)[:, None]",
        "magnitudes * squares[:, None]",
        ("calibration/test_calibrate.py::test_wanda_is_a_stable_sort_of_each_output",),
    ),
    Mutant(
        "wanda-keeps-the-later-of-m",
        "_calibration/wanda_solver.py",
        "jnp.tri(m, k=-1, dtype=bool)",
        "~jnp.tri(m, k=0, dtype=bool)",
        ("calibration/test_calibrate.py::test_wanda_keeps_n_of_every_m_inputs",),
    ),
    Mutant(
        "dead-inputs-by-index",
        "_calibration/wanda_solver.py",
        "jnp.where(positive, jnp.float32(jnp.inf), magnitudes)",
        "jnp.where(positive, jnp.float32(jnp.inf), 0 * magnitudes)",
        (
            "calibration/test_calibrate.py::"
            "test_where_inputs_are_always_zero_the_largest_weights_stay",
        ),
    ),
    Mutant(
        "errors-are-not-compensated",
        "_calibration/sparsegpt_solver.py",
        "return w - jnp.matmul(later.T, errors, precision=_HIGHEST)",
        "return w",
        ("calibration/test_calibrate.py::test_sparsegpt_is_the_paper_step_by_step",),
    ),
    Mutant(
        "dead-inputs-have-no-diagonal",
        "_calibration/sparsegpt_solver.py",
        "jnp.diag(jnp.where(diagonal > 0, 0, half / scale) + damping)",
        "jnp.diag(jnp.where(diagonal > 0, 0, 0 * scale) + damping)",
        equivalent="nothing compensates for weights of such inputs, and damping keeps them regular",
    ),
    Mutant(
        "dead-inputs-do-not-count-in-the-mean",
        "_calibration/sparsegpt_solver.py",
        "jnp.mean(jnp.where(diagonal > 0, diagonal, half))",
        "jnp.mean(jnp.where(diagonal > 0, diagonal, 0 * half))",
        ("calibration/test_calibrate.py::test_damping_counts_inputs_that_are_always_zero_as_one",),
    ),
    # _blocks
    Mutant(
        "pack-linear-forgets-batch",
        "_blocks/nnx_layers.py",
        "pack_matrix(_value(layer.kernel), block=block, batch=batch)",
        "pack_matrix(_value(layer.kernel), block=block)",
        ("blocks/test_blocks.py::test_the_layout_for_a_batch_reaches_every_kernel",),
    ),
    Mutant(
        "pack-kernels-forgets-batch",
        "_blocks/flax_layers.py",
        "packed[path] = pack_matrix(leaf, block=block, batch=batch)",
        "packed[path] = pack_matrix(leaf, block=block)",
        ("blocks/test_blocks.py::test_the_layout_for_a_batch_reaches_every_kernel",),
    ),
    Mutant(
        "block-indices-descend",
        "_blocks/packed_matrix.py",
        'np.argsort(~is_kept, axis=1, kind="stable")[:, :n_kept]',
        'n_rows - 1 - np.argsort(~is_kept[:, ::-1], axis=1, kind="stable")[:, :n_kept]',
        ("blocks/test_blocks.py::test_columns_list_their_blocks_in_order",),
    ),
    Mutant(
        "a-block-is-kept-where-all-weights-are",
        "_blocks/packed_matrix.py",
        ".any((1, 3)).T",
        ".all((1, 3)).T",
        (
            "blocks/test_blocks.py::"
            "test_a_block_is_kept_where_any_weight_is_and_its_dropped_weights_are_zero",
        ),
    ),
    Mutant(
        "dropped-weights-of-kept-blocks",
        "_blocks/packed_matrix.py",
        "_blocks(np.where(kept, dense, np.zeros((), dense.dtype)), block)",
        "_blocks(dense, block)",
        (
            "blocks/test_blocks.py::"
            "test_a_block_is_kept_where_any_weight_is_and_its_dropped_weights_are_zero",
        ),
    ),
    # _shrink
    Mutant(
        "an-axis-of-no-units",
        "_shrink/groups.py",
        "            removed = removed[1:]\n",
        "            pass\n",
        ("shrink/test_shrink.py::test_one_unit_stays_where_all_are_zero",),
    ),
    Mutant(
        "frozen-units-are-candidates",
        "_shrink/units.py",
        "return self.contracted and not self.reasons",
        "return self.contracted",
        ("shrink/test_shrink.py::test_a_refused_group_stays_and_its_reason_is_named",),
    ),
    Mutant(
        "a-unit-is-zero-if-one-product-is",
        "_shrink/units.py",
        "is_nonzero[units[~contraction.zero]] = True",
        "pass",
        ("shrink/test_shrink.py::test_exactly_the_units_that_no_output_depends_on_are_removed",),
    ),
    Mutant(
        "loops-count-once",
        "_shrink/costs.py",
        'inner_times = times * eqn.params.get("length", 1)',
        "inner_times = times",
        (
            "shrink/test_afterwards.py::"
            "test_multiply_adds_of_convolutions_and_loops_are_those_that_run",
        ),
    ),
    Mutant(
        "surplus-of-parts-goes",
        "_shrink/balance.py",
        "surplus = np.cumsum(removed, 1) > n_removed",
        "surplus = np.cumsum(removed, 1) > n_removed + 1",
        ("shrink/test_splits.py::test_parts_with_unequal_numbers_of_zeros_lose_equal_numbers",),
    ),
    # _trace
    Mutant(
        "a-select-of-unknown-is-known",
        "_trace/constant_folding.py",
        "np.where(np.isfinite(which), chosen, np.nan))",
        "chosen)",
        ("trace/test_constant_folding.py",),
    ),
    Mutant(
        "zero-times-infinity",
        "_trace/constant_folding.py",
        "return np.where(infinite, np.inf, out)",
        "return out",
        (
            "trace/test_constant_folding.py",
            "shrink/test_finite.py::"
            "test_pruning_keeps_outputs_finite_and_shrinking_keeps_them_equal",
        ),
    ),
    Mutant(
        "the-root-is-the-largest-label",
        "_trace/label_sets.py",
        "root, child = min(i, j), max(i, j)",
        "root, child = max(i, j), min(i, j)",
        ("trace/test_label_sets.py",),
    ),
    Mutant(
        "factors-are-lost-in-a-union",
        "_trace/label_sets.py",
        "return [] if factors is None else self.set_factors(root, factors)",
        "return []",
        ("trace/test_label_sets.py",),
    ),
    # _report
    Mutant(
        "a-single-decider-competes",
        "_report/forecast.py",
        "compete = len(deciders) > 1 and",
        "compete = len(deciders) > 0 and",
        ("report/test_forecast.py",),
    ),
    Mutant(
        "units-are-weights",
        "_report/forecast.py",
        "else _average(members[k], units)",
        "else units",
        ("report/test_forecast.py::test_a_floor_of_blocks_is_told_in_weights",),
    ),
    Mutant(
        "uneven-units-are-exact",
        "_report/forecast.py",
        "is_exact = [len(sizes) < 2 or not n for",
        "is_exact = [True for",
        ("report/test_forecast.py::test_the_zeros_of_uneven_blocks_depend_on_which_is_dropped",),
    ),
    Mutant(
        "an-empty-leaf-is-emptied",
        "_report/metrics.py",
        "(zeros == sizes) & (sizes > 0)",
        "(zeros == sizes)",
        ("report/test_report.py",),
    ),
    Mutant(
        "the-step-of-the-first-state",
        "_report/metrics.py",
        "step=functools.reduce(jnp.maximum, steps),",
        "step=steps[0],",
        ("report/test_report.py::test_the_step_of_several_states_is_the_largest",),
    ),
    Mutant(
        "the-target-is-not-weighted",
        "_report/metrics.py",
        "[..., None] * total(sizes) - total(known)",
        "[..., None] - total(known)",
        ("report/test_report.py::test_a_leaf_of_two_states_counts_as_in_the_one_that_keeps_least",),
    ),
    Mutant(
        "rigl-may-drop-more",
        "_report/unfinished.py",
        "is_right = n == due if progress.exact else n >= due",
        "is_right = n >= due",
        ("report/test_check_done.py::test_rigl_must_drop_exactly_its_budget",),
    ),
    Mutant(
        "leaves-that-are-not-pruned-count",
        "_report/unfinished.py",
        "is_empty = (zeros == sizes) & (pool_of >= 0) & (sizes > 0)",
        "is_empty = (zeros == sizes) & (sizes > 0)",
        (
            "report/test_check_done.py",
            "report/test_report.py",
        ),
    ),
    Mutant(
        "a-moved-weight-of-a-kept-one",
        "_report/nonzero.py",
        "n_moved = int(total(dropped & is_nonzero(leaf)))",
        "n_moved = int(total(is_nonzero(leaf)))",
        ("report/test_report.py::test_check_accepts_minus_zero_and_ignores_kept_weights",),
    ),
    Mutant(
        "padded-slices-stay-known",
        "_trace/axis_shapes.py",
        "known = np.where(known == padding_value, known, np.nan)",
        "known = np.where(known == known, known, np.nan)",
        ("shrink/test_padded.py",),
    ),
    Mutant(
        "cropped-units-may-go",
        "_trace/axis_shapes.py",
        'tracer.freeze(axis.labels, "pad crops it, or puts values between its entries")',
        "pass",
        ("shrink/test_padded.py",),
    ),
)
