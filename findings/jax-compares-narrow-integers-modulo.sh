#!/usr/bin/env bash
# JAX compares arrays of narrow integers with a Python number modulo 2**8 or 2**16: 100 >= 300 is
# true for uint8, and jnp.clip(x, 0, 300) makes 44 of 100.
#
# Versions: jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU, with and without
# jit.
#
# Expected: 100 is less than 300, whatever dtype the 100 has. NumPy 2 compares and clips exactly, and
# raises an OverflowError for a difference with a number that the dtype does not have.
# Seen: JAX converts the Python number to the dtype of the array, and 300 becomes 44 in uint8, 200
# becomes -56 in int8. Comparisons, `clip`, `minimum`, `maximum` and differences are those of this
# other number. Nothing warns, also not with jax_numpy_dtype_promotion="strict" or
# jax_numpy_rank_promotion="raise".
#
# Where it matters: steps, labels and token numbers are often stored in narrow dtypes, and are
# compared with a limit such as the end of a schedule or the size of a vocabulary.
#
# What helps: widen the array first, `x.astype("int32") >= 300`, or pass an array, `np.int32(300)`.
#
# Known in part: https://github.com/jax-ml/jax/issues/34455 is about `clip` of uint64 with a number
# beyond int64, which raises. We found nothing about comparisons.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/compare.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
steps = np.array([0, 100, 120], np.uint8)


def show(name, function, x=steps):
    results = []
    for array in (x, jnp.asarray(x)):
        try:
            results.append(str(np.asarray(function(array)).tolist()))
        except OverflowError:
            results.append("OverflowError")
    print(f"{name}: NumPy {results[0]}, JAX {results[1]}")
    assert results[1] == str(jax.jit(function)(jnp.asarray(x)).tolist())


show("uint8 >= 300", lambda x: x >= 300)
show("int8 < 200", lambda x: x < 200, np.array([1, 100], np.int8))
show("uint8 == 300", lambda x: x == 300, np.array([44], np.uint8))
show("int16 >= 70000", lambda x: x >= 70_000, np.array([5000], np.int16))
show("clip(uint8, 0, 300)", lambda x: x.clip(0, 300))
show("uint8 - 300", lambda x: x - 300)
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/compare.py")
printf '%s\n' "$seen"
[[ $seen == "uint8 >= 300: NumPy [False, False, False], JAX [False, True, True]
int8 < 200: NumPy [True, True], JAX [False, False]
uint8 == 300: NumPy [False], JAX [True]
int16 >= 70000: NumPy [False], JAX [True]
clip(uint8, 0, 300): NumPy [0, 100, 120], JAX [0, 44, 44]
uint8 - 300: NumPy OverflowError, JAX [212, 56, 76]" ]]
echo 'as described'
