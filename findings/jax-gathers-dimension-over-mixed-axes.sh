#!/usr/bin/env bash
# A dimension that is split over an Auto and an Explicit axis of a mesh loses one of them under `jit`.
#
# Versions: JAX 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU with 8 host devices.
#
# Expected: `jax.jit(lambda x: x * 2)` keeps the sharding of its argument, and moves no data. It does
# so where all axes of a dimension are Auto or all are Explicit, also on a mesh that has both kinds.
# Seen: with P(("slice", "data"), "model"), where "slice" is Auto and the others are Explicit, the
# result is split over "data" and "model" only: each device holds twice as much, and the program has
# an all-gather and a collective-permute. Nothing warns.
#
# What helps: axes of one kind in each dimension.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/mixed.py" <<'PYTHON'
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

auto, explicit = AxisType.Auto, AxisType.Explicit
for kinds in ((auto, auto, auto), (explicit, explicit, explicit), (auto, explicit, explicit)):
    mesh = jax.make_mesh((2, 2, 2), ("slice", "data", "model"), axis_types=kinds)
    for spec in (P(("slice", "data"), "model"), P("slice", ("data", "model"))):
        with jax.set_mesh(mesh):
            x = jax.device_put(jnp.ones((128, 64)), NamedSharding(mesh, spec))
            program = jax.jit(lambda x: x * 2).lower(x).compile()
            shape = program(x).addressable_shards[0].data.shape
            moves = re.findall(r" (all-gather|collective-permute)\(", program.as_text())
        names = "/".join(kind.name for kind in kinds)
        print(names, spec, "|", x.addressable_shards[0].data.shape, "->", shape, moves)
PYTHON
seen=$(JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 \
  "$folder/venv/bin/python" "$folder/mixed.py")
printf '%s\n' "$seen"
[[ $seen == "Auto/Auto/Auto P(('slice', 'data'), 'model') | (32, 32) -> (32, 32) []
Auto/Auto/Auto P('slice', ('data', 'model')) | (64, 16) -> (64, 16) []
Explicit/Explicit/Explicit P(('slice', 'data'), 'model') | (32, 32) -> (32, 32) []
Explicit/Explicit/Explicit P('slice', ('data', 'model')) | (64, 16) -> (64, 16) []
Auto/Explicit/Explicit P(('slice', 'data'), 'model') | (32, 32) -> (64, 32) ['collective-permute', 'all-gather']
Auto/Explicit/Explicit P('slice', ('data', 'model')) | (64, 16) -> (64, 16) []" ]]
echo 'as described'
