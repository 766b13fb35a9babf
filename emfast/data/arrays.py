"""Arrays in .npy, .npz, .safetensors and .h5 files, and the sets of images among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emfast._check import check, message
from emfast._files import check_regular, read_tensors

HDF5 = (".h5", ".hdf5")
SUFFIXES = (".npy", ".npz", ".safetensors", *HDF5)


def split_key(source: str) -> tuple[Path, str | None]:
    """Returns the path and the key of `path:key`; the key is None when there is none."""
    path, colon, key = source.rpartition(":")
    if colon and key and Path(path).suffix in SUFFIXES and not Path(source).exists():
        return Path(path), key
    return Path(source), None


def read_images(path: Path, key: str | None = None, limit: int | None = None) -> Tensor:
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
    fix = f"Write {path.name}:KEY with KEY one of {', '.join(arrays.names)}"
    if key is None:
        good = len(arrays.names) == 1 or "images" in arrays.names
        found = f"{len(arrays.names)} others" if arrays.names else "an empty file"
        check(good, "load", str(path), "to hold one array or one called images", found, fix if arrays.names else None)
        key = "images" if "images" in arrays.names else arrays.names[0]
    check(key in arrays.names, "load", str(path), f"to hold {key!r}", "no such array", fix)
    label = str(path) if path.suffix == ".npy" else f"{path}:{key}"
    images = _channels_first(arrays.read(key, limit), label)
    if images.dtype == torch.uint8:
        return images
    good = images.is_floating_point()
    check(good, "load", label, "to hold uint8 or float values", images, "Convert it to one of them", TypeError)
    _check_units(images, label)
    return images.float()


class ArrayFile:
    """The arrays of a file by name, read one at a time.

    Arguments:
        path: A .npy (its array has the name "array"), .npz, .safetensors or .h5 file.
    Raises:
        ValueError: If it is damaged; the sentence names it.
        RuntimeError: If it is HDF5 and h5py is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as arrays:
            self.names = sorted(arrays)

    def read(self, name: str, limit: int | None = None) -> Tensor:
        """Returns an array, only its first rows if there is a limit."""
        with self._open() as arrays:
            array = arrays[name]
            known = hasattr(array, "ndim")  # a .npz file may have members that are no arrays
            array = (array[:limit] if array.ndim else array[()]) if known else None
        check(known, "load", f"{self.path}:{name}", "to be an array", "another content", "Choose an array")
        if isinstance(array, Tensor):
            return array
        array = np.asarray(array)
        label = f"{self.path}:{name}"
        good = array.dtype.kind in "buif" and array.dtype.itemsize <= 8
        found = f"dtype {array.dtype}"
        check(good, "load", label, "to hold numbers", found, "Choose another array, or convert it", TypeError)
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))

    @contextmanager
    def _open(self) -> Iterator[Any]:
        h5py = require_h5py(self.path) if self.path.suffix in HDF5 else None
        check_regular("load", self.path)
        with ExitStack() as stack:
            if self.path.suffix == ".safetensors":
                yield read_tensors(self.path)
                return
            try:
                if h5py is not None:
                    yield _datasets(stack.enter_context(h5py.File(self.path, "r")), h5py.Dataset)
                else:
                    content = np.load(self.path, allow_pickle=False, mmap_mode="r")
                    single = isinstance(content, np.ndarray)
                    yield {"array": content} if single else stack.enter_context(content)
            except Exception as error:  # numpy, zipfile and h5py raise a dozen kinds for damaged files
                fix = "The file is damaged or holds Python objects: restore it, or write it anew"
                sentence = message("load", str(self.path), "to be a whole array file", str(error), fix)
                raise ValueError(sentence) from error


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


def _channels_first(array: Tensor, label: str) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W): the channel axis is the smaller one."""
    if array.dim() == 3:
        return array[:, None]
    check(array.dim() == 4, "load", label, "of shape (N, H, W), (N, H, W, C) or (N, C, H, W)", array)
    first, last = array.shape[1], array.shape[3]
    fix = "Store it as (N, C, H, W) with fewer channels than columns"
    check(first != last or first == 1, "load", label, "to have a channel axis smaller than its sides", array, fix)
    return array if first <= last else array.permute(0, 3, 1, 2).contiguous()


def _check_units(images: Tensor, label: str) -> None:
    check(images.numel() > 0, "load", label, "to hold at least one image", images)
    low, high = float(images.min()), float(images.max())
    fix = "Scale the values to [-1, 1] (x * 2 - 1 from [0, 1]), or store them as uint8"
    # NaN compares false with everything: it is left to Images, which names the first such image.
    wrong = low >= 0 or low < -2 or high > 2
    check(not wrong, "load", label, "to hold floats in [-1, 1]", f"values from {low:.4g} to {high:.4g}", fix)
