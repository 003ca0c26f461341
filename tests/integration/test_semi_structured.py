"""The recipe for 2:4 files in docs/guides/language-models.md, as far as a CPU can run it."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "language-models.md"
pytestmark = pytest.mark.recipes
torch = None


@pytest.fixture(scope="module", autouse=True)
def needs_torch():
    global torch
    torch = pytest.importorskip("torch")
    pytest.importorskip("typer")
    pytest.importorskip("rich")


@pytest.fixture(scope="module")
def recipe():
    section = PAGE.read_text(encoding="utf-8").split("## What to do with a 2:4 file next")[1]
    functions = {}
    exec(re.search(r"^```python\n(.*?)^```$", section, re.M | re.S)[1], functions)
    return functions


def model():
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32)
    return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(32, 5))


def pruned_file(folder):
    """A file of PyTorch that the command has pruned."""
    from safetensors.torch import save_file

    from cli_command import run

    save_file(model().state_dict(), folder / "dense.safetensors", {"format": "pt"})
    run("prune", folder / "dense.safetensors", "-o", folder / "a.safetensors",
        "-s", 0.5, "--structure", "nm:2:4")  # fmt: skip
    return folder / "a.safetensors"


def test_a_pruned_file_is_loaded_and_packed_exactly(recipe, tmp_path):
    path = pruned_file(tmp_path)
    tensors = jaxprune.load(path)
    loaded = recipe["load_sparse"](model(), path, torch.float32)
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    y = x
    for i in (0, 2, 4):
        y = y @ tensors[f"{i}.weight"].T + tensors[f"{i}.bias"]
        y = np.maximum(y, 0) if i < 4 else y
    if not torch.cuda.is_available():
        with torch.no_grad():
            np.testing.assert_allclose(loaded(torch.from_numpy(x)).numpy(), y, atol=1e-5)
    weights = [torch.from_numpy(tensors[f"{i}.weight"]) for i in (0, 2, 4)]
    assert [recipe["can_be_packed"](w) for w in weights] == [True, True, False]  # 5 outputs
    for weight in weights[:2]:
        for dtype in (torch.bfloat16, torch.float16, torch.int8):
            cast = (100 * weight).to(dtype)
            assert torch.equal(recipe["packed_again"](cast), cast)
        assert not torch.equal(recipe["packed_again"](weight), weight)


def test_a_kernel_of_jax_is_transposed(recipe):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)), jnp.float32)
    pruned, _ = jaxprune.prune_params({"kernel": kernel}, 0.5, structure=jaxprune.NM(2, 4))
    kernel = torch.from_numpy(np.array(pruned["kernel"])).half()
    assert recipe["can_be_packed"](kernel.T.contiguous())
    assert torch.equal(recipe["packed_again"](kernel.T.contiguous()), kernel.T)


def test_what_is_not_2_to_4_loses_weights_without_an_error(recipe):
    dense = torch.ones((32, 64), dtype=torch.float16)
    assert not recipe["can_be_packed"](dense)
    assert int((recipe["packed_again"](dense) != 0).sum()) == 32 * 64 // 2
    other = torch.ones((32, 32), dtype=torch.float16)
    assert not recipe["can_be_packed"](other[:, :32] * 0)  # too few inputs


def test_a_cpu_has_no_sparse_tensor_cores():
    weight = torch.zeros((64, 64), dtype=torch.float16)
    with pytest.raises(RuntimeError, match="Only CUDA tensors are currently supported"):
        torch.sparse.to_sparse_semi_structured(weight)


def test_the_shapes_are_those_that_torch_needs():
    for dtype in (torch.float16, torch.bfloat16):
        shape = torch.sparse.SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS[dtype]
        assert (shape.sparse_min_rows, shape.sparse_min_cols) == (32, 64)
