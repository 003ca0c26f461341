#!/usr/bin/env bash
# With `index_checks`, JAX's checkify can't trace an update of a whole array, `x.at[:].set(y)`: the
# check looks for the worst of the indices, and there are none.
#
# Versions: jax and jaxlib 0.10.2 (and 0.12.0), Python 3.11, Linux x86-64, CPU.
#
# Expected: an update of everything can't be out of bounds, so it passes, as reading `x[...]` does.
# Seen: `ValueError: attempt to get argmin of an empty sequence` while tracing, for `x.at[:].set`,
# `x.at[...].set`, `x.at[()].set` and `.add`, with `index_checks` and so with `all_checks`. The other
# sets of checks pass.
#
# Where it matters: one such line in an optimizer, or in a library that it calls, makes a whole
# training step untraceable with `all_checks`, and the error names neither the line nor checkify.
#
# What helps: `jnp.broadcast_to(y, x.shape)` in place of `x.at[:].set(y)`; or
# `errors=checkify.float_checks | checkify.user_checks`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$folder/set.py" <<'PYTHON'
import jax.numpy as jnp
from jax.experimental import checkify

FUNCTIONS = {
    "x.at[:].set": lambda x: x.at[:].set(1.0),
    "x.at[...].add": lambda x: x.at[...].add(1.0),
    "x.at[0].set": lambda x: x.at[0].set(1.0),
    "x[...]": lambda x: x[...],
}
for checks in ("index_checks", "all_checks", "float_checks"):
    for name, function in FUNCTIONS.items():
        checked = checkify.checkify(function, errors=getattr(checkify, checks))
        try:
            error, _ = checked(jnp.zeros(3))
            print(checks, name, error.get())
        except ValueError as error:
            print(checks, name, error)
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/set.py")
printf '%s\n' "$seen"
[[ $seen == "index_checks x.at[:].set attempt to get argmin of an empty sequence
index_checks x.at[...].add attempt to get argmin of an empty sequence
index_checks x.at[0].set None
index_checks x[...] None
all_checks x.at[:].set attempt to get argmin of an empty sequence
all_checks x.at[...].add attempt to get argmin of an empty sequence
all_checks x.at[0].set None
all_checks x[...] None
float_checks x.at[:].set None
float_checks x.at[...].add None
float_checks x.at[0].set None
float_checks x[...] None" ]]
echo 'as described'
