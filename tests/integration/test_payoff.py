"""The tables of docs/payoff.md hold the results of the benchmarks, and its recipes run."""

import collections
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


def speeds(n_cores, batch, column):
    """By network at 90 %: how many times faster than dense, warm and cold, as the page shows."""
    text, _, _ = PAGE.read_text(encoding="utf-8").partition("<!-- other_processor -->")
    lines = text.splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    where = [str(n_cores), str(batch), "90 %"]
    [head, *_] = [row for row in rows if "packed 1x16" in row]
    chosen = [row for row in rows if len(row) == len(head) and row[1:4] == where]
    place = head.index(column)
    return {row[0]: [float(x) for x in row[place].split("/")] for row in chosen}


def test_units_are_the_best_way_to_prune_as_the_page_says():
    from benchmarks import payoff

    bits = collections.defaultdict(list)
    for run in sorted(payoff.read("paper-quality-lstm")["runs"], key=lambda run: run["seed"]):
        bits[run["network"]].append(run["bits_per_byte"])
    errors = []
    for name, values in bits.items():
        structure, _, sparsity = name.rpartition(" ")
        if structure not in ("", "units") and "dense" not in structure:
            more = np.subtract(values, bits[f"units {sparsity}"])
            errors.append(more.mean() / (more.std(ddof=1) / len(more) ** 0.5))
    assert len(errors) == 15
    assert 4 < min(errors) < 5
    words = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert "seed by seed, by more than four standard errors at every sparsity." in words


def test_what_is_said_of_speed_is_in_the_tables():
    words = " ".join(PAGE.read_text(encoding="utf-8").split())
    large = ("LSTM 2 x 650", "LSTM 2 x 1500")
    blocks, narrower = (speeds(1, 1, column) for column in ("packed 1x16", "narrower dense"))
    warm, cold, narrow = (
        [times[name][i] for name in large] for times, i in ((blocks, 0), (blocks, 1), (narrower, 1))
    )
    assert "{} and {} times for blocks of 16 in the LSTMs of 650 and".format(*warm) in words
    said = (
        "gain of these two is {} and {} times. A narrower dense network gains no more ({} and {})"
    )
    assert said.format(*cold, *narrow) in words
    assert all(a >= b for a, b in zip(cold, narrow, strict=True))

    def span(n_cores, column):
        of_batches = [speeds(n_cores, batch, column) for batch in (8, 32)]
        warm = [x[name][0] for x in of_batches for name in x if name != "LSTM 2 x 80"]
        assert len(warm) == 8
        return f"{min(warm)} to {max(warm)} times"

    assert f"and warm, blocks of 16 are {span(1, 'packed 1x16')} faster on one core" in words
    assert f"there blocks of 16 are {span(2, 'packed 1x16')} faster," in words
    assert f"and blocks of 8 are {span(2, 'packed 1x8')} faster." in words
    for n_cores in (1, 2):
        assert speeds(n_cores, 8, "packed 1x16")["LSTM 2 x 80"][0] < 1


@needs_benchmarks
def test_what_is_said_of_another_processor_is_in_its_results():
    from benchmarks import networks, payoff

    words = " ".join(PAGE.read_text(encoding="utf-8").split())
    case = {"cores": 1, "batch": 1, "sparsity": 0.9}
    warm = {}
    for name in ("inference", "inference-intel"):
        for row in payoff.read(name)["rows"]:
            if {key: row[key] for key in case} == case:
                warm[name, row["task"], row["method"]] = row["x_warm"]
    n_bytes = 4 * networks.n_weights(networks.lstm_network(320, 97, embed=160))
    assert f"the dense weights take {n_bytes / 1e6:.1f} MB" in words
    amd, intel = (
        {n: warm[name, f"LSTM 2 x {n}", "packed 1x16"] for n in (320, 650, 1500)}
        for name in ("inference", "inference-intel")
    )
    said = f"blocks of 16 are {intel[320]:.1f} times faster warm, and on the AMD EPYC"
    assert f"{said} {amd[320]:.1f} times." in words
    assert intel[320] > amd[320]
    assert all(intel[n] < amd[n] for n in (650, 1500))
    one, narrower = (
        {n: warm["inference-intel", f"LSTM 2 x {n}", method] for n in (80, 320, 650, 1500)}
        for method in ("one dense layer", "narrower dense")
    )
    assert all(0.9 < one[n] / narrower[n] < 1.2 for n in one)  # "about the same" in the README
    assert f"{one[320]:.1f} and {narrower[320]:.1f} times as fast as the large one" in words


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
