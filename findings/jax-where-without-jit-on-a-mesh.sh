#!/usr/bin/env bash
# Under `jax.disable_jit`, `jnp.where` of an array on an Explicit mesh and a number is refused.
#
# Versions: JAX 0.10.2, NumPy 2.4.6, Python 3.12, Linux x86-64, CPU with 8 host devices. JAX 0.12.0
# selects as expected.
#
# Expected: `jnp.where(x > 0, x, 0.0)` gives the same array with and without `jax.disable_jit`, which
# is for debugging: what is under `jit` runs operation by operation. Other functions of `x` and a
# number, such as `jnp.maximum(x, 0.0)`, do so.
# Seen: a ValueError about a device assignment of length 1, from the broadcast of the number to the
# sharding of `x`. It is raised for every sharding, a replicated one, too. Called directly, outside
# of `disable_jit`, the same line works, as it does within `jit`.
#
# What helps: `lax.select(x > 0, x, jnp.zeros_like(x))`, which broadcasts nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/where.py" <<'PYTHON'
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
x = jax.device_put(jnp.arange(-8.0, 8.0), NamedSharding(mesh, PartitionSpec("data")))
FUNCTIONS = {
    "where": lambda x: jnp.where(x > 0, x, 0.0),
    "maximum": lambda x: jnp.maximum(x, 0.0),
    "select": lambda x: lax.select(x > 0, x, jnp.zeros_like(x)),
}
for name, function in FUNCTIONS.items():
    for way in ("directly", "in jit", "jit disabled"):
        try:
            with jax.disable_jit(way == "jit disabled"):
                result = float((jax.jit(function) if way == "in jit" else function)(x).sum())
        except ValueError as error:
            result = "ValueError: " + str(error).split(" of aval")[0]
        print(name, "|", way, "|", result)
PYTHON
seen=$(JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 \
  "$folder/venv/bin/python" "$folder/where.py")
printf '%s\n' "$seen"
[[ $seen == "where | directly | 28.0
where | in jit | 28.0
where | jit disabled | ValueError: Length of device assignment 1 is not equal to the size of the mesh 8
maximum | directly | 28.0
maximum | in jit | 28.0
maximum | jit disabled | 28.0
select | directly | 28.0
select | in jit | 28.0
select | jit disabled | 28.0" ]]
echo 'as described'
