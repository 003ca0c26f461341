#!/usr/bin/env bash
# `optax.clip_by_global_norm` leaves bfloat16 gradients of many layers above the norm it is given,
# and turns float16 gradients with a norm above 256 into zeros.
#
# Versions: optax 0.2.8, jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Expected: its page calls `max_norm` the maximum global norm of an update, so the update has this
# norm, up to the rounding of its dtype, and points in the direction of the gradient. It does not
# matter whether the layers of a model are leaves of their own or are stacked for a scan.
# Seen: `optax.tree.norm` (`global_norm`) squares the leaves and adds the sums of the leaves one
# after the other in the dtype of the leaves. In bfloat16, the total stops at 256 times the square
# of the norm of a leaf: 600 leaves of norm 1 have a norm of 16 instead of 24.5, and the clipped
# gradient has a norm of 1.5 instead of 1. Stacked into one array, the same numbers are clipped
# right, as JAX sums an array in float32. In float16, squares and their sums overflow above
# 65,504, so that the norm is infinite and dividing by it gives zeros: the model stops to train
# without a NaN, which a loss scale would look for. `apply_if_finite` counts these updates as
# finite.
#
# What helps: cast the gradients to float32 before the optimizer.
#
# Known in part: https://github.com/AI-Hypercomputer/maxtext/pull/5143 remarks that optax computes
# the norm in the dtype of the gradients, and works around it. We found no issue of optax.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/clip.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax


def norm(tree):
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))


def report(name, gradients):
    tx = optax.apply_if_finite(optax.clip_by_global_norm(1.0), 10)
    updates, state = tx.update(gradients, tx.init(gradients))
    print(
        f"{name}: norm {norm(gradients):.1f}, optax says {float(optax.tree.norm(gradients)):.1f},",
        f"clipped to {norm(updates):.2f}, finite: {bool(state.last_finite)}",
    )


for dtype in ("float32", "bfloat16"):
    layers = [jnp.full(16, 0.25, dtype) for _ in range(600)]  # 600 layers of norm 1
    report(f"{dtype}, 600 leaves", layers)
    report(f"{dtype}, stacked", jnp.stack(layers))
for dtype in ("float32", "float16"):
    for size in (250, 260):
        report(f"{dtype}, one layer", jnp.full(10_000, size / 100, dtype))
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/clip.py")
printf '%s\n' "$seen"
[[ $seen == "float32, 600 leaves: norm 24.5, optax says 24.5, clipped to 1.00, finite: True
float32, stacked: norm 24.5, optax says 24.5, clipped to 1.00, finite: True
bfloat16, 600 leaves: norm 24.5, optax says 16.0, clipped to 1.53, finite: True
bfloat16, stacked: norm 24.5, optax says 24.5, clipped to 1.00, finite: True
float32, one layer: norm 250.0, optax says 250.0, clipped to 1.00, finite: True
float32, one layer: norm 260.0, optax says 260.0, clipped to 1.00, finite: True
float16, one layer: norm 250.0, optax says 250.0, clipped to 1.00, finite: True
float16, one layer: norm 260.0, optax says inf, clipped to 0.00, finite: True" ]]
echo 'as described'
