#!/usr/bin/env bash
# JAX counts the compiled programs of a jitted function for 8,192 functions of a process. Of every
# further one, `_cache_size()` is 0 after its calls, although the first functions are never called
# again.
#
# Versions: jax and jaxlib 0.10.2, Python 3.11, Linux x86-64, CPU.
#
# Expected: a cache of 8,192 entries that is full drops the least recently used entry, so that a
# function which is called now gets a place, and `function._cache_size()` is 1 after its first call.
# Seen: with 8,192 functions alive, new ones get no place, and nothing warns. They compute the right
# result. `jax.clear_caches()` makes room.
#
# Where it matters: tests that assert `_cache_size() == 1`, to show that nothing was compiled twice,
# fail in a long process, and which of them do depends on their order. So does a count in a search
# over hyperparameters that makes its steps anew.
#
# What helps: `jax.clear_caches()` before such a test, or counting traces in the function instead.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$folder/functions.py" <<'PYTHON'
import jax
import jax.numpy as jnp

x = jnp.ones(())


def made():
    function = jax.jit(lambda x: x)
    function(x)
    return function


functions = [made() for _ in range(8_300)]
sizes = [function._cache_size() for function in functions]
first = sizes.index(0)
print("a function is the first one without a place:", 8_100 < first <= 8_192)
print("places of all later ones:", sum(sizes[first:]))
jax.clear_caches()
print("after jax.clear_caches():", made()._cache_size())
PYTHON
seen=$(JAX_PLATFORMS=cpu XLA_FLAGS=--xla_backend_optimization_level=0 \
  "$folder/venv/bin/python" "$folder/functions.py")
printf '%s\n' "$seen"
[[ $seen == "a function is the first one without a place: True
places of all later ones: 0
after jax.clear_caches(): 1" ]]
echo 'as described'
