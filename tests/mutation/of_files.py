"""Mutants of files, the command line and the demo."""

from __future__ import annotations

from mutation.runner import Mutant

MUTANTS = (
    # _files
    Mutant(
        "minus-zero-is-not-stored",
        "_files/leaves.py",
        "    return _as_unsigned(array) != 0\n",
        "    return array != 0\n",
        (
            "files/test_save_load.py::"
            "test_minus_zero_is_kept_without_masks_and_plus_zero_with_them",
            "files/test_save_load.py::test_every_dtype_comes_back",
        ),
    ),
    Mutant(
        "a-leaf-is-always-sparse",
        "_files/leaves.py",
        "if not is_smaller or n_zero < _LEAST_SPARSITY * flat.size:",
        "if n_zero < _LEAST_SPARSITY * flat.size:",
        ("files/test_save_load.py::test_a_leaf_is_packed_where_that_pays",),
    ),
    Mutant(
        "values-are-taken-from-the-start",
        "_files/leaves.py",
        "        n_done += positions.size\n",
        "",
        ("files/test_save_load.py::test_a_leaf_of_several_chunks_comes_back",),
    ),
    Mutant(
        "row-pointers-of-csr",
        "_files/footprint.py",
        "4 * (n_rows + 1) + 4 * n_stored",
        "4 * n_rows + 4 * n_stored",
        ("cli/test_cli.py::test_sizes_are_those_of_the_formats",),
    ),
    Mutant(
        "fillers-of-255",
        "_files/footprint.py",
        "gaps // 256",
        "gaps // 255",
        ("cli/test_cli.py::test_sizes_are_those_of_the_formats",),
    ),
    Mutant(
        "gaps-between-tensors",
        "_files/safetensors.py",
        "if begin != previous_end:",
        "if begin < previous_end:",
        (
            "files/test_hostile_files.py::test_headers_rewritten",
            "files/test_save_load.py::test_a_hostile_file_is_refused",
        ),
    ),
    Mutant(
        "a-header-that-is-not-aligned",
        "_files/safetensors.py",
        'text += b" " * (-len(text) % 8)',
        "pass",
        ("files/test_save_load.py::test_the_data_of_a_file_begin_at_a_multiple_of_eight",),
    ),
    Mutant(
        "a-name-that-occurs-twice",
        "_files/safetensors.py",
        "if len(names) < len(pairs):",
        "if False:",
        (
            "files/test_save_load.py::test_a_hostile_file_is_refused",
            "files/test_hostile_files.py::test_headers_rewritten",
            "files/test_bad_files.py",
        ),
    ),
    Mutant(
        "small-entries-in-the-other-order",
        "_files/dtypes.py",
        'bits = np.unpackbits(part, bitorder="little").reshape(-1, n_bits)',
        'bits = np.unpackbits(part, bitorder="big").reshape(-1, n_bits)',
        ("files/test_preserved.py::test_small_floats_are_read_as_their_values",),
    ),
    Mutant(
        "entries-that-do-not-fill-bytes",
        "_files/dtypes.py",
        "return None if rest else n_bytes",
        "return n_bytes",
        ("files/test_preserved.py::test_entries_that_do_not_fill_bytes_are_refused",),
    ),
    Mutant(
        "arrays-that-share-their-data",
        "_files/npz.py",
        "if sum(info.compress_size for info in members) > self._n_file_bytes:",
        "if False:",
        equivalent="zipfile of new versions of Python finds this, too; it is for older ones",
    ),
    Mutant(
        "pipes-are-replaced",
        "_files/atomic.py",
        "if path.exists() and not path.is_file():",
        "if False:",
        ("files/test_other_formats.py::test_pipes_are_neither_read_nor_replaced",),
    ),
    Mutant(
        "names-of-temporary-files-are-too-long",
        "_files/atomic.py",
        "_LONGEST_NAME = 200",
        "_LONGEST_NAME = 255",
        ("files/test_interrupts.py::test_names_of_any_length_that_a_file_system_allows",),
    ),
    Mutant(
        "only-ctrl-c-raises",
        "_cli/interrupts.py",
        "signal.SIGTERM: signal.SIG_DFL}",
        "signal.SIGTERM: None}",
        ("cli/test_signals.py::test_a_signal_while_modules_are_imported",),
    ),
    Mutant(
        "a-failed-move-is-not-undone",
        "_files/atomic.py",
        "        if self._is_moving:\n            self._undo()\n",
        "        if False:\n            self._undo()\n",
        (
            "files/test_interrupts.py::test_a_folder_of_csr_keeps_its_other_files",
            "files/test_interrupts.py::test_any_call_of_the_system_that_fails",
        ),
    ),
    # _cli
    Mutant(
        "layers-are-states-of-an-optimizer",
        "_cli/optimizer_states.py",
        "return is_beside and all(",
        "return all(",
        ("cli/test_training_state.py::test_words_of_moments_may_be_names_in_a_model",),
    ),
    Mutant(
        "torch-biases-follow-the-last-axis",
        "_cli/layout.py",
        'return 0 if roles is None else roles.index("out")',
        "return -1",
        ("cli/test_layout.py::test_a_layout_that_the_biases_contradict_is_used_with_a_word",),
    ),
    Mutant(
        "both-layouts-are-one",
        "_cli/layout.py",
        "if all(reasons.values()):",
        "if False:",
        ("cli/test_layout.py::test_an_unclear_layout_has_to_be_given",),
    ),
    # demo
    Mutant(
        "one-standard-error",
        "demo/report.py",
        "if abs(mean) <= 2 * se:",
        "if abs(mean) <= se:",
        ("demo/test_demo_report.py::test_two_standard_errors_make_a_verdict",),
    ),
    Mutant(
        "differences-are-not-paired",
        "demo/report.py",
        "else sd / math.sqrt(len(pairs))",
        "else sd",
        ("demo/test_demo_report.py::test_differences_are_paired_by_seed",),
    ),
)
