"""Arrays of which other processes hold parts: what needs the whole array says how to gather it.

`is_here` is replaced, so that one process stands for several. There are real ones in
tests/integration/test_multiprocess.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from helpers import assert_says
from jaxprune import plots
from jaxprune._base import on_host
from jaxprune._report import summary

W = jnp.array([[0.0, 1.0, -2.0], [3.0, 0.0, 0.0]])
PARAMS = {"fc": {"w": W}}
HOST = {"fc": {"w": np.asarray(W)}}
GATHER = "process_allgather({}, tiled=True)"


def model(params, x):
    return x @ params["fc"]["w"]


def inputs():
    return jaxprune.layer_inputs(model, PARAMS, jnp.ones((4, 2)))


CALLS = {
    "save": (lambda f: jaxprune.save(f, PARAMS, level=None), "fc/w", "params"),
    "masks of save": (
        lambda f: jaxprune.save(f, HOST, jaxprune.masks_from_params(PARAMS), level=None),
        "save: masks: fc/w",
        "jaxprune.get_masks(opt_state)",
    ),
    "save_safetensors": (lambda f: jaxprune.save_safetensors(f, PARAMS), "fc/w", "params"),
    "save_csr": (lambda f: jaxprune.save_csr(f, PARAMS), "fc/w", "params"),
    "save_inputs": (
        lambda f: jaxprune.save_inputs(f.with_suffix(".npz"), inputs()),
        "save_inputs: fc/w",
        "inputs",
    ),
    "to_csr": (lambda f: jaxprune.to_csr(PARAMS), "fc/w", "params"),
    "to_bcoo": (lambda f: jaxprune.to_bcoo(PARAMS), "fc/w", "params"),
    "to_bcsr": (lambda f: jaxprune.to_bcsr(PARAMS), "fc/w", "params"),
    "pack_matrix": (lambda f: jaxprune.pack_matrix(W), "pack_matrix: w", "w"),
    "mask of pack_matrix": (
        lambda f: jaxprune.pack_matrix(np.asarray(W), W != 0),
        "pack_matrix: mask",
        "mask",
    ),
    "pack_kernels": (
        lambda f: jaxprune.pack_kernels(PARAMS, ".*"),
        "pack_kernels: fc/w",
        "params",
    ),
    "shrink": (lambda f: jaxprune.shrink(model, PARAMS, jnp.ones((4, 2))), "fc/w", "params"),
    "structural": (
        lambda f: jaxprune.prune(jaxprune.one_shot_schedule(0.5), structural={"fc/w": W != 0}),
        "structural['fc/w']",
        "mask",
    ),
    "weight_histogram": (
        lambda f: plots.weight_histogram(PARAMS, PARAMS),
        "weight_histogram: before: fc/w",
        "params",
    ),
    "mask_image": (lambda f: plots.mask_image(W != 0), "mask_image: mask", "mask"),
}


def is_of_several(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setattr(module, "is_here", lambda x: not isinstance(x, jax.Array))


@pytest.mark.parametrize("name", CALLS)
def test_what_reads_whole_arrays_says_which_one_and_how_to_gather_it(name, tmp_path, monkeypatch):
    call, where, gather = CALLS[name]
    is_of_several(monkeypatch, on_host)
    with pytest.raises(ValueError, match="spread over several processes") as error:
        call(tmp_path / "model.safetensors")
    assert str(error.value).startswith(f"{where}: an array of shape ")
    assert_says(str(error.value), "process 0", GATHER.format(gather), "in all processes")
    assert not list(tmp_path.iterdir())


def test_arrays_of_this_process_and_other_values_are_here():
    assert all(map(on_host.is_here, (W, np.asarray(W), "no array")))
    assert jax.jit(lambda x: jnp.sum(x) * on_host.is_here(x))(W) == jnp.sum(W)


TREES = {
    "float32": W,
    "subnormal": jnp.array([1e-45, 0.0, -0.0]),
    "bfloat16": W.astype(jnp.bfloat16),
    "float8": W.astype(jnp.float8_e4m3fn),
    "complex": W * 1j,
    "int8": W.astype(jnp.int8),
    "bool": W != 0,
    "empty": jnp.zeros((0, 3)),
    "scalar": jnp.float32(2),
    "key": jax.random.key(0),
}


@pytest.mark.parametrize("with_masks", (False, True))
@pytest.mark.parametrize("structural", (None, {"float32": np.array([[1, 0, 1], [0, 1, 1]])}))
def test_counts_on_devices_are_those_on_the_host(with_masks, structural, monkeypatch):
    masks = None
    if with_masks:
        rng = np.random.default_rng(0)
        masks = {k: jnp.asarray(rng.integers(0, 3, x.shape)) for k, x in TREES.items()}
    on_this_host = jaxprune.summarize(TREES, masks, structural=structural)
    is_of_several(monkeypatch, summary)
    assert jaxprune.summarize(TREES, masks, structural=structural) == on_this_host
    assert with_masks == any("dropped but nonzero" in x.note for x in on_this_host.leaves)


@pytest.mark.parametrize("here", (True, False))
def test_weights_that_do_not_exist_are_not_counted_whatever_they_hold(here, monkeypatch):
    if not here:
        is_of_several(monkeypatch, summary)
    params = {"w": jnp.array([[1.0, 2.0], [0.0, 3.0]])}
    exists = {"w": np.array([[1, 0], [1, 1]])}
    [leaf] = jaxprune.summarize(params, structural=exists).leaves
    assert (leaf.size, leaf.n_zero) == (3, 1)
    masks = {"w": np.array([[0, 0], [1, 1]])}
    [leaf] = jaxprune.summarize(params, masks, structural=exists).leaves
    assert (leaf.size, leaf.n_zero) == (3, 1)
    assert leaf.note == "1 dropped but nonzero; 1 kept but zero"
