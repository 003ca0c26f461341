#!/usr/bin/env bash
# XLA for CPUs compiles equal kernels once, but each slice of one array anew: 20 times the time.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, Python 3.11.
#
# Expected: to take 300 layers out of a stacked array, `[stacked[i] for i in range(300)]`, compiles
# about as fast as 300 operations on separate arrays, or faster, because it computes nothing.
# Seen: 300 products of separate matrices compile in about 0.1 s of CPU time, because their kernels
# are equal and XLA compiles one of them. 300 slices of one array take 2 to 4 s: the offset is a
# constant of the kernel, so each is another one. It makes no difference whether a slice is a
# matrix or one number of a vector.
#
# What helps: pass the layers as separate arguments; or compile a function of the index once and
# call it for each layer, jax.jit(lambda stacked, i: stacked[i]).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$folder/program.py" <<'PYTHON'
import sys
import time

import jax
import jax.numpy as jnp

N = 300


def seconds(function, *shapes):
    """The CPU time to compile a function of float32 arrays, and how many fusions it has."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    lowered = jax.jit(function).lower(*arguments)
    start = time.process_time()
    compiled = lowered.compile()
    return time.process_time() - start, compiled.as_text().count(" fusion(")


seconds(lambda x: x + 1, (8,))  # the first program of a process takes longer
separate, n_separate = seconds(lambda *xs: [2 * x for x in xs], *[(64, 64)] * N)
matrices, n_matrices = seconds(lambda x: [2 * x[i] for i in range(N)], (N, 64, 64))
numbers, n_numbers = seconds(lambda x: [x[i] for i in range(N)], (N,))
by_index, _ = seconds(lambda x, i: x[i.astype(int)], (N, 64, 64), ())
print(f"{n_separate} products of separate matrices: {separate:.2f} s")
print(f"{n_matrices} products of slices: {matrices:.2f} s")
print(f"{n_numbers} numbers of a vector: {numbers:.2f} s")
print(f"a function of the index: {by_index:.2f} s")
sys.exit(
    not (
        n_separate == n_matrices == n_numbers == N
        and matrices > 5 * separate
        and numbers > 5 * separate
        and by_index < separate + 0.5
    )
)
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/program.py"
echo 'as described'
