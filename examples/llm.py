"""Prune a language model to 2:4, fine-tune it, save it, and train a LoRA that keeps its zeros.

    python examples/llm.py

About 45 seconds on a CPU with two cores. The last line you should see:
`checked: 2 of every 4 weights are kept from first to last, and the merge changes no output`.
"""

import math
import pathlib
import sysconfig
import tempfile
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxprune

WIDTH = 96
HEADS = 4
LAYERS = 2
CONTEXT = 64  # characters
BATCH = 16
STEPS = 500  # enough to learn how words are spelled
TUNING_STEPS = 100
LORA_STEPS = 100
LORA_RATE = 1e-2  # a LoRA takes a higher one than its base
RANK = 8
CALIBRATION = 128  # rows of text, without labels
KERNELS = "blocks/.*kernel"  # embeddings and the head stay dense, as in the papers


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        heads = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        query, key, value = jnp.moveaxis(heads, 2, 0)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


class LanguageModel(nnx.Module):
    def __init__(self, rngs):
        self.characters = nnx.Embed(128, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.Sequential(*(Block(rngs) for _ in range(LAYERS)))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 128, rngs=rngs)

    def __call__(self, ids):
        x = self.characters(ids) + self.positions(jnp.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class SparseLora(nnx.Module):
    """A linear layer and a low-rank change of its kernel, which is zero where the kernel is zero.

    `nnx.LoRA` would fill the zeros when it is merged. Masking its product only then would change
    the outputs, so the product is masked in training, too.
    """

    def __init__(self, linear, rngs):
        n_in, n_out = linear.kernel.shape
        self.linear = linear
        self.a = nnx.LoRAParam(nnx.initializers.he_uniform()(rngs.params(), (n_in, RANK)))
        self.b = nnx.LoRAParam(jnp.zeros((RANK, n_out)))

    def kernel(self):
        kernel = self.linear.kernel[...]
        return kernel + jnp.where(kernel != 0, self.a[...] @ self.b[...], 0)

    def __call__(self, x):
        return x @ self.kernel() + self.linear.bias[...]


# Two kinds of text that are installed with Python: what help() shows, and source code.


def rows_of(text):
    """Rows of `CONTEXT` characters and the next one, for training; and 256 rows for tests."""
    ids = np.frombuffer(text.encode("ascii", "ignore"), np.uint8).astype(np.int32)
    n_rows = len(ids) // (CONTEXT + 1)
    rows = ids[: n_rows * (CONTEXT + 1)].reshape(n_rows, CONTEXT + 1)
    return rows[:-256], rows[-256:]


folder = pathlib.Path(sysconfig.get_path("stdlib"))
files = [folder / f"{name}.py" for name in ("argparse", "inspect", "tarfile", "typing")]
help_rows, help_test = rows_of("".join(text for _, text in sorted(topics.items())))
code_rows, code_test = rows_of("".join(file.read_text("utf-8") for file in files))


def loss_fn(model, rows):
    logits = model(rows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


def train(model, tx, rows, steps, kind=nnx.Param):
    """Trains the variables of a kind; all others stay as they are."""
    optimizer = nnx.Optimizer(model, tx, wrt=kind)

    @nnx.jit
    def train_step(model, optimizer, batch):
        grads = nnx.grad(loss_fn, argnums=nnx.DiffState(0, kind))(model, batch)
        optimizer.update(model, grads)

    rng = np.random.default_rng(0)
    for _ in range(steps):
        train_step(model, optimizer, rows[rng.integers(len(rows), size=BATCH)])


def layers_of(model):
    """The linear layers of all blocks, and where each is: a block and a name."""
    for block in model.blocks.layers:
        for name in ("qkv", "out", "up", "down"):
            yield block, name, getattr(block, name)


def kernels_of(model):
    """The kernels, with those of a LoRA added."""
    layers = [layer for _, _, layer in layers_of(model)]
    return [np.asarray(x.kernel() if isinstance(x, SparseLora) else x.kernel[...]) for x in layers]


test_loss = nnx.jit(loss_fn)


def report(name, model):
    """Prints a line of the table; returns the losses."""
    losses = [float(test_loss(model, rows)) / math.log(2) for rows in (help_test, code_test)]
    n_zero = [np.mean([(kernel == 0).mean() for kernel in kernels_of(model)])]
    print(f"{name:22}" + "".join(f"{x:12.3f}" for x in losses + n_zero))
    return losses


print(f"{'bits per character':22}{'help text':>12}{'code':>12}{'zeros':>12}")
model = LanguageModel(nnx.Rngs(0))
train(model, optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS)), help_rows, STEPS)
report("dense", model)

# Prune. The inputs of each layer, from a run on some text, say which weights matter.
inputs = jaxprune.layer_inputs_nnx(model, help_rows[:CALIBRATION, :-1], include=KERNELS)
dense = nnx.state(model, nnx.Param)
pruned, masks = jaxprune.sparsegpt(dense, inputs, nm=(2, 4), include=KERNELS)
nnx.update(model, pruned)
report("2:4, SparseGPT", model)

# Fine-tune. What is zero when the optimizer is made stays zero.
train(model, jaxprune.keep_zeros(optax.adamw(1e-3)), help_rows, TUNING_STEPS)
tuned = report("fine-tuned", model)

# Save, and load into another model.
with tempfile.TemporaryDirectory() as temporary:
    file = pathlib.Path(temporary, "model.safetensors.zst")
    jaxprune.save(file, nnx.state(model, nnx.Param), masks)
    loaded = LanguageModel(nnx.Rngs(1))
    nnx.update(loaded, jaxprune.load(file, like=nnx.state(loaded, nnx.Param)))
assert report("saved and loaded", loaded) == tuned

# A LoRA on the sparse model, for another kind of text, and its merge.
base = kernels_of(loaded)
rngs = nnx.Rngs(2)
for block, name, layer in layers_of(loaded):
    setattr(block, name, SparseLora(layer, rngs))
train(loaded, optax.adamw(LORA_RATE), code_rows, LORA_STEPS, kind=nnx.LoRAParam)
with_lora = report("with a LoRA for code", loaded)
for block, name, layer in layers_of(loaded):
    layer.linear.kernel[...] = layer.kernel()
    setattr(block, name, layer.linear)
merged = report("merged", loaded)

for before, after in zip(base, kernels_of(loaded), strict=True):
    assert not np.array_equal(before, after)
    assert not after[before == 0].any()
    groups = after.reshape(-1, 4, after.shape[1]) != 0
    assert (groups.sum(axis=1) <= 2).all()
assert np.allclose(merged, with_lora, atol=1e-5)
print(
    "\nchecked: 2 of every 4 weights are kept from first to last, and the merge changes no output"
)
