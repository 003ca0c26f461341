#!/usr/bin/env bash
# chex.assert_max_traces takes no functools.partial, and so no optax update built with one.
#
# Versions: chex 0.1.92, jax 0.10.2, jaxlib 0.10.2, optax 0.2.8, Python 3.11.
#
# Expected: jax.jit and optax accept any callable, so `chex.assert_max_traces(tx.update, n=1)`, the
# usual test that an update does not retrace, should accept it too, or name its argument.
# Seen: it asks `inspect` for the source code of its argument, so a partial and an object with
# `__call__` end in "TypeError: module, class, method, function, traceback, frame, or code object was
# expected, got partial", and a function whose source is in no file, as in `python -`, in "OSError:
# could not get source code".
#
# What helps: wrap it in a function, chex.assert_max_traces(lambda *args: tx.update(*args), n=1).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  chex==0.1.92 jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
cat >"$folder/program.py" <<'PYTHON'
import functools
import sys

import chex
import jax
import jax.numpy as jnp
import optax


def scaled(factor, updates, state, params=None):
    return jax.tree.map(lambda u: factor * u, updates), state


class Scaled:
    def __call__(self, updates, state, params=None):
        return scaled(2.0, updates, state)


without_file = {"scaled": scaled}
exec("def update(*args): return scaled(2.0, *args)", without_file)
updates = {
    "function": lambda *args: scaled(2.0, *args),
    "partial": functools.partial(scaled, 2.0),
    "object": Scaled(),
    "exec": without_file["update"],
}
outcome = {}
for name, update in updates.items():
    tx = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    jax.jit(tx.update)(jnp.ones(2), tx.init(jnp.ones(2)))  # jax takes all of them
    try:
        chex.assert_max_traces(tx.update, n=1)(jnp.ones(2), tx.init(jnp.ones(2)))
        outcome[name] = "passes"
    except (TypeError, OSError) as error:
        outcome[name] = type(error).__name__
        print(f"{name}: {outcome[name]}: {error}")
print(outcome)
as_seen = {"function": "passes", "partial": "TypeError", "object": "TypeError", "exec": "OSError"}
sys.exit(outcome != as_seen)
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/program.py"
echo 'as described'
