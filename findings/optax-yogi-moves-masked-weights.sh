#!/usr/bin/env bash
# `optax.yogi` moves weights whose gradient has always been zero, so masked gradients don't keep a
# pruned weight at zero.
#
# Versions: optax 0.2.8, jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Expected: a weight that is zero and whose gradient is zero from the first step on stays exactly
# zero, as with the other 19 optimizers below. Training a pruned network with `gradient * mask`
# relies on this. The page of `yogi` calls it a modification of Adam with the same parameters, and
# in the paper the first moment starts at zero.
# Seen: all pruned weights become negative at the first step, all by the same amount.
# `initial_accumulator_value` (1e-6), which keeps the second moment positive, fills the first
# moment, too. The bias correction makes 9e-6 of it, which is divided by 0.03, the root of the
# second moment: the first step is 0.03 % of the learning rate, and all steps together are 0.16 %,
# or -1.6e-5 at a learning rate of 0.01. That is little, but the network has no zeros left, and a
# sparse format stores every weight of it. The same happens to rows of an embedding that no input
# uses. `optax.yogi` has no argument for the initial value.
#
# What helps: mask the updates instead of the gradients, or use
# `optax.scale_by_yogi(initial_accumulator_value=0.0)` and `optax.scale_by_learning_rate`. The page
# of `scale_by_yogi` allows positive values only, but the zero below stays zero.
#
# Known: optax follows TensorFlow Addons here, and
# https://github.com/jettify/pytorch-optimizer/issues/77 asked why that differs from the paper. We
# found no word on what it does to masked weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/train.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import optax

NAMES = (
    "adabelief adadelta adagrad adam adamax adamw adan amsgrad fromage lamb lars lion nadam novograd "
    "radam rmsprop rprop sgd sm3 yogi"
).split()
WEIGHTS = jnp.array([0.0, 0.0, 1.0, -2.0])


def train(tx, steps=300):
    mask = WEIGHTS != 0

    def step(carry, _):
        weights, state = carry
        updates, state = tx.update(weights * mask, state, weights)  # the gradient of |w|^2 / 2, masked
        weights = optax.apply_updates(weights, updates)
        return (weights, state), weights[0]

    return jax.lax.scan(step, (WEIGHTS, tx.init(WEIGHTS)), length=steps)[1]


moved = {name: train(getattr(optax, name)(0.01)) for name in NAMES}
print("moved a pruned weight:", *[name for name in NAMES if moved[name].any()])
print("kept it at zero:", sum(not moved[name].any() for name in NAMES))
print(f"yogi: {moved['yogi'][0]:.1e} after one step, {moved['yogi'][-1]:.1e} after 300")
no_start = optax.chain(
    optax.scale_by_yogi(initial_accumulator_value=0.0), optax.scale_by_learning_rate(0.01)
)
print("with an initial accumulator of 0, it moves:", bool(train(no_start).any()))
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/train.py")
printf '%s\n' "$seen"
[[ $seen == "moved a pruned weight: yogi
kept it at zero: 19
yogi: -2.8e-06 after one step, -1.6e-05 after 300
with an initial accumulator of 0, it moves: False" ]]
echo 'as described'
