#!/usr/bin/env bash
# The largest of finite float8_e8m0fnu numbers is NaN in JAX, and so is their sum. The zeros of this
# dtype are NaN in JAX and 2**-127 in NumPy.
#
# Versions: jax and jaxlib 0.10.2, ml_dtypes 0.6.0, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU. JAX
# 0.12.0.1 does the same.
#
# float8_e8m0fnu is the dtype of the scales in MX formats: powers of two from 2**-127 to 2**127, and
# NaN. It has neither zero, nor sign, nor infinity.
#
# Expected: the maximum and the minimum of some numbers are among them. An operation that needs a
# number which the dtype does not have raises an error, or is computed in a wider dtype.
# Seen: `jnp.max` begins with -inf, and `jnp.sum` with 0. Both are NaN in this dtype, so that both
# results are NaN for any input. `jnp.min` begins with inf, which becomes NaN, too. NumPy's maximum
# and minimum are right, and its sum is NaN. `jnp.zeros` is NaN throughout, and so are `jnp.eye` off
# the diagonal, the padding of `jnp.pad` and the moments that `optax.adam` begins with. `np.zeros`
# sets bits to zero, which means 2**-127; `np.full(..., 0)` is NaN. Nothing raises, and `== 0` is
# never true: a mask that is multiplied with scales makes NaN of those it drops, and a count of
# nonzeros finds no zero.
#
# What helps: compute with scales in float32, `scales.astype("float32")`, which is exact.
#
# Known in part: https://github.com/jax-ml/ml_dtypes/pull/163 and 166, which added the dtype, discuss
# that it has no zero. We found nothing about `max`, `min` and `sum`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0 optax==0.2.8
cat >"$folder/scales.py" <<'PYTHON'
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax

scales = np.array([0.25, 1, 2], ml_dtypes.float8_e8m0fnu)


def show(name, *arrays):
    rows = [[f"{x:.3g}" for x in np.ravel(a).astype(np.float32)] for a in arrays]
    print(f"{name}: {'; '.join(' '.join(row) for row in rows)}")


for name in ("max", "min", "sum"):
    show(f"{name}, NumPy and JAX", getattr(np, name)(scales), getattr(jnp, name)(scales))
show("zeros, NumPy and JAX", np.zeros(2, scales.dtype), jnp.zeros(2, scales.dtype))
show("full of 0, NumPy and JAX", np.full(2, 0, scales.dtype), jnp.full(2, 0, scales.dtype))
show("scales * mask, JAX", jnp.asarray(scales) * jnp.array([True, False, True]))
show("moments of adam", optax.adam(0.1).init(jnp.asarray(scales))[0].mu)
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/scales.py")
printf '%s\n' "$seen"
[[ $seen == "max, NumPy and JAX: 2; nan
min, NumPy and JAX: 0.25; nan
sum, NumPy and JAX: nan; nan
zeros, NumPy and JAX: 5.88e-39 5.88e-39; nan nan
full of 0, NumPy and JAX: nan nan; nan nan
scales * mask, JAX: 0.25 nan 2
moments of adam: nan nan nan" ]]
echo 'as described'
