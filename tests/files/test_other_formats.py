"""Files and folders of kinds that are not supported: what they are, and what to do instead."""

import functools
import os
import zipfile

import numpy as np
import pytest

import jaxprune
from helpers import assert_says, says
from jaxprune._files.interchange import save_safetensors

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("zstandard")

from cli_command import as_json, run

OTHERS = {
    "model.pt": (b"\x80\x02}q\x00.", ("PyTorch", "weights_only=True", "safetensors")),
    "pytorch_model.bin": (b"\x80\x02}q\x00.", ("PyTorch", "runs code")),
    "params.pkl": (b"\x80\x05\x95", ("a pickle", "runs code", "jaxprune.save_safetensors")),
    "params": (b"\x80\x04\x95", ("a pickle", "safetensors.torch.save_file")),
    "kernel.npy": (b"\x93NUMPY\x01\x00", ("single array of NumPy", "numpy.savez(")),
    "config.json": (b'{"architectures": []}', ("JSON", "model.safetensors")),
    "model.pth": (b"anything", ("PyTorch", "safetensors")),
    "flax_model.msgpack": (b"\x81\xa6params", ("msgpack", "jaxprune.save_safetensors")),
    "model.onnx": (b"\x08\x07\x12\x07pytorch", ("ONNX", "export it again")),
    "model.gguf": (b"GGUF\x03\x00\x00\x00", ("GGUF", "before")),
    "renamed.safetensors": (b"GGUF\x03\x00\x00\x00", ("GGUF",)),
    "model.h5": (b"\x89HDF\r\n\x1a\n", ("HDF5", "Keras")),
    "model.tflite": (b"\x1c\x00\x00\x00TFL3", ("TFLite",)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_is_refused_with_what_to_do(tmp_path, name):
    data, said = OTHERS[name]
    file = tmp_path / name
    file.write_bytes(data)
    for words in (("inspect",), ("prune", "-o", tmp_path / "out.zst", "-s", 0.5)):
        _, error = run(words[0], file, *words[1:], code=1)
        assert_says(error, f"{file}:", *said)
        assert len(error.splitlines()) == 1
    with pytest.raises(ValueError, match=says(f"{file}:", *said)):
        jaxprune.load(file)
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_without_an_index_names_all_its_files(tmp_path):
    for name in ("a.safetensors", "b.npz"):
        (tmp_path / name).write_bytes(b"")
    _, error = run("inspect", tmp_path, code=1)
    assert_says(error, f"it has the files {tmp_path / 'a.safetensors'}, {tmp_path / 'b.npz'}")


def test_a_zip_of_pytorch_is_no_npz(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02.")
    _, error = run("inspect", tmp_path / "model.pt", code=1)
    assert_says(error, f"{tmp_path / 'model.pt'}:", "PyTorch")


def test_load_of_an_npz_says_how_to_read_it(tmp_path):
    """It was called damaged, although the command line reads it, and converts it as suggested."""
    file, converted = tmp_path / "model.npz", tmp_path / "model.safetensors"
    np.savez_compressed(file, **{"fc/kernel": np.eye(4, dtype=np.float32)})
    said = f"{file}:", "numpy.load(path)", f"jaxprune export {file} -o model.safetensors"
    for read in (jaxprune.load, jaxprune.load_metadata):
        with pytest.raises(ValueError, match=says(*said)):
            read(file)
    run("export", file, "-o", converted)
    assert np.array_equal(jaxprune.load(converted)["fc"]["kernel"], np.eye(4))


@pytest.mark.parametrize("name", ("model.bin", "model.pt", "model.onnx", "params"))
def test_the_content_counts_and_not_the_name(tmp_path, name):
    w = np.eye(8, dtype=np.float32)
    save_safetensors(tmp_path / "model.safetensors", {"w": w})
    (tmp_path / "model.safetensors").replace(tmp_path / name)
    assert as_json("inspect", tmp_path / name, "--quick")["kind"] == "safetensors"
    jaxprune.save(tmp_path / "model.zst", {"w": w})
    (tmp_path / "model.zst").replace(tmp_path / name)
    assert as_json("inspect", tmp_path / name, "--quick")["kind"] == "jaxprune"


@pytest.mark.parametrize(
    "name, said",
    (
        ("model.safetensors", ("no index of shards", "it has the file")),
        ("saved_model.pb", ("SavedModel",)),
        ("pytorch_model.bin", ("pytorch_model.bin", "does not read")),
        ("readme.txt", ("no orbax checkpoint", "shards with their index")),
    ),
)
def test_a_folder_of_another_kind_is_refused_with_what_to_do(tmp_path, name, said):
    pytest.importorskip("orbax.checkpoint")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).write_bytes(b"x")
    _, error = run("inspect", folder, code=1)
    assert_says(error, f"{folder}:", "folder")
    assert all(part in error for part in said)
    assert len(error.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_are_neither_read_nor_replaced(tmp_path):
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=says(f"{pipe}: is a device or a pipe", "Copy")):
        jaxprune.load(pipe)
    for save in (functools.partial(jaxprune.save, level=None), save_safetensors):
        with pytest.raises(FileExistsError, match=says(f"{pipe}: is a device or a pipe")):
            save(pipe, {"w": np.ones((2, 3)), "b": np.ones(3)})
    assert pipe.is_fifo()


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "target")
    save_safetensors(link, {"w": np.ones((2, 3)), "b": np.ones(3)})
    assert (tmp_path / "target").read_bytes() == b"old"
    assert not link.is_symlink()
    assert jaxprune.load(link)["w"].shape == (2, 3)
