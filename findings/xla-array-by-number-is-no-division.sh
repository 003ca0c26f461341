#!/usr/bin/env bash
# XLA divides an array by one number by multiplying with the reciprocal of the number, so `x / x.max()`
# has no 1 in it, or only zeros.
#
# Versions: JAX 0.10.2, NumPy 2.4.6, Python 3.12, Linux x86-64, CPU. JAX 0.12.0 does the same.
#
# Expected: quotients rounded as IEEE 754 and NumPy round them: `n / n` is 1 for every finite number,
# so the largest entry of `x / x.max()` is 1.
# Seen: for 23 of the integers up to 200 (41, 47, 55, ...) it is 0.99999994. For a maximum above
# 2**126 the reciprocal is subnormal and flushed to zero, and all entries are 0, in float32 and in
# bfloat16, whose largest number is about 2**128. The same holds in `jit` and outside of it, and the
# HLO has a `multiply` where the program has a division. An array divided by an array of its own shape
# is divided, and so is a single number.
#
# It matters where scores are normalised by their largest, and then compared with 1, or with scores
# that were normalised apart; and where values near the largest float stand for "never".
# What helps: scale by a power of two, whose reciprocal is exact, and keep it within 2**-126 and
# 2**126.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/divide.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

divide = lambda x: x / x.max()


def inexact(ways):
    arrays = (np.full(8, n, np.float32) for n in range(1, 201))
    return [int(x[0]) for x in arrays if np.asarray(ways(x)).max() != 1]


print("numpy:", inexact(divide))
seen = inexact(lambda x: divide(jnp.asarray(x)))
print("jax:", len(seen), "of 200, first", seen[:3])
print("jax, jit: the same", inexact(jax.jit(divide)) == seen)
print("jax, by an array:", inexact(lambda x: jnp.asarray(x) / jnp.asarray(x)))
for dtype in (jnp.float32, jnp.bfloat16):
    x = jnp.array([1.0, 2.0, 3.0], dtype) * jnp.array(2.0**126, dtype)
    print(dtype.__name__, divide(x).tolist(), "by an array", bool(((x / x) == 1).all()))
hlo = jax.jit(divide).lower(jnp.ones(8)).compile().as_text()
print("hlo: whole arrays divided", "f32[8]{0} divide(" in hlo, "multiplied", "f32[8]{0} multiply(" in hlo)
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/divide.py")
printf '%s\n' "$seen"
[[ $seen == "numpy: []
jax: 23 of 200, first [41, 47, 55]
jax, jit: the same True
jax, by an array: []
float32 [0.0, 0.0, 0.0] by an array True
bfloat16 [0.0, 0.0, 0.0] by an array True
hlo: whole arrays divided False multiplied True" ]]
echo 'as described'
