#!/usr/bin/env bash
# `nnx.Optimizer` whose filter matches nothing trains nothing, counts its steps, and says nothing.
#
# Versions: Flax 0.12.8, optax 0.2.8, JAX 0.10.2, NumPy 2.4.6, Python 3.12, Linux x86-64, CPU.
#
# Expected: `wrt` chooses the variables that the optimizer updates. A filter with a typo, or the
# type of another kind of variable, matches none of them; an error should say so. At the latest
# `update` should, which gets gradients of params that the optimizer does not have.
# Seen: the state of the optimizer has no leaf for a param. `update` leaves out the gradients that
# the filter does not match, which are all, and returns. `step` counts up, and the params keep their
# bits. With a filter that matches one of the params, the other one is left out in the same way.
#
# What helps: `jax.tree.leaves(nnx.state(model, wrt))` before the training, which must not be empty.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  flax==0.12.8 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/train.py" <<'PYTHON'
import jax.numpy as jnp
import optax
from flax import nnx

FILTERS = {
    "kernel": nnx.All(nnx.Param, nnx.PathContains("kernel")),
    "kernal": nnx.All(nnx.Param, nnx.PathContains("kernal")),
    "BatchStat": nnx.BatchStat,
}
for name, wrt in FILTERS.items():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    before = {k: getattr(model, k)[...] for k in ("kernel", "bias")}
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=wrt)
    for _ in range(3):
        grads = nnx.grad(lambda model: model(jnp.ones((4, 3))).sum())(model)
        optimizer.update(model, grads)
    trained = [k for k, x in before.items() if not (getattr(model, k)[...] == x).all()]
    print(name, "| steps:", int(optimizer.step[...]), "| trained:", *trained)
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/train.py")
printf '%s\n' "$seen"
[[ $seen == "kernel | steps: 3 | trained: kernel
kernal | steps: 3 | trained:
BatchStat | steps: 3 | trained:" ]]
echo 'as described'
