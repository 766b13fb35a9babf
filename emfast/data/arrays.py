"""Arrays in .npy, .npz, .safetensors and .h5 files, and the sets of images among them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emfast import _safetensors
from emfast._check import check, message
from emfast._files import verified
from emfast.data.array_rows import Array, Hdf5Rows, npz_array, rows_of_array
from emfast.data.file_rows import FileRows, Part
from emfast.data.files import ARRAYS, format_of
from emfast.data.rows import Rows, mapped, picked, pieces, small

ORIGIN = "emfast.json"  # the array that tells where imported observations come from
COLOURS = (3, 4)  # the channels of one picture, with its transparency or without


def split_key(source: str) -> tuple[Path, str | None]:
    """Returns the path and the key of `path:key`; the key is None when there is none."""
    path, colon, key = source.rpartition(":")
    found = Path(path).suffix.lower() in ARRAYS or Path(path).is_file()
    if colon and key and found and not os.path.lexists(os.path.expanduser(source)):
        return Path(path).expanduser(), key
    return Path(source).expanduser(), None


def read_array(source: str | os.PathLike[str], usual: str) -> Tensor:
    """Returns the array of a file: the only one, the one of the usual name, or that of `path:key`.

    Arguments:
        source: The file, or `path:key`.
        usual: The name of the array that is taken where there are several and no key is given.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or the key unknown or missing.
        TypeError: If it does not hold numbers.
    """
    path, key = split_key(os.fspath(source))
    if not path.exists():
        raise FileNotFoundError(message("load", str(path), "to exist", "nothing there", "Check the path"))
    arrays = ArrayFile(path)
    return arrays.read(arrays.choose(key, usual))


def read_images(path: Path, key: str | None = None, limit: int | None = None) -> Tensor | Rows:
    """Returns the (N, C, H, W) images, uint8 or float32, of an array file.

    Arguments:
        path: The file.
        key: The array in it; None takes the one called "images", or the only one.
        limit: Only the first so many images.
    Raises:
        ValueError: If the file is damaged, the key unknown, or the array not a set of images in known units.
        TypeError: If its values are neither 8-bit nor float.
    """
    arrays = ArrayFile(path)
    key = arrays.choose(key, "images")
    label = str(path) if arrays.format == "npy" else f"{path}:{key}"
    images = channels_first(arrays.rows(key, limit), arrays.shape(key), label)
    if images.dtype == torch.uint8:
        return images
    good = images.dtype.is_floating_point
    check(good, "load", label, "to hold uint8 or float values", images, "Convert it to one of them", TypeError)
    check_units(images, label)
    return mapped(images, torch.Tensor.float)


class ArrayFile:
    """The arrays of a file by name, read one at a time.

    Arguments:
        path: A .npy (its array has the name "array"), .npz, .safetensors or .h5 file, told by its content.
    Raises:
        ValueError: If it is damaged; the sentence names it.
        RuntimeError: If it is HDF5 and h5py is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.format = path, format_of(path)
        known = self.format in ARRAYS.values()
        check(known, "load", str(path), f"to be an array file ({', '.join(ARRAYS)})", "another content")
        if self.format == "safetensors":
            names = set(verified(path)[0])
        else:
            with self._open() as arrays:
                names = set(arrays)
        self.has_origin = ORIGIN in names
        self.names = sorted(names - {ORIGIN})

    def choose(self, key: str | None, usual: str) -> str:
        """Returns the key, if there is such an array; with None that of the only array, or the usual one.

        Arguments:
            key: The name that the user gave; None if none.
            usual: The name that is taken where there are several.
        """
        fix = f"Write {self.path.name}:KEY with KEY one of {', '.join(self.names)}"
        if key is None:
            good = len(self.names) == 1 or usual in self.names
            found = f"{len(self.names)} others" if self.names else "an empty file"
            requirement = f"to hold one array or one called {usual}"
            check(good, "load", str(self.path), requirement, found, fix if self.names else None)
            key = usual if usual in self.names else self.names[0]
        check(key in self.names, "load", str(self.path), f"to hold {key!r}", "no such array", fix)
        return key

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an array."""
        return tuple(self.rows(name).shape)

    def rows(self, name: str, limit: int | None = None) -> Tensor | Rows:
        """Returns an array to be read when it is asked for, as `read` gives it; what is small is read now.

        Arguments:
            name: The array.
            limit: Only the first so many rows.
        """
        if self.format == "safetensors":
            place = verified(self.path)[0][name]
            if len(place.shape) == 0:
                return self.read(name)
            part = Part(self.path, place.start, place.shape[0])
            rows = picked(FileRows([part], place.shape[1:], place.dtype), slice(0, limit))
            return small(rows) if isinstance(rows, Rows) else rows
        with self._open() as arrays:
            array = npz_array(self.path, name) if self.format == "npz" else _place(arrays[name])
            if array is not None and array.is_plain and math.prod(array.shape) > 0:
                source = Hdf5Rows(self.path, name, array) if self.format == "hdf5" else name
                return rows_of_array(self.path, array, source, limit)
        return self.read(name, limit)

    def read(self, name: str, limit: int | None = None) -> Tensor:
        """Returns an array, only its first rows if there is a limit.

        Arguments:
            name: The array.
            limit: How many rows; none: all.
        """
        if self.format == "safetensors":
            tensor = _safetensors.read(self.path, verified(self.path)[0][name])
            return tensor[:limit] if tensor.ndim else tensor
        with self._open() as arrays:
            array = arrays[name]
            known = hasattr(array, "ndim")  # a .npz file may have members that are no arrays
            array = (array[:limit] if array.ndim else array[()]) if known else None
        check(known, "load", f"{self.path}:{name}", "to be an array", "another content", "Choose an array")
        array = np.asarray(array)
        label = f"{self.path}:{name}"
        good = array.dtype.kind in "buifc" and array.dtype.itemsize <= (16 if array.dtype.kind == "c" else 8)
        found = f"dtype {array.dtype}"
        check(good, "load", label, "to hold numbers", found, "Choose another array, or convert it", TypeError)
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))

    @contextmanager
    def _open(self) -> Iterator[Any]:
        h5py = require_h5py(self.path) if self.format == "hdf5" else None
        with ExitStack() as stack:
            try:
                if h5py is not None:
                    yield _datasets(stack.enter_context(h5py.File(self.path, "r")), h5py.Dataset)
                else:
                    content = np.load(self.path, allow_pickle=False, mmap_mode="r")
                    if isinstance(content, np.ndarray):
                        _check_length(self.path, content)
                        yield {"array": content}
                    else:
                        yield stack.enter_context(content)
            except Exception as error:  # numpy, zipfile and h5py raise a dozen kinds for damaged files
                fix = "The file is damaged or holds Python objects: restore it, or write it anew"
                sentence = message("load", str(self.path), "to be a whole array file", str(error), fix)
                raise ValueError(sentence) from error


def _check_length(path: Path, array: Any) -> None:
    """numpy reads the first of several arrays in a .npy file, and passes over whatever else stands behind it."""
    extra = path.stat().st_size - getattr(array, "offset", 0) - array.nbytes
    if extra:
        raise ValueError(f"{extra} bytes behind its array")


def _place(array: Any) -> Array | None:
    """Returns where an array lies that numpy or h5py has opened; None if its rows do not lie one after the other."""
    if isinstance(array, np.ndarray):
        ordered = isinstance(array, np.memmap) and array.flags.c_contiguous
        return Array(array.shape, array.dtype, array.offset) if ordered else None  # type: ignore[attr-defined]
    return Array(array.shape, array.dtype, array.id.get_offset()) if array.shape is not None else None


def _datasets(file: Any, kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, kind) else None)
    return found


def require_h5py(path: Path) -> Any:
    """Returns the module h5py, or says how to install it."""
    try:
        import h5py
    except ImportError as error:
        fix = "Install it with: pip install 'emfast[hdf5]'"
        raise RuntimeError(message("load", "the package h5py", f"to read {path}", "none", fix)) from error
    return h5py


def channels_first(
    array: Tensor | Rows, shape: tuple[int, ...], label: str, fix: str = "Store it as (N, C, H, W)"
) -> Tensor | Rows:
    """Returns (N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W): the channel axis is the smaller one.

    Arguments:
        array: The first rows of the array.
        shape: That of the whole array.
        label: Where it is from.
        fix: What to do where it may be one image with its channels.
    """
    if array.ndim == 3:
        stack = shape[0] not in COLOURS and shape[2] > max(COLOURS)
        found = f"{shape}, which may be one image with its channels"
        check(stack, "load", label, "to be a stack (N, H, W)", found, fix)
        return mapped(array, lambda rows: rows[:, None])
    check(array.ndim == 4, "load", label, "of shape (N, H, W), (N, H, W, C) or (N, C, H, W)", array)
    first, last = array.shape[1], array.shape[3]
    fix = "Store it as (N, C, H, W) with fewer channels than columns"
    check(first != last or first == 1, "load", label, "to have a channel axis smaller than its sides", array, fix)
    return array if first <= last else mapped(array, lambda rows: rows.permute(0, 3, 1, 2).contiguous())


def check_units(images: Tensor | Rows, label: str) -> None:
    """Raises a ValueError unless floats may be in data units; the label says where they are from.

    Arguments:
        images: (N, C, H, W) images, float.
        label: Where they are from.
    """
    check(math.prod(images.shape) > 0, "load", label, "to hold at least one image", images)
    ends = torch.stack([torch.stack(part.aminmax()) for _, part in pieces(images)])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    fix = "Scale the values to [-1, 1] (x * 2 - 1 from [0, 1]), or store them as uint8"
    # NaN compares false with everything: it is left to Images, which names the first such image.
    wrong = low >= 0 or low < -2 or high > 2
    check(not wrong, "load", label, "to hold floats in [-1, 1]", f"values from {low:.4g} to {high:.4g}", fix)
