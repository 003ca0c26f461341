"""A lottery ticket: train, prune, rewind what is left to an early value, train again.

    python examples/lottery.py

About 20 seconds on a CPU. The last line you should see: `checked: every dropped weight is zero`.

Frankle and Carbin 2019 (arXiv:1803.03635); rewinding to an early step rather than to the first is
from Frankle et al. 2020 (arXiv:1912.05671).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxprune

STEPS, REWIND = 300, 20
ROUNDS, EACH = 5, 0.5  # every round drops half of what is left: 3.1% remain


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
rules = {"exclude": ".*head/.*"}
# A schedule that drops nothing: the masks are those that are set.
tx = jaxprune.prune(jaxprune.one_shot_schedule(0.0), inner=optax.adamw(2e-3), **rules)


@jax.jit
def train_step(params, opt_state, x, y):
    def loss_fn(params):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def train(params, masks, first=0):
    """Trains with constant masks; also returns the params of an early step."""
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
    sparsity = 1 - (1 - sparsity) * EACH
    _, masks = jaxprune.prune_params(params, sparsity, **rules)
    params, _ = train(start, masks, first=REWIND + 1)
    other, _ = train(model.init(jax.random.key(1), x_train[:1]), masks)
    ticket, fresh = accuracy(params), accuracy(other)
    print(f"{sparsity:10.1%}  test accuracy {ticket:.3f}, other initial weights {fresh:.3f}")
print("checked: every dropped weight is zero")
