#!/usr/bin/env bash
# On CPUs, XLA gives a sum to a library that stores its operand, and `memory_analysis` omits this.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Expected: `compiled.memory_analysis().temp_size_in_bytes` is what a call allocates beside its
# arguments and its result, and a reshape between abs and sum, which moves nothing, changes nothing.
# Seen: for float32[8192, 8192], `jnp.sum(jnp.abs(w).reshape(8192, 512, 16), 2)` reports 0, but raises
# the peak of the process by 272 MiB: the result of 16 MiB, and abs(w), which `__ynn_fusion` stores.
# The same happens with the reshape before abs. For an argument that has the shape (8192, 512, 16)
# already, it reports 0 too, and the peak grows by the result alone.
#
# What helps: look at the peak of the process, not only at `memory_analysis`; or reshape outside jit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/sums.py" <<'PYTHON'
import resource
import sys

import jax
import jax.numpy as jnp

MIB = 2**20
GROUPS = (8192, 512, 16)
SHAPES = {"reshaped": (8192, 8192), "not_reshaped": GROUPS}


def sums(w):
    return jnp.sum(jnp.abs(w).reshape(GROUPS), axis=2)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


shape = SHAPES[sys.argv[1]]
compiled = jax.jit(sums).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
w = jax.block_until_ready(jnp.ones(shape))
before = peak()
jax.block_until_ready(compiled(w))
grown = (peak() - before) / MIB
temp = compiled.memory_analysis().temp_size_in_bytes / MIB
print(f"{shape}: temp_size_in_bytes {temp:.0f} MiB, peak of the process {grown:.0f} MiB higher")
print("__ynn_fusion" in compiled.as_text(), temp < 1, "stored" if grown > 200 else "fused")
PYTHON
run() { JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/sums.py" "$1"; }
reshaped=$(run reshaped)
not_reshaped=$(run not_reshaped)
printf '%s\n%s\n' "$reshaped" "$not_reshaped"
[[ $(tail -n 1 <<<"$reshaped") == 'True True stored' ]]
[[ $(tail -n 1 <<<"$not_reshaped") == 'True True fused' ]]
echo 'as described'
