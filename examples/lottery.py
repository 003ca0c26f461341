"""Lottery ticket: train, prune, rewind the kept weights to an early step, train again.

    python examples/lottery.py

About 20 seconds on a CPU. The last line you should see: `checked: every dropped weight is zero`.

From Frankle and Carbin 2019 (arXiv:1803.03635). They rewind to the first step; rewinding to an
early step is from Frankle et al. 2020 (arXiv:1912.05671).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxprune

STEPS, REWIND = 300, 20
ROUNDS, KEPT = 5, 0.5  # every round keeps half of the remaining weights: 3.1% in the end


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
rules: dict = {"exclude": ".*head/.*"}
# The schedule itself drops nothing: `set_masks` sets the masks.
tx = jaxprune.prune(jaxprune.one_shot_schedule(0.0), inner=optax.adamw(2e-3), **rules)


@jax.jit
def train_step(params, opt_state, x, y):
    def loss_fn(params):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def train(params, masks, first=0):
    """Trains with fixed masks. Returns the params, and those of step `REWIND`."""
    opt_state = jaxprune.set_masks(tx.init(params), masks)
    params = early = jaxprune.apply_masks(params, masks)
    for step in range(first, STEPS):
        batch = jax.random.choice(jax.random.key(step), len(x_train), (64,))
        params, opt_state = train_step(params, opt_state, x_train[batch], y_train[batch])
        early = params if step == REWIND else early
    jaxprune.check(params, opt_state)
    return params, early


def accuracy(params):
    return float((model.apply(params, x_test).argmax(-1) == y_test).mean())


dense = model.init(jax.random.key(0), x_train[:1])
masks = jax.tree.map(lambda p: jnp.ones(p.shape, bool), dense)
params, start = train(dense, masks)
print(f"dense       test accuracy {accuracy(params):.3f}")
sparsity = 0.0
for _ in range(ROUNDS):
    sparsity = 1 - (1 - sparsity) * KEPT
    _, masks = jaxprune.prune_params(params, sparsity, **rules)
    params, _ = train(start, masks, first=REWIND + 1)
    reinitialized, _ = train(model.init(jax.random.key(1), x_train[:1]), masks)
    accuracies = accuracy(params), accuracy(reinitialized)
    print("{:10.1%}  test accuracy {:.3f}, reinitialized {:.3f}".format(sparsity, *accuracies))
print("checked: every dropped weight is zero")
