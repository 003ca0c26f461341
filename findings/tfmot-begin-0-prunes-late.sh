#!/usr/bin/env bash
# tfmot: a schedule with begin_step=0 first prunes at step `frequency`, past its initial sparsity.
#
# Versions: tensorflow-model-optimization 0.8.1, tensorflow-cpu 2.21.0, tf_keras 2.21.0, Python 3.11.
#
# Expected: `PolynomialDecay(0.5, 0.8, begin_step=0, end_step=8, frequency=4)` has its initial
# sparsity of 0.5 at its first step, as it does with begin_step=2, and `ConstantSparsity(0.5, 0)`,
# the default of `prune_low_magnitude`, prunes at the first batch.
# Seen: the first batch is step 1, so that step 0 never comes. Fires are at multiples of
# `frequency` from `begin_step`; the first that comes is step 4, where the polynomial has reached
# 0.775 already: 77.5 % of the weights are dropped at once. With the default `frequency` of 100, a
# constant sparsity prunes nothing in a run of fewer than 100 batches, without a word.
#
# What helps: begin_step=1, which fires at the first batch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  tensorflow-model-optimization==0.8.1 tensorflow-cpu==2.21.0 tf_keras==2.21.0
cat >"$folder/program.py" <<'PYTHON'
import sys

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras

sparsity = tfmot.sparsity.keras


def zeros_by_step(schedule, n_steps):
    """The steps at which the mask of a layer changes, with its fraction of zeros."""
    layer = keras.layers.Dense(10)
    if schedule is None:
        wrapped = sparsity.prune_low_magnitude(layer)
    else:
        wrapped = sparsity.prune_low_magnitude(layer, pruning_schedule=schedule)
    model = keras.Sequential([keras.Input((4,)), wrapped])
    model.compile("sgd", "mse")
    changes = {}

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            [mask] = [w.numpy() for w in model.layers[0].weights if "mask" in w.name]
            zeros = round(float((mask == 0).mean()), 3)
            if zeros != (list(changes.values()) or [0.0])[-1]:
                changes[int(model.layers[0].pruning_step.numpy())] = zeros

    random = np.random.default_rng(0)
    x, y = (random.random((n_steps, n), dtype=np.float32) for n in (4, 10))
    callbacks = [sparsity.UpdatePruningStep(), Record()]
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0, callbacks=callbacks)
    return changes


def polynomial(begin, end):
    return sparsity.PolynomialDecay(0.5, 0.8, begin_step=begin, end_step=end, frequency=4)


seen = {
    "polynomial, 2 to 10": zeros_by_step(polynomial(2, 10), 12),
    "polynomial, 0 to 8": zeros_by_step(polynomial(0, 8), 12),
    "constant, from 1": zeros_by_step(sparsity.ConstantSparsity(0.5, 1), 99),
    "default, 99 batches": zeros_by_step(None, 99),
}
for name, changes in seen.items():
    print(f"{name}: {changes}")
sys.exit(
    seen
    != {
        "polynomial, 2 to 10": {2: 0.5, 6: 0.775, 10: 0.8},
        "polynomial, 0 to 8": {4: 0.775, 8: 0.8},
        "constant, from 1": {1: 0.5},
        "default, 99 batches": {},
    }
)
PYTHON
TF_USE_LEGACY_KERAS=1 TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/program.py"
echo 'as described'
