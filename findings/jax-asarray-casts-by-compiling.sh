#!/usr/bin/env bash
# jnp.asarray of a NumPy float64 array compiles a program for each shape; of float32 it compiles none.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Expected: making a JAX array of host data is a copy. With 64-bit types disabled, float64 becomes
# float32 on the way, on the host.
# Seen: the copy is followed by a compiled `convert_element_type`, one for each shape, with and
# without a dtype as second argument. A model of 300 leaves of different shapes compiles 300 programs
# while it is loaded; cast by NumPy first, it compiles nothing.
#
# What helps: jnp.asarray(np.asarray(x, np.float32)).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

n_compiled = 0


def count(event, *_, **__):
    global n_compiled
    n_compiled += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(count)
calls = {
    "asarray(float64)": lambda x: jnp.asarray(x),
    "asarray(float64, float32)": lambda x: jnp.asarray(x, jnp.float32),
    "asarray(float64 cast by NumPy)": lambda x: jnp.asarray(x.astype(np.float32)),
}
seen = {}
for name, call in calls.items():
    n_compiled = 0
    for n in range(1, 6):
        jax.block_until_ready(call(np.ones((3, n))))
    seen[name] = n_compiled
    print(f"{name}: {n_compiled} programs compiled for 5 shapes")
sys.exit(list(seen.values()) != [5, 5, 0])
PYTHON
echo 'as described'
