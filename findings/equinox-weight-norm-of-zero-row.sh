#!/usr/bin/env bash
# Equinox's WeightNorm makes NaN of a unit whose weights are all zero; those of Flax make 0.
#
# Versions: equinox 0.13.8, flax 0.12.8, jax and jaxlib 0.10.2, NumPy 2.4.6, Python 3.11,
# Linux x86-64, CPU.
#
# Expected: a unit whose weights are zero, as pruning leaves it, has the output 0 (and its bias).
# Seen: with `equinox.nn.WeightNorm` its output is NaN, and so are the gradients of its weights and
# of its norm `g`, so that an optimizer makes the weights NaN, too. It divides by the norm of each
# row, which is 0, without an epsilon. The other units are not affected. `flax.linen.WeightNorm` and
# `flax.nnx.WeightNorm` add an epsilon of 1e-12: the output is 0, and all gradients are finite.
#
# What helps: keep at least one weight of each unit, or multiply out the norms before pruning:
# `equinox.tree_at(lambda l: l.weight, l.layer, l.layer.weight * l.g / norm)`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  equinox==0.13.8 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/norms.py" <<'PYTHON'
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

X = jnp.ones(4)


def units(x):
    return ["NaN" if jnp.isnan(unit).any() else "finite" for unit in x]


linear = eqx.nn.Linear(4, 3, use_bias=False, key=jax.random.key(0))
linear = eqx.tree_at(lambda layer: layer.weight, linear, linear.weight.at[1].set(0))
layer = eqx.nn.WeightNorm(linear)
grads = eqx.filter_grad(lambda layer: layer(X).sum())(layer)
print("equinox:", units(layer(X)), "| weights", units(grads.layer.weight), "| g", units(grads.g))

module = nn.WeightNorm(nn.Dense(3, use_bias=False))
variables = module.init(jax.random.key(0), X)
variables["params"]["layer_instance"]["kernel"] *= jnp.array([1, 0, 1])
grads = jax.grad(lambda variables: module.apply(variables, X).sum())(variables)
grads = grads["params"]["layer_instance"]["kernel"]
print("linen:", abs(module.apply(variables, X)[1]), units(grads.T))

inner = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
inner.kernel[...] *= jnp.array([1, 0, 1])
model = nnx.WeightNorm(inner, rngs=nnx.Rngs(0))
grads = nnx.grad(lambda model: model(X).sum())(model)
grads = jnp.concatenate([grad.reshape(-1) for grad in jax.tree.leaves(grads)])
print("nnx:", abs(model(X)[1]), units([grads]))
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/norms.py")
printf '%s\n' "$seen"
[[ $seen == "equinox: ['finite', 'NaN', 'finite'] | weights ['finite', 'NaN', 'finite'] | g ['finite', 'NaN', 'finite']
linen: 0.0 ['finite', 'finite', 'finite']
nnx: 0.0 ['finite']" ]]
echo 'as described'
