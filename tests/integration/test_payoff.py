"""The tables of docs/payoff.md hold the results of the benchmarks, and its recipes run."""

import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "payoff.md"
needs_benchmarks = pytest.mark.skipif(
    not (ROOT / "benchmarks").exists(), reason="an installed copy has no results"
)


@needs_benchmarks
def test_the_tables_are_what_the_benchmarks_wrote():
    from benchmarks import payoff

    text = PAGE.read_text(encoding="utf-8")
    assert payoff.page(text) == text, "run python -m benchmarks.payoff"


@needs_benchmarks
def test_a_wrong_number_or_a_missing_table_is_found():
    from benchmarks import payoff

    text = PAGE.read_text(encoding="utf-8")
    line = payoff.files()[2]
    assert payoff.page(text.replace(line, line.replace(".", ",", 1))) == text
    with pytest.raises(ValueError, match="0 places for the table files"):
        payoff.page(text.replace("<!-- files -->", ""))


def code_after(heading):
    """The functions in the first block of code under a heading."""
    text = PAGE.read_text(encoding="utf-8")
    start = text.index("```python\n", text.index(f"### {heading}")) + len("```python\n")
    functions = {}
    exec(text[start : text.index("```", start)], functions)
    return functions


def pruned(shape, structure):
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    params, _ = jaxprune.prune_params({"w": w}, 0.9, structure=structure)
    return np.asarray(params["w"])


@pytest.mark.recipes
def test_scipy_runs_a_pruned_layer():
    pytest.importorskip("scipy")
    recipe = code_after("SciPy")
    kernel = pruned((40, 60), jaxprune.Unstructured())
    csr = recipe["to_scipy"](kernel)
    assert csr.nnz == np.count_nonzero(kernel) == 240
    x, bias = np.arange(40, dtype=np.float32), np.ones(60, np.float32)
    outputs = recipe["dense_layer"](csr, bias, x)
    np.testing.assert_allclose(outputs, x @ kernel + bias, rtol=1e-5, atol=1e-4)


# In a process of its own: TensorFlow and JAX warn on import, and here a warning is an error.
_LITERT = """
import sys
sys.path.insert(0, {tests!r})
from test_payoff import litert_sizes
print(*litert_sizes())
"""


@pytest.mark.recipes
def test_litert_runs_blocks_along_the_input():
    pytest.importorskip("tensorflow")
    pytest.importorskip("ai_edge_litert")
    script = _LITERT.format(tests=str(pathlib.Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    dense, sparse = map(int, done.stdout.splitlines()[-1].split())
    assert sparse < dense / 3


def litert_sizes():
    recipe = code_after("LiteRT")
    kernel = pruned((256, 128), jaxprune.Block((4, 1)))
    x = np.random.default_rng(1).normal(size=(1, 256)).astype(np.float32)
    sizes = []
    for sparse in (False, True):
        flatbuffer = recipe["to_litert"](lambda x: jnp.maximum(x @ kernel, 0), x, sparse=sparse)
        outputs = recipe["litert_runner"](flatbuffer)(x)
        np.testing.assert_allclose(outputs, np.maximum(x @ kernel, 0), rtol=1e-4, atol=1e-5)
        sizes.append(len(flatbuffer))
    return sizes
