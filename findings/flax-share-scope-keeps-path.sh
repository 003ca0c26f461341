#!/usr/bin/env bash
# After flax.linen's `share_scope`, layers that were passed as attributes report a path where their
# params are not.
#
# Versions: flax 0.12.8, jax 0.10.2, jaxlib 0.10.2, Python 3.11, Linux x86-64, CPU.
#
# A wrapper that shares its scope with the model inside, `nn.share_scope(self, self.model)`, has the
# params of that model at its own top level. One expects `layer.path` to be the place of the params,
# as it is without a wrapper: code finds the params of a layer by it, for example in
# `nn.intercept_methods`.
# Seen: for layers made in `setup` or in a compact method, it is. Layers made outside and passed as
# attributes, also those of `nn.Sequential`, report `model/layers_0` while their params are at
# `layers_0`; `variables["params"]["model"]` does not exist.
#
# What helps: without `share_scope`, params and paths agree, both below `model`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat >"$folder/paths.py" <<'PYTHON'
import flax.linen as nn
import jax
import jax.numpy as jnp

seen = []


class Recorded(nn.Dense):
    def __call__(self, x):
        seen.append("/".join(self.path))
        return super().__call__(x)


class MadeInSetup(nn.Module):
    def setup(self):
        self.layer = Recorded(3)

    def __call__(self, x):
        return self.layer(x)


class Passed(nn.Module):
    layer: nn.Module

    def __call__(self, x):
        return self.layer(x)


class Wrapper(nn.Module):
    model: nn.Module

    def setup(self):
        nn.share_scope(self, self.model)

    def __call__(self, x):
        return self.model(x)


for model in (MadeInSetup(), Passed(Recorded(3)), nn.Sequential([Recorded(3)])):
    seen.clear()
    variables = Wrapper(model).init(jax.random.key(0), jnp.ones((1, 2)))
    print(type(model).__name__, "params:", *variables["params"], "path:", seen[-1])
PYTHON
output=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/paths.py")
printf '%s\n' "$output"
[[ $output == "MadeInSetup params: layer path: layer
Passed params: layer path: model/layer
Sequential params: layers_0 path: model/layers_0" ]]
