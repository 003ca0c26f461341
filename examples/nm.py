"""Gradual N:M pruning: two zeros in every four weights along the inputs.

    python examples/nm.py

About 10 seconds on a CPU. The last line you should see: `checked: two of every four are zero`.
"""

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxprune

STEPS = 500


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
params = model.init(jax.random.key(0), x_train[:1])

# NM groups weights along what a product sums over. The kernels of these layers are (in, out), so
# that is known; for attention, scanned layers or experts, pass roles=jaxprune.axis_roles(...). The
# schedule must end at the sparsity of the pattern, which is 0.5 for 2:4.
schedule = jaxprune.cubic_schedule(0.5, 100, 300, every=20)
rules = {"structure": jaxprune.NM(2, 4), "exclude": ".*head/.*"}
tx = jaxprune.prune(schedule, inner=optax.adamw(2e-3), **rules)
opt_state = tx.init(params)
print(jaxprune.plan(params, schedule, **rules), "\n")


@jax.jit
def train_step(params, opt_state, x, y):
    def loss_fn(params):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


for step in range(STEPS):
    batch = jax.random.choice(jax.random.key(step), len(x_train), (64,))
    params, opt_state = train_step(params, opt_state, x_train[batch], y_train[batch])

accuracy = (model.apply(params, x_test).argmax(-1) == y_test).mean()
print(f"test accuracy {accuracy:.3f}")
for name in ("Dense_0", "Dense_1"):
    groups = np.asarray(params["params"][name]["kernel"]).reshape(-1, 4, 128)
    assert np.all((groups != 0).sum(axis=1) == 2)
jaxprune.check(params, opt_state, done=True)
print("checked: two of every four are zero")
