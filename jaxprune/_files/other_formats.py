"""Files of formats that jaxprune does not read: what they are, and what to do instead."""

from pathlib import Path

from jaxprune._base.paths import listed
from jaxprune._files.stream import ZSTD_MAGIC

_TORCH = (
    "a PyTorch checkpoint. Loading one runs code, so jaxprune does not. Convert it in PyTorch: "
    "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
)
_PICKLE = (
    "a pickle. Loading one runs code, so jaxprune does not. If you trust it, load it in Python and "
    "write the params: jaxprune.save_safetensors('model.safetensors', params). From PyTorch: "
    "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
)
_NPY = (
    "a single array of NumPy, without a path that rules could match. Give it one: "
    "numpy.savez('model.npz', kernel=numpy.load(path))"
)
_JSON = "a JSON file. Give the file of the weights, such as model.safetensors"
_MSGPACK = (
    "a msgpack file of Flax. Convert it: jaxprune.save_safetensors('model.safetensors', "
    "flax.serialization.msgpack_restore(open(path, 'rb').read()))"
)
_GGUF = "a GGUF file, whose weights are quantised. Prune the model before it is converted to GGUF"
_ONNX = "an ONNX model. Prune the params that it was exported from, and export it again"
_HDF5 = "an HDF5 file. Load it with Keras or h5py, and write it with jaxprune.save_safetensors"
_TFLITE = "a TFLite model. Prune the params that it was converted from, and convert them again"
_PICKLES = {bytes((0x80, protocol)): _PICKLE for protocol in range(2, 6)}
_BY_MAGIC = {b"GGUF": _GGUF, b"\x89HDF": _HDF5, b"\x93NUMPY": _NPY, **_PICKLES}
_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_BY_SUFFIX = {
    **dict.fromkeys(_TORCH_SUFFIXES, _TORCH),
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
    ".json": _JSON,
    ".msgpack": _MSGPACK,
    ".gguf": _GGUF,
    ".onnx": _ONNX,
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".tflite": _TFLITE,
}
_OF_NUMPY = (".npz", ".npy")
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # the second of an archive without files


def check_format(path: Path) -> None:
    """Raises where a file is of a kind that is not supported.

    The content decides where it shows the format, and the suffix of the name otherwise.

    Raises:
      ValueError: says which kind it is, and what to do.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = Path(folder, "model").write_bytes(b"GGUF....")
      ...     check_format(Path(folder, "model"))
      Traceback (most recent call last):
      ...
      ValueError: .../model: is a GGUF file, whose weights are quantised. ...
    """
    if path.exists() and not path.is_file():
        raise ValueError(
            f"{path}: is a device or a pipe, but reading starts at several places. Copy what comes "
            "out of it to a file first."
        )
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(ZSTD_MAGIC) or head[8:9] == b"{":  # a header of safetensors is JSON
        return
    kind = next((kind for magic, kind in _BY_MAGIC.items() if head.startswith(magic)), None)
    if kind is None and head[4:8] == b"TFL3":
        kind = _TFLITE
    is_torch = path.suffix in _TORCH_SUFFIXES
    if is_torch and (kind is _PICKLE or head.startswith(ZIP_MAGICS)):
        kind = _TORCH
    elif kind is None and not head.startswith(ZIP_MAGICS):
        kind = _BY_SUFFIX.get(path.suffix)
    if kind is not None:
        raise ValueError(f"{path}: is {kind}.")


def check_no_zip(path: Path) -> None:
    """Raises where a file is an archive of arrays, which only the command line reads.

    Raises:
      ValueError: says what to do.

    Example:
      >>> import tempfile, numpy as np
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/model.npz", w=np.ones(2))
      ...     check_no_zip(Path(folder, "model.npz"))
      Traceback (most recent call last):
      ...
      ValueError: .../model.npz: is a zip file, as .npz files are. Read it with numpy.load(...
    """
    with path.open("rb") as file:
        if file.read(4) in ZIP_MAGICS:
            raise ValueError(
                f"{path}: is a zip file, as .npz files are. Read it with numpy.load(path), or "
                f"convert it in a shell: jaxprune export {path} -o model.safetensors."
            )


def check_own_name(path: Path, level: int | None) -> None:
    """Raises where `save` would write its format under the name of another one.

    Args:
      path: of the file.
      level: of zstd; None writes a file that readers of safetensors can open.

    Raises:
      ValueError: says which name to give.

    Example:
      >>> check_own_name(Path("model.safetensors.zst"), 3)
      >>> check_own_name(Path("model.npz"), 3)
      Traceback (most recent call last):
      ...
      ValueError: save: model.npz: writes safetensors with zstd, but the name ends in .npz. Name ...
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors" and level is not None:
        fix = (
            "Name it .safetensors.zst, pass level=None, or use jaxprune.save_safetensors for a "
            "file that other libraries load"
        )
    elif suffix in _BY_SUFFIX or suffix in _OF_NUMPY:
        fix = f"Name it {path.with_suffix('.safetensors.zst').name}"
    else:
        return
    written = "safetensors" if level is None else "safetensors with zstd"
    raise _misnamed("save", path, written, fix)


def check_plain_name(function: str, path: Path) -> None:
    """Raises where a plain safetensors file would get the name of another format.

    Example:
      >>> check_plain_name("save_safetensors", Path("model.safetensors"))
      >>> check_plain_name("save_safetensors", Path("model.safetensors.zst"))
      Traceback (most recent call last):
      ...
      ValueError: save_safetensors: model.safetensors.zst: writes safetensors without zstd, but ...
    """
    suffix = path.suffix.lower()
    name = _named_anew(path, ".safetensors")
    if suffix == ".zst":
        fix = f"Name it {name}, or use jaxprune.save for a compact file"
        raise _misnamed(function, path, "safetensors without zstd", fix)
    if suffix in _BY_SUFFIX or suffix in _OF_NUMPY:
        raise _misnamed(function, path, "safetensors", f"Name it {name}")


def check_inputs_name(function: str, path: Path) -> None:
    """Raises where an archive of NumPy, which `save_inputs` writes, would get another name.

    Example:
      >>> check_inputs_name("save_inputs", Path("inputs.npz"))
      >>> check_inputs_name("save_inputs", Path("inputs.safetensors"))
      Traceback (most recent call last):
      ...
      ValueError: save_inputs: inputs.safetensors: writes an archive of NumPy, but the name ends ...
    """
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX or suffix in (".npy", ".safetensors", ".zst"):
        fix = f"Name it {_named_anew(path, '.npz')}"
        raise _misnamed(function, path, "an archive of NumPy", fix)


def _named_anew(path: Path, suffix: str) -> str:
    """The name of a file with this suffix, in place of all that say what a file is."""
    while path.suffix.lower() in (".zst", ".safetensors", *_OF_NUMPY, *_BY_SUFFIX):
        path = path.with_suffix("")
    return f"{path.name}{suffix}"


def _misnamed(function: str, path: Path, written: str, fix: str) -> ValueError:
    suffix = path.suffix.lower()
    return ValueError(
        f"{function}: {path}: writes {written}, but the name ends in {suffix}. {fix}."
    )


def folder_hint(path: Path) -> str:
    """What a folder is that no command reads; empty where that is not known."""
    if weights := files_of_params(path):
        files = "the file" if len(weights) == 1 else "the files"
        return f", and has no index of shards; it has {files} {listed(list(map(str, weights)))}"
    names = sorted(p.name for p in path.iterdir())
    if "saved_model.pb" in names:
        return ", but a SavedModel of TensorFlow"
    if other := [name for name in names if Path(name).suffix in _BY_SUFFIX]:
        return f"; it has {path / other[0]}, which jaxprune does not read"
    return ""


def files_of_params(folder: Path) -> list[Path]:
    """The files in a folder that may be files of params, by their suffixes."""
    return sorted(p for p in folder.iterdir() if p.name.endswith((".safetensors", ".zst", ".npz")))
