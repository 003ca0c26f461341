#!/usr/bin/env bash
# Two variables of a Keras model can have the same `path`, and nothing says so.
#
# Versions: Keras 3.15.1, jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Expected: `path`, "the path of the variable within the Keras model or layer", tells the variables
# of a model apart, as the names of the layers of a `Sequential` do: two layers of one name raise an
# error there. `Model.get_state_tree` needs paths that differ, too, and raises one that says so.
# Seen: a subclassed model with two parts of one name has two variables "m/enc/d/kernel". Building,
# compiling, fitting and saving work without a warning. A dict from paths to values, as code uses
# that goes from a model to a tree of JAX and back, has half of the variables. An optimizer that is
# written on such a dict trains both halves as one.
#
# What helps: give the parts different names, or compare `len({v.path for v in model.variables})`
# with `len(model.variables)` first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/paths.py" <<'PYTHON'
import warnings

import keras
import numpy as np


def part():
    return keras.Sequential([keras.layers.Dense(4, name="d")], name="enc")


class M(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = part(), part()

    def call(self, x):
        return self.first(x) - self.second(x)


x = np.ones((2, 8), np.float32)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    model = M()
    model.compile(optimizer="sgd", loss="mse")
    model.fit(x, x[:, :4], verbose=0)
    model.save_weights("model.weights.h5")
print(*[v.path for v in model.trainable_variables])
print("distinct arrays:", len({id(v.value) for v in model.trainable_variables}))
print("in a dict:", len({v.path: v.value for v in model.trainable_variables}))
print("warnings that name a path:", sum("enc" in str(w.message) for w in seen))
try:
    model.get_state_tree()
except ValueError as error:
    print("get_state_tree:", str(error).split(":")[0])
try:
    keras.Sequential([part(), part()])
except ValueError as error:
    print("Sequential:", str(error).split(".")[0])
PYTHON
cd "$folder"
seen=$(KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/paths.py")
printf '%s\n' "$seen"
[[ $seen == "m/enc/d/kernel m/enc/d/bias m/enc/d/kernel m/enc/d/bias
distinct arrays: 4
in a dict: 2
warnings that name a path: 0
get_state_tree: The following variable path is found twice in the model
Sequential: All layers added to a Sequential model should have unique names" ]]
echo 'as described'
