"""The recipes for other libraries run, each in a process of its own, with the extra `recipes`.

Other blocks of the page run in test_pages.py. Here, a block after `<!-- not run: needs PACKAGE -->`
runs where the package is installed, and prints what the block ```text after it says. Those that go
on with names of the blocks before them get these blocks first.
"""

import doctest
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "recipes.md"
BLOCK = re.compile(
    r"^<!-- not run: needs (?P<package>\w+) -->\n```python\n(?P<code>.*?)^```\n"
    r"(?:\n*^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
SHARED = {"flatbuffers": "## Exported programs"}  # packages whose block needs those of a section
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def recipes():
    text = PAGE.read_text(encoding="utf-8")
    return [(match["package"], match["code"], match["output"]) for match in BLOCK.finditer(text)]


def code_before(package):
    """The default blocks that a recipe goes on from: the first of the page, and of its section."""
    if package not in SHARED:
        return ""
    text = PAGE.read_text(encoding="utf-8")
    sections = [text[: text.index("def init(")], text[text.index(SHARED[package]) :]]
    codes = [re.search(r"^```python\n(.*?)(?:^```$|\Z)", s, re.M | re.S)[1] for s in sections]
    return "\n".join(codes)


def test_every_block_that_is_not_run_by_default_is_a_recipe():
    text = PAGE.read_text(encoding="utf-8")
    packages = [package for package, _, _ in recipes()]
    assert len(packages) == text.count("<!-- not run")
    assert len(set(packages)) == len(packages)
    assert all(code_before(package) for package in SHARED)


def run(package, code, folder):
    """What the code prints, in a process of its own."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    env = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.recipes
@pytest.mark.parametrize("package, code, output", recipes(), ids=[r[0] for r in recipes()])
def test_a_recipe_runs(package, code, output, tmp_path):
    printed = run(package, code_before(package) + code, tmp_path)
    if output is not None:
        assert doctest.OutputChecker().check_output(output, printed, OPTIONS), printed


KERAS = {  # what the adapter for Keras is for, beyond the model of the recipe
    "paths that repeat": """
branches = [keras.Sequential([keras.layers.Dense(8, name="d")], name="enc") for _ in range(2)]


class Difference(keras.Model):
    def __init__(self):
        super().__init__()
        self.branches = branches

    def call(self, x):
        return branches[0](x) - branches[1](x)


model = Difference()
train(model, optimizer := Optax(tx))
first, second = (branch.layers[0].kernel.numpy() for branch in branches)
assert (first == 0).sum() == (second == 0).sum() == 48
assert (first != second).any()
""",
    "a loss scale": """
keras.mixed_precision.set_global_policy("mixed_float16")
model = dense("first", "second")
train(model, optimizer := Optax(tx))
assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
""",
    "weights for layers with names in another order": """
old = dense("dense_1", "dense_2")
train(old, Optax(tx))
old.save_weights("old.weights.h5")
model = dense("dense_9", "dense_10")
model.compile(optimizer=(optimizer := Optax(tx)), loss="mse")
model.optimizer.build(model.trainable_variables)
model.load_weights("old.weights.h5")
model.fit(x, x, batch_size=32, verbose=0)
for a, b in zip(old.trainable_variables, model.trainable_variables):
    np.testing.assert_array_equal(a.numpy() == 0, b.numpy() == 0)
""",
}


@pytest.mark.recipes
@pytest.mark.parametrize("use", KERAS)
def test_the_adapter_for_keras(use, tmp_path):
    adapter = next(code for package, code, _ in recipes() if package == "keras")
    helpers = """

def dense(*names):
    layers = [keras.layers.Dense(8, name=name) for name in names]
    return keras.Sequential([keras.layers.Input((8,)), *layers])


def train(model, optimizer):
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, x, batch_size=32, epochs=4, verbose=0)

"""
    end = """
params = optimizer.by_path(model.trainable_variables)
jaxprune.check(params, optimizer.opt_state(), done=True)
assert len(params) == len(model.trainable_variables)
"""
    run("keras", adapter + helpers + KERAS[use] + end, tmp_path)
