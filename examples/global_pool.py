"""Global pruning: how many weights each layer keeps when all layers compete.

    python examples/global_pool.py

About 20 seconds on a CPU. The last line you should see: `checked: the same total for all`.
"""

import flax.linen as nn
import jax
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxprune

STEPS = 500
DISTRIBUTIONS = (
    jaxprune.uniform,
    jaxprune.erk,
    jaxprune.global_pool,
    jaxprune.normalized_pool,
    jaxprune.min_density(0.02, jaxprune.global_pool),
)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(128)(x))
        x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10, name="head")(x)


digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.data.astype("float32") / 16, digits.target, test_size=0.5, random_state=0
)
model = Mlp()
schedule = jaxprune.cubic_schedule(0.95, 100, 300, every=20)
totals = set()

for distribution in DISTRIBUTIONS:
    params = model.init(jax.random.key(0), x_train[:1])["params"]
    tx = jaxprune.prune(schedule, inner=optax.adamw(2e-3), distribution=distribution)
    opt_state = tx.init(params)

    @jax.jit
    def train_step(params, opt_state, x, y, tx=tx):
        def loss_fn(params):
            logits = model.apply({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for step in range(STEPS):
        batch = jax.random.choice(jax.random.key(step), len(x_train), (64,))
        params, opt_state = train_step(params, opt_state, x_train[batch], y_train[batch])
    accuracy = (model.apply({"params": params}, x_test).argmax(-1) == y_test).mean()
    report = jaxprune.summarize(params, opt_state)
    kept = ", ".join(f"{x.path.split('/')[0]} {1 - x.sparsity:.1%}" for x in report.leaves[1::2])
    print(f"{distribution!r:32} test accuracy {accuracy:.3f}   kept: {kept}")
    totals.add(report.n_zero)
    jaxprune.check(params, opt_state, done=True)

# `uniform` rounds the number of zeros in each layer, the others round only the total.
assert max(totals) - min(totals) <= 2
print("checked: the same total for all")
