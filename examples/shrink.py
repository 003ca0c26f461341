"""Prune half of the channels of a small CNN during training, then remove them from the network.

    python examples/shrink.py

About 20 seconds on a CPU. The last line you should see: `checked: smaller, the same outputs`.
"""

import time

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxprune

STEPS = 400
CHANNELS = 0.5  # the fraction that is pruned, in every group of coupled channels
SCHEDULE = jaxprune.cubic_schedule(CHANNELS, 100, 300, every=20)


class Cnn(nn.Module):
    """A residual couples the channels of two convolutions and their batch norms."""

    @nn.compact
    def __call__(self, x, train=False):
        def norm(x):
            return nn.BatchNorm(use_running_average=not train)(x)

        x = nn.relu(norm(nn.Conv(32, (3, 3))(x)))
        y = nn.relu(norm(nn.Conv(64, (3, 3))(x)))
        x = nn.relu(x + norm(nn.Conv(32, (3, 3))(y)))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.images[..., None].astype("float32") / 16, digits.target, test_size=0.5, random_state=0
)
model = Cnn()
variables = jax.jit(model.init)(jax.random.key(0), x_train[:1])
params, batch_stats = variables["params"], variables["batch_stats"]

# Find which weights belong to a channel: a slice of the last axis of a kernel, its bias, the scale
# and bias of its norm, and the same of every layer that a residual adds to it.
groups = jaxprune.channel_groups(model.apply, variables, x_train[:1])
rules = {"structure": groups, "include": tuple(groups)}
tx = jaxprune.prune(SCHEDULE, inner=optax.adamw(2e-3), **rules)
opt_state = tx.init(params)
print(jaxprune.plan(params, SCHEDULE, **rules), "\n")


@jax.jit
def train_step(params, batch_stats, opt_state, x, y):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, new = model.apply(variables, x, train=True, mutable="batch_stats")
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, new["batch_stats"]

    grads, batch_stats = jax.grad(loss_fn, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), batch_stats, opt_state


for step in range(STEPS):
    batch = jax.random.choice(jax.random.key(step), len(x_train), (64,))
    params, batch_stats, opt_state = train_step(
        params, batch_stats, opt_state, x_train[batch], y_train[batch]
    )

# Remove the pruned channels. `shrink` runs both networks on the example inputs to compare outputs.
variables = {"params": params, "batch_stats": batch_stats}
small, report = jaxprune.shrink(model.apply, variables, x_test[:64])
print(report, "\n")


def measure(name, apply_fn, variables):
    """Prints test accuracy, size, and the shortest time of 100 forward passes of one image."""
    run = jax.jit(apply_fn)
    logits = run(variables, x_test)
    accuracy = (logits.argmax(-1) == y_test).mean()
    seconds = []
    for _ in range(100):
        start = time.perf_counter()
        jax.block_until_ready(run(variables, x_test[:1]))
        seconds.append(time.perf_counter() - start)
    size = sum(leaf.size for leaf in jax.tree.leaves(variables))
    ms = 1e3 * min(seconds[1:])  # the first call compiles
    print(f"{name}: accuracy {accuracy:.3f}, {size:,} numbers, {ms:.3f} ms per image")
    return logits


before = measure("pruned", model.apply, variables)
after = measure("shrunk", lambda v, x: jaxprune.shrunk_apply(model.apply, v, x), small)
np.testing.assert_allclose(before, after, rtol=1e-3, atol=1e-3)
assert report.size < report.size_before / 2
print("checked: smaller, the same outputs")
