#!/usr/bin/env bash
# `safetensors.flax.save` and `save_file` replace the JAX arrays in the dict they are given by NumPy
# arrays, so a training loop that saves a checkpoint goes on with other arrays.
#
# Versions: safetensors 0.8.0, jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU
# with 4 host devices.
#
# Expected: saving reads. The dict of params has the same arrays after `save_file` as before.
# Seen: the conversion to NumPy writes its results into the caller's dict. The sharding is lost: a
# layer that was split over 4 devices is on one of them, in full, in the next jitted step, which is
# compiled anew. The methods are NumPy's: `params["w"].at` is gone, and in bfloat16
# `params["w"].sum()` adds in bfloat16 and stops at 256, so what is computed from the params outside
# of jit, such as the mean magnitude of a layer that is to be pruned, changes after the first
# checkpoint. A FrozenDict of Flax can't be saved at all. (The functions for TensorFlow and Paddle
# are written in the same way.)
#
# What helps: `save_file(dict(params), path)`.
#
# Known: we found no report, and the documentation of `save_file` doesn't say it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  safetensors==0.8.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/save.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.flax import save_file

mesh = jax.make_mesh((4,), ("parts",))
split = NamedSharding(mesh, PartitionSpec("parts"))
params = {"w": jax.device_put(jnp.ones((1024, 2), jnp.bfloat16), split)}
traced = []


@jax.jit
def step(w):
    traced.append(w.shape)
    return w * 0.5


def report(when):
    w = params["w"]
    kind = f"{type(w).__module__.partition('.')[0]} {w.dtype}"
    devices = len(step(w).sharding.device_set)
    print(f"{when}: {kind}, sum {float(w.sum())}, {devices} device(s), compiled {len(traced)} x")


report("before")
save_file(dict(params), sys.argv[1])
report("after save_file(dict(params))")
save_file(params, sys.argv[1])
report("after save_file(params)")
PYTHON
seen=$(JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 \
  "$folder/venv/bin/python" "$folder/save.py" "$folder/params.safetensors")
printf '%s\n' "$seen"
[[ $seen == "before: jaxlib bfloat16, sum 2048.0, 4 device(s), compiled 1 x
after save_file(dict(params)): jaxlib bfloat16, sum 2048.0, 4 device(s), compiled 1 x
after save_file(params): numpy bfloat16, sum 256.0, 1 device(s), compiled 2 x" ]]
echo 'as described'
