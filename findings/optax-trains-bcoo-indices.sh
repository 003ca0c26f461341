#!/usr/bin/env bash
# optax trains the indices of a BCOO: at each step, however small, every nonzero moves one row up
# and one column to the left.
#
# Versions: optax 0.2.8, jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU. JAX
# 0.12.0.1 does the same.
#
# Expected: `jax.experimental.sparse.grad` differentiates by the data of a BCOO and leaves the
# indices alone; it returns a BCOO again. An optimizer of optax takes any pytree of params, so it
# should update the data of a pruned matrix, or refuse a pytree that has int32 leaves.
# Seen: the gradient that `sparse.grad` returns has the indices of the matrix as a leaf beside the
# data. The optimizer takes them for a gradient, and `apply_updates` casts the sum back to int32,
# which rounds towards zero: 3 - 0.000001 * 3 becomes 2. So a learning rate of 1e-6 moves every
# index that is not zero by one, at every step, until the nonzeros lie on top of each other in the
# corner. The shape, the number of stored entries and their data look right, and nothing is
# reported; the loss even falls below. With adam, some indices leave the matrix at the second step
# (their second moment is kept as int32, is rounded to 0, and the step is divided by `eps`), and JAX
# ignores those entries.
#
# What helps: give optax the data alone, `matrix.data`, and build the BCOO within the loss.
#
# Known: we found no report, and the pages of optax and jax.experimental.sparse don't mention it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/train.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import sparse

dense = np.zeros((6, 6), np.float32)
dense[[1, 2, 4, 5], [3, 1, 5, 2]] = [1, 2, 3, 4]
start = sparse.BCOO.fromdense(jnp.asarray(dense))


def loss(matrix):
    return jnp.sum((matrix @ jnp.arange(1.0, 7.0)) ** 2)


def loss_of_data(data):
    return loss(sparse.BCOO((data, start.indices), shape=start.shape))


def report(name, step, matrix):
    inside = np.all((matrix.indices >= 0) & (matrix.indices < 6), axis=1)
    places = [f"{row},{column}" for row, column in matrix.indices[inside].tolist()]
    print(f"{name}, step {step}: loss {float(loss(matrix)):.0f}, inside at", *places)


def train(name, tx, steps):
    matrix, state = start, tx.init(start)
    for i in range(steps):
        report(name, i, matrix)
        updates, state = tx.update(sparse.grad(loss)(matrix), state, matrix)
        matrix = optax.apply_updates(matrix, updates)
    report(name, steps, matrix)


train("sgd", optax.sgd(1e-6), 3)
train("adam", optax.adam(1e-6), 2)
data, tx = start.data, optax.sgd(1e-6)
state = tx.init(data)
for _ in range(3):
    updates, state = tx.update(jax.grad(loss_of_data)(data), state, data)
    data = optax.apply_updates(data, updates)
report("sgd of the data alone", 3, sparse.BCOO((data, start.indices), shape=start.shape))
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/train.py")
printf '%s\n' "$seen"
[[ $seen == "sgd, step 0: loss 500, inside at 1,3 2,1 4,5 5,2
sgd, step 1: loss 302, inside at 0,2 1,0 3,4 4,1
sgd, step 2: loss 176, inside at 0,1 0,0 2,3 3,0
sgd, step 3: loss 106, inside at 0,0 0,0 1,2 2,0
adam, step 0: loss 500, inside at 1,3 2,1 4,5 5,2
adam, step 1: loss 302, inside at 0,2 1,0 3,4 4,1
adam, step 2: loss 160, inside at 2,3 3,0
sgd of the data alone, step 3: loss 500, inside at 1,3 2,1 4,5 5,2" ]]
echo 'as described'
