"""Prune a Flax NNX network during training, with an nnx.Optimizer.

    python examples/nnx.py

About 15 seconds on a CPU. The last line you should see: `checked: every dropped weight is zero`.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxprune

STEPS = 600
FINAL_SPARSITY = 0.9
BEGIN, END = 100, 400  # in the last third the network recovers
EVERY = 20  # long runs prune every 100 to 1000 steps
BATCH = 64


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 256, rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.data.astype("float32") / 16, digits.target, test_size=0.5, random_state=0
)

model = Mlp(nnx.Rngs(0))
schedule = jaxprune.cubic_schedule(FINAL_SPARSITY, BEGIN, END, every=EVERY)
tx = jaxprune.prune(  # wraps the optimizer, which then gets masked gradients
    schedule, inner=optax.adamw(2e-3), overrides={"head/kernel": 0.5}
)
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, x, y):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


for step in range(STEPS):
    batch = jax.random.choice(jax.random.key(step), len(x_train), (BATCH,))
    loss = train_step(model, optimizer, x_train[batch], y_train[batch])
    if step % 100 == 99:
        sparsity = jaxprune.metrics(optimizer)["prune/sparsity"]
        print(f"step {step + 1}  loss {loss:.4f}  sparsity {sparsity:.3f}")

accuracy = (jnp.argmax(model(x_test), axis=-1) == y_test).mean()
print(f"\ntest accuracy {accuracy:.3f}\n")
params = nnx.state(model, nnx.Param)
print(jaxprune.summarize(params, optimizer))
jaxprune.check(params, optimizer, done=True)
print("checked: every dropped weight is zero")
