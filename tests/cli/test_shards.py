"""Models in several safetensors files with an index: each command works on them as on one file."""

import contextlib
import errno
import json

import pytest
from hypothesis import given, strategies as st

import jaxprune
from helpers import assert_same, assert_says
from jaxprune._cli import commands
from jaxprune._files import shard_index, shards
from jaxprune._files.leaf_files import LeafReader
from safetensors_files import N_BITS, random_tensor, read_file, write_file
from sharded_models import (
    EXTRAS,
    INDEX,
    SECOND,
    WRONG,
    edited,
    foreign_shard,
    joined,
    new_model,
    read_model,
    two_shards,
    write_model,
)

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("zstandard")

from cli_command import as_json, run

pytestmark = pytest.mark.skip_in("debug_nans", reason="random bits hold NaN")


@pytest.fixture
def model(tmp_path):
    return new_model(tmp_path)


def assert_names(error, model, *said):
    """`assert_says`, without the folders that contain the model and what is in it."""
    assert_says(error.replace(f"{model}/", "").replace(f"{model.parent}/", ""), *said)


def files_in(folder):
    """The content of every file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@st.composite
def models(draw):
    """Tensors of any dtypes, spread over one to three shards; no shard is without tensors."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True))
    n_shards = draw(st.integers(1, min(3, len(names))))
    parts = {f"m-{i}-of-{n_shards}.safetensors": {} for i in range(n_shards)}
    for i, name in enumerate(names):
        code = draw(st.sampled_from(("F32", "BF16", "F32", "F16", *N_BITS)))
        shape = (4, 6) if not i else draw(st.sampled_from(((8,), (4, 6), (8, 3), (0, 4))))
        code = "F32" if not i else code
        which = i if i < n_shards else draw(st.integers(0, n_shards - 1))
        file = f"m-{which}-of-{n_shards}.safetensors"
        parts[file][f"{name}.weight"] = random_tensor(draw(st.integers(0, 99)), code, shape)
    return parts


@given(models(), st.sampled_from((0.3, 0.5, 0.9)))
def test_pruned_shards_hold_what_a_pruned_file_holds(tmp_path_factory, parts, sparsity):
    """C3."""
    folder = tmp_path_factory.mktemp("f")
    write_model(folder / "model", parts, {"format": "pt"}, total_parameters=7)
    write_file(folder / "one.safetensors", joined(parts))
    for name in ("model", f"model/{INDEX}"):
        out = folder / f"out-{len(name)}"
        run("prune", folder / name, "-o", out, "-s", sparsity)
        pruned, index = read_model(out)
        assert index["metadata"]["total_parameters"] == 7
        assert list(index["weight_map"]) == [n for part in parts.values() for n in part]
        assert {file: list(part) for file, part in pruned.items()} == {
            file: list(part) for file, part in parts.items()
        }
        assert all(read_file(out / file)[1] == {"format": "pt"} for file in pruned)
        assert set(files_in(out)) == set(files_in(folder / "model"))
        assert {name: files_in(out)[name] for name in EXTRAS} == EXTRAS
    run("prune", folder / "one.safetensors", "-o", folder / "b.safetensors", "-s", sparsity)
    assert joined(pruned) == read_file(folder / "b.safetensors")[0]


def test_shards_are_inspected_planned_and_exported(model, tmp_path):
    write_file(tmp_path / "one.safetensors", joined(two_shards()), {"format": "pt"})
    for words in (("inspect", "--quick"), ("plan", "-s", 0.5, "--exclude", "a.*")):
        one = as_json(words[0], tmp_path / "one.safetensors", *words[1:])
        many = as_json(words[0], model, *words[1:])
        assert many["leaves"] == one["leaves"]
        assert many.get("bytes") == one.get("bytes")
    report = as_json("inspect", model)
    shards = list(model.glob("*.safetensors"))
    assert (report["kind"], report["file_bytes"]) == ("shards", sum(map(file_size, shards)))
    run("export", model, "-o", tmp_path / "all.safetensors")
    assert read_file(tmp_path / "all.safetensors") == read_file(tmp_path / "one.safetensors")
    run("export", model, "-o", tmp_path / "all.zst")
    assert_same(jaxprune.load(tmp_path / "all.zst"), jaxprune.load(tmp_path / "one.safetensors"))
    run("export", model, "-o", tmp_path / "copy-1.5B")  # a name with a dot
    assert read_model(tmp_path / "copy-1.5B") == read_model(model)


def file_size(path):
    return path.stat().st_size


@pytest.mark.parametrize("name", ("global", "erk"))
def test_budgets_span_all_shards(model, tmp_path, name):
    write_file(tmp_path / "one.safetensors", joined(two_shards()))
    words = ("-s", 0.5, "--distribution", name)
    run("prune", model, "-o", tmp_path / "out", *words)
    run("prune", tmp_path / "one.safetensors", "-o", tmp_path / "b.safetensors", *words)
    assert joined(read_model(tmp_path / "out")[0]) == read_file(tmp_path / "b.safetensors")[0]


def test_what_was_written_is_counted(model, tmp_path):
    out = tmp_path / "out"
    report = as_json("prune", model, "-o", out, "-s", 0.5)
    written = [*out.glob("*.safetensors"), out / INDEX]
    assert (report["out"], report["bytes"]) == (str(out), sum(map(file_size, written)))
    assert report["left_out"] == []


def test_one_tensor_is_in_memory_at_a_time(model, tmp_path, monkeypatch):
    log, arrays, pruned = [], LeafReader.arrays, commands._pruned

    def logged(self):
        for name, array in arrays(self):
            log.append(f"read {name}")
            yield name, array

    def logged_prune(name, *args):
        log.append(f"prune {name}")
        return pruned(name, *args)

    monkeypatch.setattr(LeafReader, "arrays", logged)
    monkeypatch.setattr(commands, "_pruned", logged_prune)
    run("prune", model, "-o", tmp_path / "out", "-s", 0.5, "--include", r".*\.weight")
    expected = []
    for name in joined(two_shards()):
        expected += [f"read {name}"] + [f"prune {name}"] * name.endswith("weight")
    assert log == expected


def test_files_with_other_weights_are_not_copied(model, tmp_path):
    """They would be mistaken for pruned weights."""
    others = ("consolidated.safetensors", "pytorch_model.bin", "onnx/model.onnx")
    for name in others:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"weights")
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("x")
    text, _ = run("prune", model, "-o", tmp_path / "out", "-s", 0.5)
    for name in others:
        assert_says(text, f"left out: {name}", "weights", "index")
    shard_names = set(two_shards())
    assert set(files_in(tmp_path / "out")) == {INDEX, *shard_names, *EXTRAS}


def test_names_of_files_are_shown_without_escape_codes(model, tmp_path):
    (model / "\x1b[2J.bin").write_bytes(b"weights")
    text, _ = run("prune", model, "-o", tmp_path / "out", "-s", 0.5)
    assert_says(text, r"\x1b[2J.bin")
    assert "\x1b" not in text
    (model / "model-\x1b-of-00002.safetensors").write_bytes(b"no series")
    (model / "model-00001-of-00002.safetensors").rename(model / "x")
    assert "\x1b" not in run("inspect", model, code=1)[1]


def test_shards_that_are_links_are_read(model, tmp_path):
    """Caches of downloads keep the files elsewhere, and link to them."""
    (tmp_path / "blobs").mkdir()
    for i, path in enumerate(sorted(path for path in model.iterdir() if path.is_file())):
        path.rename(tmp_path / "blobs" / str(i))
        path.symlink_to(tmp_path / "blobs" / str(i))
    run("export", model, "-o", tmp_path / "out")
    assert files_in(tmp_path / "out").keys() == files_in(model).keys()
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_the_new_folder_may_be_inside_the_old_one(model):
    run("prune", model, "-o", model / "pruned", "-s", 0.5)
    assert set(files_in(model / "pruned")) == {INDEX, *two_shards(), *EXTRAS}
    run("prune", model, "-o", model / "pruned", "-s", 0.6, "--force")
    assert set(files_in(model / "pruned")) == {INDEX, *two_shards(), *EXTRAS}


# --- what is wrong is said before anything is written


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_index_is_an_error_before_anything_is_written(model, tmp_path, name):
    change, said = WRONG[name]
    change(model)
    before = files_in(tmp_path)
    for words in (("prune", "-s", 0.5, "-o", tmp_path / "out"), ("inspect",)):
        _, error = run(words[0], model, *words[1:], code=1)
        assert_names(error, model, *said)
        assert len(error.splitlines()) == 1
        assert "\x1b" not in error
    assert files_in(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_an_index_of_any_size_is_not_read(model, monkeypatch):
    monkeypatch.setattr(shard_index, "_MAX_BYTES", 10)
    assert_names(run("inspect", model, code=1)[1], model, f"{INDEX}:", "bytes")


def test_an_index_without_metadata_keeps_none(model, tmp_path):
    edited(lambda index: index.pop("metadata"))(model)
    run("prune", model, "-o", tmp_path / "out", "-s", 0.5)
    assert list(json.loads((tmp_path / "out" / INDEX).read_text())) == ["weight_map"]


@pytest.mark.parametrize(
    "out, code, said",
    (
        ("model", 2, ("--out", "folder that is read")),
        (f"model/{SECOND}", 2, ("--out", "one of the files that are read")),
        (f"model/{INDEX}", 1, (f"{INDEX}:", "is a file", "folder")),
        ("other", 1, ("other:", "other weights", "old.safetensors")),
        ("file", 1, ("file:", "is a file", "folder")),
    ),
)
def test_shards_are_not_written_over_what_is_read_or_other_weights(
    model, tmp_path, out, code, said
):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "old.safetensors").write_bytes(b"old")
    (tmp_path / "file").write_bytes(b"old")
    before = files_in(tmp_path)
    _, error = run("prune", model, "-o", tmp_path / out, "-s", 0.5, "--force", code=code)
    assert_names(error, model, *said)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("existing", (False, True))
@pytest.mark.parametrize("kind", (KeyboardInterrupt, OSError))
def test_what_stops_the_writing_leaves_no_half_written_folder(
    model, tmp_path, monkeypatch, kind, existing
):
    """An interrupt or a full disk at any tensor, at the index, and at any other file."""
    words = ("prune", model, "-o", tmp_path / "out", "-s", 0.5)
    if existing:
        run("export", model, "-o", tmp_path / "out")
        words = (*words, "--force")
    before = files_in(tmp_path)
    pruned, copied, index_text = commands._pruned, shards._copy, shards._index_text
    for nth in range(3 + 1 + len(EXTRAS)):
        steps = iter(range(100))

        def stopping(function, nth=nth, steps=steps):
            def call(*args):
                if next(steps) == nth:
                    raise kind(errno.ENOSPC, "No space left on device", "x")
                return function(*args)

            return call

        with contextlib.ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(commands, "_pruned", stopping(pruned))
            patch.setattr(shards, "_copy", stopping(copied))
            patch.setattr(shards, "_index_text", stopping(index_text))
            run(*words, code=130 if kind is KeyboardInterrupt else 1)
        assert files_in(tmp_path) == before
        assert (tmp_path / "out").exists() == existing
        assert not list(tmp_path.glob(".*"))


def test_a_shard_that_changes_while_it_is_read_is_an_error(model, tmp_path, monkeypatch):
    write = commands.write

    def changing(*args):
        foreign_shard(model)
        return write(*args)

    monkeypatch.setattr(commands, "write", changing)
    _, error = run("prune", model, "-o", tmp_path / "out", "-s", 0.5, code=1)
    assert_names(error, model, f"{SECOND}:", "has changed")
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_after_the_plan_is_an_error(tmp_path, monkeypatch):
    file, planned = tmp_path / "a.safetensors", commands.planned
    write_file(file, {"w": random_tensor(0, "F32", (4, 8))})

    def changing(*args, **others):
        plan = planned(*args, **others)
        write_file(file, {"w": random_tensor(0, "F32", (8, 4))})
        return plan

    monkeypatch.setattr(commands, "planned", changing)
    _, error = run("prune", file, "-o", tmp_path / "b.safetensors", "-s", 0.5, code=1)
    assert_says(error, f"{file}:", "has changed")
    assert list(tmp_path.iterdir()) == [file]


def test_the_last_shard_is_read_to_its_end(model, tmp_path):
    """A shard may be compressed; damage is seen at its end, and then nothing is written."""
    zstandard = pytest.importorskip("zstandard")
    data = zstandard.ZstdCompressor(write_checksum=True).compress((model / SECOND).read_bytes())
    (model / SECOND).write_bytes(data)
    run("export", model, "-o", tmp_path / "good")
    assert joined(read_model(tmp_path / "good")[0]) == joined(two_shards())
    (model / SECOND).write_bytes(data + b"x")
    _, error = run("export", model, "-o", tmp_path / "out", code=1)
    assert_names(error, model, f"{SECOND}:", "damaged")
    assert not (tmp_path / "out").exists()


# --- an index is not trusted

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
file_names = st.sampled_from((SECOND, "model-00001-of-00002.safetensors", "x", "", "/", ".."))
entries = st.dictionaries(
    st.sampled_from((*joined(two_shards()), "new", "", "\x1b", "a" * 5000)),
    file_names | json_values,
    max_size=6,
)


@given(st.fixed_dictionaries({}, optional={"metadata": json_values, "weight_map": entries}))
def test_any_index_is_read_or_refused_with_a_line(tmp_path_factory, index):
    folder = tmp_path_factory.mktemp("f") / "model"
    write_model(folder, two_shards())
    (folder / INDEX).write_text(json.dumps(index))
    with contextlib.suppress(ValueError, FileNotFoundError):
        assert set(shard_index.read_index(folder / INDEX).names) == set(joined(two_shards()))


@given(st.binary(max_size=64), st.integers(0, 200))
def test_any_bytes_in_an_index_are_refused_with_a_line(tmp_path_factory, data, place):
    folder = tmp_path_factory.mktemp("f") / "model"
    write_model(folder, two_shards())
    before = (folder / INDEX).read_bytes()
    place = min(place, len(before))
    (folder / INDEX).write_bytes(before[:place] + data + before[place + len(data) :])
    with contextlib.suppress(ValueError, FileNotFoundError):
        shard_index.read_index(folder / INDEX)
