"""Corrupted observations in files, with the parameters of the operator that made each of them."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from emfast._check import check
from emfast._files import write_file, write_tensors
from emfast.data.array_rows import write_npz
from emfast.data.arrays import ORIGIN, ArrayFile, require_h5py
from emfast.data.files import ARRAYS
from emfast.data.origin import Origin
from emfast.data.rows import Rows, first_not_finite, mapped

SUFFIXES = tuple(suffix for suffix in ARRAYS if suffix != ".npy")


def load_observations(path: str | os.PathLike[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns corrupted observations and the operator parameters stored beside them.

    Where nothing is observed y may hold anything, NaN too. Only the operator knows where that is: `Observations` looks.

    Arguments:
        path: A .npz, .safetensors or .h5 file with the observations as float `y` in data units, (N, C, H, W), or
            (N, ...) as the operator has them, and any other arrays as parameters with one row per observation, such as
            `mask` (N, 1, H, W).
    Returns:
        The observations, (N, ...) float32, and the parameters by name (floats as float32, booleans and integers as
        they are).
    Raises:
        ValueError: If the file is missing or damaged, has no `y`, an array has the wrong shape, or a parameter is not
            finite.
        TypeError: If `y` is not float or a parameter is not a number.
        RuntimeError: If it is HDF5 and h5py is not installed.
    """
    y, parameters = open_observations(path)
    return y[:], {name: value[:] for name, value in parameters.items()}


def open_observations(path: str | os.PathLike[str]) -> tuple[Tensor | Rows, dict[str, Tensor | Rows]]:
    """Returns what `load_observations` does, to be read when it is asked for.

    Arguments:
        path: The file.
    """
    path = Path(path).expanduser()
    check(path.exists(), "load_observations", str(path), "to exist", "nothing there", "Check the path")
    file = ArrayFile(path)
    fix = f"Name the observations y; the file has {', '.join(file.names)}"
    check("y" in file.names, "load_observations", str(path), "to hold an array y", "none", fix)
    arrays = {name: file.rows(name) for name in file.names}
    rows = _checked("load_observations", arrays, unobserved=("y",))
    return rows.pop("y"), rows


def save_observations(
    path: str | os.PathLike[str],
    y: Tensor | Rows,
    parameters: Mapping[str, Tensor | Rows] | None = None,
    origin: Origin | None = None,
) -> None:
    """Writes observations and their operator parameters to one file, atomically.

    Arguments:
        path: A .npz, .safetensors or .h5 file.
        y: The observations, (N, C, H, W) or (N, ...) float in data units.
        parameters: Tensors by name with one row per observation.
        origin: Where they come from, if they were imported.
    Raises:
        ValueError: If the suffix is unknown, a shape is wrong or a value is not finite.
        TypeError: If `y` is not float.
        RuntimeError: If it is HDF5 and h5py is not installed.
        OSError: If the file cannot be written; nothing partial is left.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    check(suffix in SUFFIXES, "save_observations", "path", f"to end in one of {', '.join(SUFFIXES)}", str(path))
    check("y" not in (parameters or {}), "save_observations", "parameters", "without the name y", "one named y")
    tensors = _checked("save_observations", {"y": y, **(parameters or {})})
    tensors |= {} if origin is None else {ORIGIN: origin.to_tensor()}
    if suffix == ".safetensors":
        return write_tensors(path, {name: tensor[:] for name, tensor in tensors.items()})
    if ARRAYS[suffix] != "hdf5":
        return write_file(path, lambda file: write_npz(file, tensors))
    h5py = require_h5py(path)
    arrays = {name: tensor[:].detach().cpu().numpy() for name, tensor in tensors.items()}

    def write(file: BinaryIO) -> None:
        with h5py.File(file, "w") as content:
            for name, array in arrays.items():
                content.create_dataset(name, data=array)

    return write_file(path, write)


def _checked(
    function: str, arrays: Mapping[str, Tensor | Rows], unobserved: Container[str] = ()
) -> dict[str, Tensor | Rows]:
    """The arrays, floats as float32; those that may be unobserved in places need not be finite."""
    y = arrays["y"]
    fix = "Store real and imaginary parts as channels" if y.dtype.is_complex else None
    check(y.dtype.is_floating_point, function, "y", "to be float, in data units", y, fix, TypeError)
    good = y.ndim > 1 and math.prod(y.shape) > 0
    check(good, function, "y", "of shape (N, C, H, W), or (N, ...) as the operator has it", y)
    found = {}
    for name, rows in arrays.items():
        good = rows.ndim > 0 and len(rows) == len(y)
        check(good, function, name, f"to have one row for each of the {len(y)} observations", rows)
        numbers = rows.dtype.is_floating_point or rows.dtype.is_complex
        first = first_not_finite(rows) if numbers and name not in unobserved else None
        fault, fix = f"NaN or inf in row {first}", "Repair or remove that observation"
        check(first is None, function, name, "to be finite", fault, fix)
        found[name] = mapped(rows, Tensor.float) if rows.dtype.is_floating_point else rows
    return found
