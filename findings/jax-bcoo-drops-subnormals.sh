#!/usr/bin/env bash
# jax.experimental.sparse: BCOO.fromdense and BCSR.fromdense drop subnormal numbers on the CPU.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, NumPy 2.4.6, SciPy 1.17.1, Python 3.11, Linux x86-64, CPU.
#
# Expected: every entry that is not zero is stored, as SciPy's csr_array does, so that
# `fromdense(x).todense() == x`.
# Seen: XLA compares subnormal floats on the CPU as equal to zero, so 1e-40 is not counted as a
# nonzero (`nse` is 1 instead of 2) and comes back as 0. NumPy and SciPy keep it.
#
# What helps: find the nonzeros in NumPy and build the BCOO from data and indices.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental import sparse

x = np.array([[0.0, 1e-40], [1.0, 0.0]], np.float32)
bcoo, bcsr = sparse.BCOO.fromdense(jnp.asarray(x)), sparse.BCSR.fromdense(jnp.asarray(x))
print("nonzeros by NumPy:", np.count_nonzero(x), " by SciPy:", scipy.sparse.csr_array(x).nnz)
print("BCOO.nse:", bcoo.nse, " BCSR.nse:", bcsr.nse)
back = np.asarray(bcoo.todense())
print("1e-40 comes back as", back[0, 1])
as_described = (np.count_nonzero(x), bcoo.nse, bcsr.nse, back[0, 1]) == (2, 1, 1, 0)
sys.exit(not as_described)
PYTHON
echo 'as described'
