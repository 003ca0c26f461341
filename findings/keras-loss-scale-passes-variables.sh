#!/usr/bin/env bash
# With the JAX backend, `LossScaleOptimizer` passes its inner optimizer variables instead of arrays.
#
# Versions: Keras 3.15.1, jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Expected: `Optimizer.stateless_apply` gets arrays. Its docstring says of `optimizer_variables`:
# "These are native tensors and not `keras.Variable`s", and the trainer of the JAX backend passes
# arrays.
# Seen: under the policy "mixed_float16", `compile` wraps the optimizer into a `LossScaleOptimizer`,
# which calls `inner_optimizer.stateless_apply(self.inner_optimizer.variables, ...)`: a list of
# `keras.Variable`. The method of the base class only looks their values up in a `StatelessScope`,
# so it does not notice. An optimizer that overrides `stateless_apply`, say to call optax, works
# without the policy and fails with it. Most functions of JAX, such as `jax.numpy.sum`, raise when
# they get a Variable: "Triggering __jax_array__() during abstractification is no longer supported".
#
# What helps: `[keras.ops.convert_to_tensor(v) for v in optimizer_variables]` as the first line of
# one's `stateless_apply`. It returns the array of a variable in this scope, and arrays as they are.
#
# Known: https://github.com/keras-team/keras/pull/21706 corrected tests that passed variables to
# `stateless_apply`. We found no report that `LossScaleOptimizer` does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/train.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import keras
import numpy as np


class Recorder(keras.optimizers.SGD):
    def __init__(self, convert=False):
        super().__init__()
        self.kinds, self.convert = {}, convert

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        if self.convert:
            optimizer_variables = [keras.ops.convert_to_tensor(v) for v in optimizer_variables]
        lists = optimizer_variables, grads, trainable_variables
        for name, values in zip(("state", "grads", "params"), lists, strict=True):
            array = all(isinstance(v, jax.Array) for v in values)
            variable = all(isinstance(v, keras.Variable) for v in values)
            self.kinds[name] = "arrays" if array else "variables" if variable else "both"
        try:
            jnp.sum(optimizer_variables[0])
        except ValueError as error:
            print("sum of a variable:", str(error).split(".")[0])
        return super().stateless_apply(optimizer_variables, grads, trainable_variables)


x = np.ones((4, 3), np.float32)
for policy, convert in ("float32", False), ("mixed_float16", False), ("mixed_float16", True):
    keras.mixed_precision.set_global_policy(policy)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    optimizer = Recorder(convert)
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, x[:, :1], verbose=0)
    print(policy, "| converted |" if convert else "|", type(model.optimizer).__name__, optimizer.kinds)
PYTHON
seen=$(KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/train.py")
printf '%s\n' "$seen"
[[ $seen == "float32 | Recorder {'state': 'arrays', 'grads': 'arrays', 'params': 'arrays'}
sum of a variable: Triggering __jax_array__() during abstractification is no longer supported
mixed_float16 | LossScaleOptimizer {'state': 'variables', 'grads': 'arrays', 'params': 'arrays'}
mixed_float16 | converted | LossScaleOptimizer {'state': 'arrays', 'grads': 'arrays', 'params': 'arrays'}" ]]
echo 'as described'
