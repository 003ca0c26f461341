"""How sparse can it get? Eight sparsities and four seeds, trained in one compiled scan.

    python examples/sweep.py

About 20 seconds on a CPU. It draws accuracy against nonzeros, with the band of the seeds, to
`sweep.png` in a temporary folder. The last line you should see:
`checked: every run has exactly its sparsity`.
"""

import pathlib
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxprune

STEPS, N_SEEDS = 400, 4
SPARSITIES = (0.0, 0.5, 0.75, 0.875, 0.9375, 0.96875, 0.984375, 0.9921875)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64)(x))
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10, name="head")(x)


digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.data.astype("float32") / 16, digits.target, test_size=0.5, random_state=0
)
model = Mlp()
schedules = [jaxprune.cubic_schedule(s, 50, 300, every=25) for s in SPARSITIES]
tx = jaxprune.prune(schedules, inner=optax.adamw(2e-3))  # one program for all of them


def train(number, seed):
    """Trains under the schedule with this number; returns the params, the state, the accuracy."""
    params = model.init(jax.random.key(seed), x_train[:1])["params"]
    opt_state = jaxprune.choose_schedule(tx.init(params), number)

    def step(carry, key):
        params, opt_state = carry
        batch = jax.random.choice(key, len(x_train), (64,))

        def loss_fn(params):
            logits = model.apply({"params": params}, jnp.asarray(x_train)[batch])
            labels = jnp.asarray(y_train)[batch]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(jax.random.key(seed + 1), STEPS)
    (params, opt_state), _ = jax.lax.scan(step, (params, opt_state), keys)
    right = model.apply({"params": params}, x_test).argmax(-1) == y_test
    return params, opt_state, right.mean()


over_seeds = jax.vmap(train, (None, 0))
sweep = jax.jit(jax.vmap(over_seeds, (0, None)))
params, opt_state, accuracy = sweep(jnp.arange(len(schedules)), jnp.arange(N_SEEDS))

accuracy = np.asarray(accuracy)
n_weights = sum(leaf[0, 0].size for leaf in jax.tree.leaves(params) if leaf.ndim == 4)
reached = jaxprune.metrics(opt_state)["prune/sparsity"][:, 0]
print("sparsity  nonzeros  accuracy (lowest to highest of the seeds)")
for sparsity, of_seeds in zip(reached.tolist(), accuracy, strict=True):
    nonzeros = round((1 - sparsity) * n_weights)
    spread = f"{of_seeds.mean():.3f} ({of_seeds.min():.3f} to {of_seeds.max():.3f})"
    print(f"{sparsity:8.2%}  {nonzeros:8,}  {spread}")

axes = Figure((6, 4), layout="constrained").subplots()
nonzeros = (1 - np.asarray(reached)) * n_weights
axes.plot(nonzeros, accuracy.mean(1), marker="o", label="mean of 4 seeds")
axes.fill_between(nonzeros, accuracy.min(1), accuracy.max(1), alpha=0.3, label="all seeds")
axes.set(xscale="log", xlabel="nonzero weights", ylabel="test accuracy", title="Digits, pruned MLP")
axes.legend()
picture = pathlib.Path(tempfile.mkdtemp()) / "sweep.png"
axes.figure.savefig(picture, dpi=150)
print(f"drew {picture}")

jaxprune.check(params, opt_state, done=True)
print("checked: every run has exactly its sparsity")
