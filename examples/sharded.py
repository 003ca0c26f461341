"""Prune a sharded language model on eight devices, save it, continue on another mesh.

    python examples/sharded.py

Under a minute on a CPU, which JAX divides into eight devices. The last line you should see:
`checked: the same masks on the other mesh, still 75% zeros`.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before jax starts
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

import jaxprune

WIDTH, LAYERS, HEADS, LENGTH = 64, 2, 4, 64
BATCH, STEPS = 16, 60

# The training text: the bytes of a module in Python's standard library.
text = np.frombuffer(pathlib.Path(argparse.__file__).read_bytes(), np.uint8)


def make_mesh(rows, columns):
    devices = np.array(jax.devices()[: rows * columns]).reshape(rows, columns)
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def init_params(key):
    shapes = {"embed": (256, WIDTH), "head": (WIDTH, 256)}
    for i in range(LAYERS):
        shapes |= {f"qkv{i}": (WIDTH, 3 * WIDTH), f"out{i}": (WIDTH, WIDTH)}
        shapes |= {f"up{i}": (WIDTH, 4 * WIDTH), f"down{i}": (4 * WIDTH, WIDTH)}
    keys = jax.random.split(key, len(shapes))
    pairs = zip(shapes.items(), keys, strict=True)
    return {name: jax.random.normal(k, shape) * shape[0] ** -0.5 for (name, shape), k in pairs}


def normed(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def loss_fn(params, tokens):
    x = params["embed"][tokens[:, :-1]]
    for i in range(LAYERS):
        qkv = normed(x) @ params[f"qkv{i}"]
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], HEADS, -1), 3, axis=-1)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.reshape(x.shape) @ params[f"out{i}"]
        x = x + jax.nn.relu(normed(x) @ params[f"up{i}"]) @ params[f"down{i}"]
    logits = normed(x) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


schedule = jaxprune.cubic_schedule(0.75, 10, 40, every=5)
tx = jaxprune.prune(schedule, inner=optax.adamw(3e-3), exclude="embed|head")


@jax.jit
def train_step(params, opt_state, tokens):
    loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def batch_at(step, mesh):
    starts = np.random.default_rng(step).integers(0, text.size - LENGTH - 1, BATCH)
    tokens = np.stack([text[i : i + LENGTH + 1] for i in starts]).astype(np.int32)
    return jax.device_put(tokens, NamedSharding(mesh, P("data")))


mesh = make_mesh(4, 2)
params = jax.device_put(init_params(jax.random.key(0)), NamedSharding(mesh, P("data", "model")))
opt_state = tx.init(params)
for step in range(STEPS):
    params, opt_state, loss = train_step(params, opt_state, batch_at(step, mesh))
    if step % 10 == 9:
        print(f"step {step + 1}: loss {loss:.3f}")
jaxprune.check(params, opt_state)

# Restore on another mesh: Orbax gets the shape and the new sharding of every leaf.
new_mesh = make_mesh(2, 4)


def on_new_mesh(x):
    spec = P("data", "model") if x.ndim == 2 else P()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(new_mesh, spec))


like = jax.tree.map(on_new_mesh, (params, opt_state))
with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(f"{folder}/saved", (params, opt_state))
    checkpointer.wait_until_finished()
    restored, restored_state = checkpointer.restore(f"{folder}/saved", like)

for name, mask in jaxprune.get_masks(opt_state).items():
    np.testing.assert_array_equal(mask, jaxprune.get_masks(restored_state)[name])
for step in range(STEPS, STEPS + 5):
    restored, restored_state, loss = train_step(restored, restored_state, batch_at(step, new_mesh))
jaxprune.check(restored, restored_state)
assert np.mean(np.asarray(restored["up0"]) == 0) == 0.75
print("checked: the same masks on the other mesh, still 75% zeros")
