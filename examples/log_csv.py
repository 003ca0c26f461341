"""Log a pruning run to a CSV file: sparsity, thresholds, and how many mask entries changed.

    python examples/log_csv.py

About 15 seconds on a CPU. It writes `pruning.csv` into a temporary folder; the last line you should
see: `31 rows, final sparsity 0.9`.

It logs a dict of scalars, which any logger accepts: log_tensorboard.py writes the same to
TensorBoard.
"""

import csv
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import jaxprune

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


def n_flipped(old, new):
    """How many weights were dropped or regrown between two optimizer states."""
    masks = zip(
        jax.tree.leaves(jaxprune.get_masks(old)),
        jax.tree.leaves(jaxprune.get_masks(new)),
        strict=True,
    )
    return sum(jnp.sum(a != b) for a, b in masks)


@jax.jit
def train_step(params, opt_state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, new_state = tx.update(grads, opt_state, params)
    row = jaxprune.metrics(new_state, per_leaf=True)  # scalars, computed on the device
    row |= {"loss": loss, "prune/flips": n_flipped(opt_state, new_state)}
    return optax.apply_updates(params, updates), new_state, row


path = pathlib.Path(tempfile.mkdtemp()) / "pruning.csv"
n_rows, flips = 0, 0
with path.open("w", newline="") as file:
    writer = None
    for step in range(STEPS):
        batch = jax.random.choice(jax.random.key(step), len(x), (BATCH,))
        params, opt_state, row = train_step(params, opt_state, x[batch], y[batch])
        flips += row["prune/flips"]  # summed on the device, without waiting for it
        if step % LOG_EVERY == 0:
            row = {"step": step} | jax.device_get(row | {"prune/flips": flips})
            if writer is None:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
            writer.writerow(row)
            n_rows, flips = n_rows + 1, 0

print(path)
with path.open(newline="") as file:
    for row in list(csv.DictReader(file))[5::4]:  # the rows around pruning steps
        names = ("step", "loss", "prune/sparsity", "prune/threshold/hidden/kernel", "prune/flips")
        print("  ".join(f"{name.removeprefix('prune/')} {float(row[name]):.4g}" for name in names))
jaxprune.check(params, opt_state, done=True)
kernel = params["hidden"]["kernel"]
print(f"{n_rows} rows, final sparsity {float((kernel == 0).mean()):.1g}")
