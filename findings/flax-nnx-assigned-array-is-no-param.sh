#!/usr/bin/env bash
# `layer.kernel = layer.kernel * mask` on a layer of flax.nnx ends the training of the kernel: it
# is no parameter any more, and nothing says so.
#
# Versions: flax 0.12.8, optax 0.2.8, jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux
# x86-64, CPU.
#
# Expected: an attribute that holds a Param goes on to hold one when an array is assigned, or the
# assignment raises. `layer.kernel *= mask` does raise ("In-place operations are no longer
# supported for Variable"), and PyTorch raises for `layer.weight = layer.weight * mask`.
# Seen: the product of a Param and an array is a `jax.Array`, and the assignment replaces the
# Param by it. The layer computes what it should, so the pruned model is evaluated right. But
# `nnx.state(model, nnx.Param)`, and with it gradients, optimizers and checkpoints of params, has
# 33 instead of 161 numbers: fine-tuning moves the biases and the other layers, and the loss even
# falls, to 0.3 instead of 0.002. A new nnx.Optimizer takes what is left; one that was made before
# goes on silently with sgd (adam raises, because its state has other leaves).
#
# What helps: `layer.kernel[...] = layer.kernel[...] * mask`, or `layer.kernel[...] *= mask`.
#
# Known: the basics of NNX say that arrays can be attributes and that Variables are preferred. We
# found no word on arrays that replace a Param.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  flax==0.12.8 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/train.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import optax
from flax import nnx

x = jax.random.normal(jax.random.key(0), (32, 8))
y = jnp.sum(x, axis=1, keepdims=True)


def loss(model):
    return jnp.mean((model(x) - y) ** 2)


@nnx.jit
def step(model, optimizer):
    optimizer.update(model, nnx.grad(loss)(model))


def train(assign, tx, is_early):
    layers = nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.Linear(16, 1, rngs=nnx.Rngs(1))
    model = nnx.Sequential(layers[0], nnx.relu, layers[1])
    if is_early:
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    layer = model.layers[0]
    mask = jnp.abs(layer.kernel[...]) > jnp.median(jnp.abs(layer.kernel[...]))
    if assign:
        layer.kernel = layer.kernel * mask
    else:
        layer.kernel[...] = layer.kernel[...] * mask
    if not is_early:
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    start, before = jnp.array(layer.kernel[...]), float(loss(model))
    for _ in range(200):
        step(model, optimizer)
    moved = bool(jnp.any(layer.kernel[...] != start))
    n_params = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return f"{n_params} params, kernel moved: {moved}", before, float(loss(model))


for is_early in (False, True):
    for assign in (False, True):
        tx = optax.sgd(0.01) if is_early else optax.adam(0.01)
        seen, before, after = train(assign, tx, is_early)
        what = "kernel" if assign else "kernel[...]"
        size = next(size for size in (0.01, 0.2, 0.5, 1.0, 5.0) if after < size)
        when = "sgd from before" if is_early else "new adam"
        print(f"{what} assigned, {when}: {seen}, loss from {before:.1f} to below {size}")
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/train.py" 2>/dev/null)
printf '%s\n' "$seen"
[[ $seen == "kernel[...] assigned, new adam: 161 params, kernel moved: True, loss from 8.3 to below 0.01
kernel assigned, new adam: 33 params, kernel moved: False, loss from 8.3 to below 0.5
kernel[...] assigned, sgd from before: 161 params, kernel moved: True, loss from 8.3 to below 0.2
kernel assigned, sgd from before: 33 params, kernel moved: False, loss from 8.3 to below 1.0" ]]
echo 'as described'
