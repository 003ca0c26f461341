"""Prune a Flax linen network during training, with a TrainState.

    python examples/linen.py

About 10 seconds on a CPU. The last line you should see: `checked: every dropped weight is zero`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxprune

STEPS = 600
FINAL_SPARSITY = 0.9
BEGIN, END = 100, 400  # in the last third the network recovers
EVERY = 20  # long runs prune every 100 to 1000 steps
BATCH = 64


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
params = model.init(jax.random.key(0), x_train[:1])["params"]
schedule = jaxprune.cubic_schedule(FINAL_SPARSITY, BEGIN, END, every=EVERY)
rules: dict = {"exclude": "head/.*"}
tx = optax.chain(optax.adamw(2e-3), jaxprune.prune(schedule, **rules))  # prune goes last
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
print(jaxprune.plan(params, schedule, **rules), "\n")


@jax.jit
def train_step(state, x, y):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    state = state.apply_gradients(grads=grads)
    return state, {"loss": loss} | jaxprune.metrics(state.opt_state)


for step in range(STEPS):
    batch = jax.random.choice(jax.random.key(step), len(x_train), (BATCH,))
    state, logs = train_step(state, x_train[batch], y_train[batch])
    if step % 100 == 99:
        print(f"step {step + 1}  loss {logs['loss']:.4f}  sparsity {logs['prune/sparsity']:.3f}")

logits = model.apply({"params": state.params}, x_test)
accuracy = (jnp.argmax(logits, axis=-1) == y_test).mean()
print(f"\ntest accuracy {accuracy:.3f}\n")
print(jaxprune.summarize(state.params, state))
jaxprune.check(state.params, state, done=True)
print("checked: every dropped weight is zero")
