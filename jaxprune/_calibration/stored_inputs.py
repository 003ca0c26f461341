"""Files that hold `LayerInputs`: one `.npz` of NumPy, with the roles as JSON."""

from __future__ import annotations

import json
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune._base.arguments import as_file_path, shown
from jaxprune._base.on_host import to_host
from jaxprune._base.paths import shown_path
from jaxprune._calibration.inputs_of_leaves import LayerInputs
from jaxprune._calibration.moments import Moments
from jaxprune._files.atomic import atomic_file
from jaxprune._files.other_formats import check_inputs_name
from jaxprune._recipe.roles import AxisRoles

_ABOUT = "layer_inputs"  # the array with the JSON text


def save_inputs(path: str | os.PathLike[str], inputs: LayerInputs) -> None:
    """Writes what `layer_inputs` returned to a `.npz` file; `load_inputs` reads it.

    Args:
      path: of the file. An existing file is replaced.
      inputs: of `layer_inputs`.

    Raises:
      TypeError: `inputs` are not `LayerInputs`, or `path` is not a path.
      OSError: the file can't be written.

    Example:
      >>> import jax.numpy as jnp, jaxprune, tempfile
      >>> params = {"fc": {"kernel": jnp.ones((3, 2))}}
      >>> inputs = jaxprune.layer_inputs(lambda p, x: x @ p["fc"]["kernel"], params, jnp.eye(3))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_inputs(f"{folder}/inputs.npz", inputs)
      ...     jaxprune.load_inputs(f"{folder}/inputs.npz")["fc/kernel"].gram.shape
      (3, 3)
    """
    if not isinstance(inputs, LayerInputs):
        raise TypeError(
            f"save_inputs: inputs must come from jaxprune.layer_inputs, got {shown(inputs)}. Pass "
            "the file first: save_inputs(path, inputs)."
        )
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(inputs)):
        raise TypeError("save_inputs: inputs are traced values. Call it outside jit.")
    path = as_file_path("save_inputs", path, example="inputs.npz")
    check_inputs_name("save_inputs", path)
    about = {
        "roles": dict(inputs.roles),
        "without_roles": inputs.roles.without,
        "shapes": inputs.roles.shapes,
        "without": inputs.without,
    }
    arrays = {_ABOUT: np.array(json.dumps(about))}
    for name, moments in inputs.items():
        where = f"save_inputs: {shown_path(name)}"
        arrays[f"count/{name}"] = to_host(where, moments.count, "inputs")
        arrays[f"gram/{name}"] = to_host(where, moments.gram, "inputs")
    with (
        atomic_file(path) as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def load_inputs(path: str | os.PathLike[str]) -> LayerInputs:
    """Reads what `save_inputs` wrote.

    Args:
      path: of the file.

    Returns:
      The `LayerInputs` that were saved.

    Raises:
      TypeError: `path` is not a path.
      ValueError: the file was not written by `save_inputs`.
      FileNotFoundError: there is no such file.
      OSError: the file can't be read.

    Example:
      >>> import jax.numpy as jnp, jaxprune, tempfile
      >>> inputs = jaxprune.layer_inputs(
      ...     lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.eye(3)
      ... )
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jaxprune.save_inputs(f"{folder}/inputs.npz", inputs)
      ...     load_inputs(f"{folder}/inputs.npz").roles["w"]
      ('in', 'out')
    """
    path = as_file_path("load_inputs", path, example="inputs.npz")
    if path.is_dir():
        raise IsADirectoryError(
            f"{path}: is a folder. Give the file that save_inputs wrote, such as "
            f"{path / 'inputs.npz'}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays[_ABOUT]))
            moments = {
                name.removeprefix("gram/"): Moments(
                    jnp.asarray(arrays["count/" + name.removeprefix("gram/")]),
                    jnp.asarray(arrays[name]),
                )
                for name in arrays.files
                if name.startswith("gram/")
            }
            shapes = {name: tuple(shape) for name, shape in about["shapes"].items()}
            roles = AxisRoles(about["roles"], about["without_roles"], shapes)
            return LayerInputs(moments, roles, about["without"])
    except (ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"load_inputs: {path} was not written by jaxprune.save_inputs, or is damaged. Write it "
            "again with save_inputs(path, inputs)."
        ) from error
