"""Log a pruning run to TensorBoard: sparsity, thresholds, and how many mask entries changed.

    python examples/log_tensorboard.py

About 15 seconds on a CPU. It needs tensorboardX, which writes TensorBoard files without TensorFlow.
The last line you should see: `31 steps logged, final sparsity 0.9`. To view them, run this with the
folder that the example prints:

    pip install tensorboard && tensorboard --logdir FOLDER
"""

import sys
import tempfile

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import jaxprune

try:
    from tensorboardX import SummaryWriter
except ModuleNotFoundError:
    print("This example needs tensorboardX, which is not installed: pip install tensorboardX")
    sys.exit()

STEPS = 301
LOG_EVERY = 10  # not every step, because reading a scalar waits for the device
BATCH = 64

digits = load_digits()
x = jnp.asarray(digits.data / 16, jnp.float32)
y = jnp.asarray(digits.target)

keys = jax.random.split(jax.random.key(0), 2)
init = jax.nn.initializers.he_normal()
params = {
    "hidden": {"kernel": init(keys[0], (64, 128)), "bias": jnp.zeros(128)},
    "head": {"kernel": init(keys[1], (128, 10)), "bias": jnp.zeros(10)},
}
schedule = jaxprune.cubic_schedule(0.9, begin_step=50, end_step=250, every=20)
tx = jaxprune.prune(schedule, inner=optax.adamw(2e-3))
opt_state = tx.init(params)


def loss_fn(params, x, y):
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def train_step(params, opt_state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, new_state = tx.update(grads, opt_state, params)
    scalars = {"loss": loss} | jaxprune.metrics(new_state, per_leaf=True)
    flipped = jax.tree.map(jnp.not_equal, *map(jaxprune.get_masks, (opt_state, new_state)))
    scalars["prune/flips"] = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(flipped))
    return optax.apply_updates(params, updates), new_state, scalars


folder = tempfile.mkdtemp()
n_logged, flips = 0, 0
with SummaryWriter(folder) as writer:
    for step in range(STEPS):
        batch = jax.random.choice(jax.random.key(step), len(x), (BATCH,))
        params, opt_state, scalars = train_step(params, opt_state, x[batch], y[batch])
        flips += scalars["prune/flips"]  # summed on the device, without waiting for it
        if step % LOG_EVERY == 0:
            scalars = jax.device_get(scalars | {"prune/flips": flips})
            for name, value in scalars.items():
                writer.add_scalar(name, float(value), step)
            n_logged, flips = n_logged + 1, 0
    for path, kernel in (("hidden", params["hidden"]), ("head", params["head"])):
        kept = kernel["kernel"][kernel["kernel"] != 0]
        writer.add_histogram(f"kept/{path}/kernel", jax.device_get(kept), STEPS)

jaxprune.check(params, opt_state, done=True)
print(folder)
kernel = params["hidden"]["kernel"]
print(f"{n_logged} steps logged, final sparsity {float((kernel == 0).mean()):.1g}")
