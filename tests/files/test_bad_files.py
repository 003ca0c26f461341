"""Wrong arguments of the functions that read and write files."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import jaxprune
from bad_input import assert_error, case, params
from helpers import ones


def model():
    return eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))


def load_like_a_model():
    jaxprune.save("a.zst", eqx.filter(model(), eqx.is_array))
    try:
        jaxprune.load("a.zst", like=model())
    finally:
        os.remove("a.zst")


INPUTS = jaxprune.LayerInputs({}, jaxprune.AxisRoles({}))
OF_MODEL = ("Equinox model", "eqx.filter(model, eqx.is_array)")
SHAPE = jax.ShapeDtypeStruct((2, 2), jnp.float32)

FILES = [
    case(
        "save_a_model",
        lambda: jaxprune.save("a.zst", model()),
        TypeError,
        ("activation:", "is not an array", OF_MODEL),
    ),
    case(
        "to_csr_of_a_model",
        lambda: jaxprune.to_csr(model()),
        TypeError,
        ("activation:", "is not an array", OF_MODEL),
    ),
    case(
        "load_like_a_model",
        load_like_a_model,
        TypeError,
        (
            "like: activation, final_activation:",
            "a.zst does not have",
            ("eqx.partition(model, eqx.is_array)", "like=arrays", "eqx.combine"),
        ),
    ),
    case(
        "to_bcoo_under_jit",
        lambda: jax.eval_shape(jaxprune.to_bcoo, {"w": ones(2, 2)}),
        TypeError,
        ("w:", "no values to read", "outside jit"),
    ),
    case(
        "save_swapped",
        lambda: jaxprune.save(params(), "a.zst"),
        TypeError,
        ("save: path", "dict", "'model.safetensors.zst'"),
    ),
    case(
        "save_bytes",
        lambda: jaxprune.save(b"a.zst", params()),
        TypeError,
        ("save: path", "b'a.zst'", "string"),
    ),
    case("load_none", lambda: jaxprune.load(None), TypeError, ("load: path", "None", "string")),
    case(
        "load_packed_number",
        lambda: jaxprune.load_packed(3),
        TypeError,
        ("load_packed: path", "3", "string"),
    ),
    case(
        "save_csr_swapped",
        lambda: jaxprune.save_csr(params(), "folder"),
        TypeError,
        ("save_csr: folder", "dict", "string"),
    ),
    case(
        "save_safetensors_swapped",
        lambda: jaxprune.save_safetensors(params(), "a.safetensors"),
        TypeError,
        ("save_safetensors: path", "dict", "string"),
    ),
    case(
        "load_a_missing_file",
        lambda: jaxprune.load("missing.zst"),
        FileNotFoundError,
        ("missing.zst", "no such file", "path"),
    ),
    case(
        "load_a_folder",
        lambda: jaxprune.load("."),
        IsADirectoryError,
        (None, "folder", ("jaxprune.save", "jaxprune export")),
    ),
    case(
        "load_packed_a_folder",
        lambda: jaxprune.load_packed("."),
        IsADirectoryError,
        (None, "folder", ("jaxprune.save", "jaxprune export")),
    ),
    case(
        "metadata_list",
        lambda: jaxprune.save("a.zst", params(), metadata=["a"]),
        TypeError,
        ("metadata", "['a']", "{'step': '9000'}"),
    ),
    case(
        "save_shapes",
        lambda: jaxprune.save("a.zst", {"w": SHAPE}),
        TypeError,
        ("w:", "ShapeDtypeStruct(shape=(2, 2), dtype=float32)", "arrays"),
    ),
    case(
        "save_the_name_of_the_metadata",
        lambda: jaxprune.save("a.safetensors.zst", {"__metadata__": jnp.ones(3)}),
        ValueError,
        ("__metadata__:", "keep this name", ("Rename the leaf", "metadata={")),
    ),
    case(
        "save_safetensors_the_name_of_the_metadata",
        lambda: jaxprune.save_safetensors("a.safetensors", {"__metadata__": jnp.ones(3)}),
        ValueError,
        ("__metadata__:", "keep this name", ("Rename the leaf", "metadata={")),
    ),
    case(
        "save_npz",
        lambda: jaxprune.save("a.npz", params()),
        ValueError,
        ("save: a.npz", "ends in .npz", "Name it a.safetensors.zst"),
    ),
    *(
        case(
            f"save_safetensors_as_{name}",
            lambda name=name: jaxprune.save_safetensors(name, params()),
            ValueError,
            (f"save_safetensors: {name}:", f"ends in {suffix}", "Name it a.safetensors"),
        )
        for name, suffix in (
            ("a.npz", ".npz"),
            ("a.pkl", ".pkl"),
            ("a.safetensors.zst", ".zst"),
            ("a.ZST", ".zst"),
        )
    ),
    case(
        "save_safetensors_to_none",
        lambda: jaxprune.save_safetensors(None, params()),
        TypeError,
        ("save_safetensors: path", "None", "'model.safetensors'"),
    ),
    case(
        "save_csr_to_none",
        lambda: jaxprune.save_csr(None, params()),
        TypeError,
        ("save_csr: folder", "None", "such as 'csr'"),
    ),
    case(
        "save_inputs_to_none",
        lambda: jaxprune.save_inputs(None, INPUTS),
        TypeError,
        ("save_inputs: path", "None", "'inputs.npz'"),
    ),
    case(
        "save_inputs_as_safetensors",
        lambda: jaxprune.save_inputs("x.safetensors", INPUTS),
        ValueError,
        ("save_inputs: x.safetensors:", "ends in .safetensors", "Name it x.npz"),
    ),
    case(
        "save_inputs_as_a_pickle",
        lambda: jaxprune.save_inputs("x.pkl", INPUTS),
        ValueError,
        ("save_inputs: x.pkl:", "ends in .pkl", "Name it x.npz"),
    ),
    case(
        "load_inputs_of_none",
        lambda: jaxprune.load_inputs(None),
        TypeError,
        ("load_inputs: path", "None", "'inputs.npz'"),
    ),
    case(
        "load_inputs_of_a_folder",
        lambda: jaxprune.load_inputs("."),
        IsADirectoryError,
        (None, "is a folder", ("save_inputs", "inputs.npz")),
    ),
    case(
        "save_as_plain_safetensors",
        lambda: jaxprune.save("a.safetensors", params()),
        ValueError,
        ("save: a.safetensors", "with zstd", "level=None"),
    ),
    case(
        "save_a_string",
        lambda: jaxprune.save("a.zst", {"w": "x"}),
        TypeError,
        ("w:", "'x'", "numpy.asarray"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", FILES)
def test_an_error_about_files_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)


@pytest.mark.parametrize("name", ("a", "a.safetensors", "a.v2", "model-1.5", "a.safetensors.bak"))
def test_names_that_say_nothing_else_are_accepted(tmp_path, name):
    jaxprune.save_safetensors(tmp_path / name, params())
    assert jaxprune.load(tmp_path / name)["w"].shape == (2, 4)
    jaxprune.save_inputs(tmp_path / name.replace(".safetensors", ""), INPUTS)
    assert jaxprune.load_inputs(tmp_path / name.replace(".safetensors", "")) == INPUTS
