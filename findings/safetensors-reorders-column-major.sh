#!/usr/bin/env bash
# safetensors 0.8.0 writes the weights of an array that is not row-major in another order, also
# those of a JAX array with a layout of its own.
#
# Versions: safetensors 0.8.0, jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Expected: `load(save(tensors)) == tensors`, or an error. The page says that tensors need to be
# contiguous and dense; `safetensors.torch.save` raises for others. The order of an array in memory
# is a matter of NumPy's strides and of XLA's layouts, not of its values: a transposed kernel, as
# one writes it for PyTorch, is an ordinary array, and a `jax.Array` has no strides to ask for.
# Seen: `safetensors.numpy` hands over the address of the first element and the number of bytes, and
# `safetensors.flax` goes through it. Of a transposed or column-major array it writes the bytes as
# they lie in memory, under the shape of the array. Nothing is reported, and the file has the same
# weights, only at other places: counts of zeros and norms agree, while a 2:4 pattern is gone.
# Version 0.7.0 wrote all of them right.
#
# What helps: `np.ascontiguousarray` around each array.
#
# Known: https://github.com/safetensors/safetensors/issues/825, open, for Fortran order in NumPy.
# The issue does not mention JAX.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  safetensors==0.8.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/save.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
import safetensors.numpy
from jax.experimental.layout import Format, Layout

print("safetensors", safetensors.__version__)
rng = np.random.default_rng(0)
w = rng.standard_normal((8, 16)).astype(np.float32)
w[:, [0, 1, 4, 5, 8, 9, 12, 13]] = 0  # in each row, two of four weights are zero
x = jnp.asarray(w)
tensors = {
    "NumPy, row-major": w,
    "NumPy, transposed twice": np.ascontiguousarray(w.T).T,
    "JAX, default layout": x,
    "JAX, column-major layout": jax.device_put(x, Format(Layout((1, 0)), x.sharding)),
}
for name, array in tensors.items():
    module = safetensors.flax if name.startswith("JAX") else safetensors.numpy
    back = np.asarray(module.load(module.save({"w": array}))["w"])
    assert np.array_equal(array, w) and back.shape == w.shape
    pattern = np.all(np.count_nonzero(back.reshape(8, 4, 4), axis=2) == 2)
    print(f"{name}: equal {np.array_equal(back, w)}, {np.mean(back == 0):.0%} zeros, 2:4 {pattern}")
PYTHON
export JAX_PLATFORMS=cpu
seen=$("$folder/venv/bin/python" "$folder/save.py")
printf '%s\n' "$seen"
[[ $seen == "safetensors 0.8.0
NumPy, row-major: equal True, 50% zeros, 2:4 True
NumPy, transposed twice: equal False, 50% zeros, 2:4 False
JAX, default layout: equal True, 50% zeros, 2:4 True
JAX, column-major layout: equal False, 50% zeros, 2:4 False" ]]
"$folder/venv/bin/pip" install -q --disable-pip-version-check safetensors==0.7.0
before=$("$folder/venv/bin/python" "$folder/save.py")
printf '%s\n' "$before"
[[ $(grep -c 'equal True' <<<"$before") == 4 ]]
echo 'as described'
