"""Files as people have them: metadata, dtypes of quantised models, and what must not change."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxprune
from helpers import assert_says, n_calls
from jaxprune._files.any_kind import Source
from jaxprune._files.interchange import save_safetensors
from jaxprune._files.leaves import Leaf
from safetensors_files import N_BITS, random_tensor, read_file, write_file

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("zstandard")

from cli_command import as_json, run
from jaxprune._cli.planned import planned
from jaxprune._cli.words import rules_for

# Dtypes that are pruned by default where a leaf has two axes.
PRUNED = {"F16", "BF16", "F32", "F64", "C64"}
SHAPES = ((), (0,), (8,), (4, 6), (3, 8))


@st.composite
def files(draw):
    """Tensors of all dtypes around a matrix that is pruned, and metadata."""
    names = draw(st.lists(st.sampled_from("abcdefg"), max_size=4, unique=True))
    names.insert(draw(st.integers(0, len(names))), "matrix")
    tensors = {}
    for name in names:
        code, shape = draw(st.sampled_from(list(N_BITS))), draw(st.sampled_from(SHAPES))
        if name == "matrix":
            code, shape = draw(st.sampled_from(("F32", "BF16"))), (4, 6)
        if code.startswith(("F4", "F6")) and not shape:
            shape = (4,)
        tensors[f"{name}.w"] = random_tensor(draw(st.integers(0, 99)), code, shape)
    metadata = st.none() | st.fixed_dictionaries({"format": st.sampled_from(("pt", "flax"))})
    return tensors, draw(metadata)


@pytest.mark.skip_in("debug_nans", reason="random bits hold NaN")
@pytest.mark.parametrize("way", ((".safetensors",), (".zst", ".safetensors")), ids=len)
@given(file=files())
def test_pruning_keeps_metadata_order_and_every_other_tensor(tmp_path_factory, way, file):
    tensors, metadata = file
    folder = tmp_path_factory.mktemp("f")
    write_file(folder / "a.safetensors", tensors, metadata)
    run("prune", folder / "a.safetensors", "-o", folder / f"b{way[0]}", "-s", 0.5)
    if len(way) == 2:
        run("export", folder / f"b{way[0]}", "-o", folder / f"b{way[1]}")
    pruned, metadata_after = read_file(folder / f"b{way[-1]}")
    assert metadata_after == metadata
    assert list(pruned) == list(tensors)
    expected, _ = jaxprune.prune_params(jaxprune.load(folder / "a.safetensors")["matrix.w"], 0.5)
    assert pruned["matrix.w"][2] == np.asarray(expected).tobytes()
    for name, (code, shape, data) in tensors.items():
        assert pruned[name][:2] == (code, shape)
        if code not in PRUNED or len(shape) < 2:
            assert pruned[name][2] == data


@given(file=files())
def test_exporting_and_back_changes_no_bit(tmp_path_factory, file):
    tensors, metadata = file
    folder = tmp_path_factory.mktemp("f")
    write_file(folder / "a.safetensors", tensors, metadata)
    run("export", folder / "a.safetensors", "-o", folder / "b.zst")
    run("export", folder / "b.zst", "-o", folder / "c.safetensors")
    assert read_file(folder / "c.safetensors") == (tensors, metadata)
    assert list(read_file(folder / "c.safetensors")[0]) == list(tensors)


def test_transformers_finds_the_metadata_that_it_needs(tmp_path):
    """C2: older versions of transformers load only files whose metadata say `format: pt`."""
    library = pytest.importorskip("safetensors")
    write_file(
        tmp_path / "a.safetensors",
        {"fc.weight": random_tensor(0, "F32", (4, 8))},
        {"format": "pt", "step": "9"},
    )
    run("prune", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "-s", 0.5)
    with library.safe_open(tmp_path / "b.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "step": "9"}


# --- quantised checkpoints


def spread(seed, dtype, *shape):
    """Random values without zeros."""
    values = np.random.default_rng(seed).integers(1, 7, shape)
    return values.astype(dtype)


F16, F8 = np.float16, ml_dtypes.float8_e4m3fn
QUANTISED = {
    "int8 and a scale": (
        {"fc.weight": spread(0, np.int8, 8, 8), "fc.weight_scale": spread(1, np.float32, 8, 1)},
        ("1 weight (int8)", "1 scale or zero point"),
    ),
    "GPTQ": (
        {
            "q.qweight": spread(0, np.int32, 4, 8),
            "q.qzeros": spread(1, np.int32, 2, 4),
            "q.scales": spread(2, F16, 2, 8),
            "q.g_idx": spread(3, np.int32, 16),
        },
        ("1 weight (int32)", "3 scales or zero points"),
    ),
    "AWQ": (
        {
            "q.qweight": spread(0, np.int32, 8, 4),
            "q.qzeros": spread(1, np.int32, 2, 4),
            "q.scales": spread(2, F16, 2, 8),
        },
        ("1 weight (int32)", "2 scales or zero points"),
    ),
    "compressed-tensors, int4": (
        {
            "q.weight_packed": spread(0, np.int32, 8, 4),
            "q.weight_scale": spread(1, ml_dtypes.bfloat16, 8, 2),
            "q.weight_zero_point": spread(2, np.int32, 1, 2),
            "q.weight_shape": spread(3, np.int64, 2),
        },
        ("1 weight (int32)", "3 scales or zero points"),
    ),
    "float8 in blocks": (
        {"q.weight": spread(0, F8, 8, 8), "q.weight_scale_inv": spread(1, np.float32, 2, 2)},
        ("1 weight (float8_e4m3fn)", "1 scale or zero point"),
    ),
    "NVFP4": (
        {
            "q.weight": spread(0, np.uint8, 8, 8),
            "q.weight_scale": spread(1, F8, 8, 2),
            "q.weight_scale_2": spread(2, np.float32),
            "q.input_scale": spread(3, np.float32),
        },
        ("1 weight (uint8)", "3 scales or zero points"),
    ),
    "MXFP4": (
        {
            "experts.w_blocks": spread(0, np.uint8, 2, 8, 4),
            "experts.w_scales": spread(1, np.uint8, 2, 8),
            "experts.w_bias": spread(2, ml_dtypes.bfloat16, 8),
        },
        ("1 weight (uint8)", "1 scale or zero point"),
    ),
    "qwix": (
        {
            "fc/kernel/array/qvalue": spread(0, np.int8, 8, 8),
            "fc/kernel/array/scale": spread(1, np.float32, 1, 8),
            "fc/kernel/array/zero_point": spread(2, np.float32, 1, 8),
        },
        ("1 weight (int8)", "2 scales or zero points"),
    ),
    "float4 and power-of-two scales": (
        {
            "q.weight": spread(0, ml_dtypes.float4_e2m1fn, 8, 8),
            "q.weight_scale": spread(1, ml_dtypes.float8_e8m0fnu, 8, 2),
        },
        ("1 weight (float4_e2m1fn)", "1 scale or zero point"),
    ),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_and_their_scales_are_left_alone(tmp_path, name):
    """C4 and C5."""
    arrays, said = QUANTISED[name]
    head = {"lm_head.weight": spread(9, np.float32, 8, 8)}
    save_safetensors(tmp_path / "a.safetensors", arrays | head)
    out = tmp_path / "b.safetensors"
    text, _ = run("prune", tmp_path / "a.safetensors", "-o", out, "-s", 0.5)
    [line] = [line for line in text.splitlines() if line.startswith("quantised: ")]
    assert_says(line, *said, "not pruned", "scales", "before it is quantised")
    before, after = read_file(tmp_path / "a.safetensors")[0], read_file(out)[0]
    assert {name: after[name] for name in arrays} == {name: before[name] for name in arrays}
    assert np.count_nonzero(jaxprune.load(out)["lm_head.weight"]) == 32
    report = as_json("plan", tmp_path / "a.safetensors", "-s", 0.5)
    notes = {row["path"]: row["note"] for row in report["leaves"]}
    assert all(notes[name] for name in arrays)
    assert notes["lm_head.weight"] == ""
    assert line in report["notes"]


def test_small_floats_are_pruned_where_the_user_includes_them(tmp_path):
    w = spread(0, F8, 8, 8)
    save_safetensors(tmp_path / "a.safetensors", {"q.weight": w, "b": np.ones(2)})
    words = (tmp_path / "a.safetensors", "-s", 0.5)
    error = run("plan", *words, code=2)[1]
    assert_says(error, "q.weight", "quantised", "--include")
    run("prune", *words, "-o", tmp_path / "b.safetensors", "--include", "q.weight")
    pruned, _ = jaxprune.prune_params(w, 0.5)
    np.testing.assert_array_equal(
        jaxprune.load(tmp_path / "b.safetensors")["q.weight"], np.asarray(pruned)
    )


def test_a_file_without_quantised_weights_has_no_such_line(tmp_path):
    leaves = {"w": np.ones((4, 4)), "step": np.arange(3), "norm.scale": np.ones(4)}
    save_safetensors(tmp_path / "a.safetensors", leaves)
    assert as_json("plan", tmp_path / "a.safetensors", "-s", 0.5)["notes"] == []


@pytest.mark.parametrize("code", ("F6_E2M3", "F6_E3M2", "F8_E8M0", "I8"))
def test_dtypes_that_can_not_be_pruned_are_refused_where_they_are_included(tmp_path, code):
    write_file(tmp_path / "a.safetensors", {"w": random_tensor(0, code, (4, 8))})
    words = ("prune", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "-s", 0.5)
    _, error = run(*words, "--include", "w", code=2)
    assert_says(error, "w:", jax.numpy.dtype(jaxprune.load(words[1])["w"].dtype).name, "--exclude")
    assert not (tmp_path / "b.safetensors").exists()


def test_inspect_counts_every_dtype(tmp_path):
    tensors = {code: random_tensor(0, code, (4, 8)) for code in N_BITS}
    write_file(tmp_path / "a.safetensors", tensors)
    report = as_json("inspect", tmp_path / "a.safetensors")
    params = jaxprune.load(tmp_path / "a.safetensors")
    for row in report["leaves"]:
        array = params[row["path"]]
        assert row["dtype"] == array.dtype.name
        with np.errstate(invalid="ignore"):
            assert row["nonzero"] == int(np.sum(array != 0))


def test_planning_is_linear_work():
    """Names without a parent, of which each might be the scale of another."""
    work = []
    for n in (100, 200):
        weights = [Leaf(f"l{i}.weight", (8, 8), np.dtype("f4")) for i in range(n)]
        quantised = [Leaf(f"q{i}_w", (8, 8), np.dtype("i1")) for i in range(n)]
        scales = [Leaf(f"q{i}_scale", (8,), np.dtype("f4")) for i in range(n)]
        leaves = (*weights, *quantised, *scales)
        source = Source("safetensors", leaves, lambda _: iter(()), {"format": "pt"})
        rules = rules_for(structure="nm:2:4")
        [line] = [x for x in planned(source, 0.5, rules).report.notes if "quantised" in x]
        assert_says(line, f"{n} weights", f"{n} scales or zero points")
        work.append(n_calls(planned, source, 0.5, rules))
    assert work[1] < 2.2 * work[0]
