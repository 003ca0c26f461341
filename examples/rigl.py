"""RigL: sparse from the first step; weights regrow where the gradient is large.

    python examples/rigl.py

About 15 seconds on a CPU. The last line you should see: `checked: every dropped weight is zero`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxprune

STEPS = 600


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


def train(name, tx):
    params = model.init(jax.random.key(0), x_train[:1])
    opt_state = tx.init(params)
    first = jaxprune.get_masks(opt_state)
    params = jaxprune.apply_masks(params, opt_state)  # sparse before the first gradient

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
    last = jaxprune.get_masks(opt_state)
    regrown = jax.tree.map(lambda last, first: jnp.sum(last & ~first), last, first)
    n_regrown = sum(map(int, jax.tree.leaves(regrown)))
    print(f"{name:14} test accuracy {accuracy:.3f}, {n_regrown} kept weights were zero at first")
    jaxprune.check(params, opt_state)


rules = {"inner": optax.adamw(2e-3), "exclude": ".*head/.*"}
train("static random", jaxprune.static_sparse(0.95, **rules))
train("SET", jaxprune.set_(0.95, end_step=450, every=15, **rules))
train("RigL", jaxprune.rigl(0.95, end_step=450, every=15, **rules))
print("checked: every dropped weight is zero")
