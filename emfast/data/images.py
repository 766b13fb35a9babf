"""Images: a set of pictures of one size, in the units of the library, and `load`, which reads one from anywhere."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from emfast._check import check, message
from emfast.data.arrays import read_images, split_key
from emfast.data.cifar import read_cifar, training_files
from emfast.data.files import ARRAYS, format_of
from emfast.data.folder import read_folder
from emfast.data.idx import read_idx
from emfast.data.resize import crop_and_resize
from emfast.data.rows import Rows, first_not_finite, mapped, picked, pieces
from emfast.data.store import MANIFEST, Store

SAMPLE = Path(__file__).parent / "sample"
FORMATS = "a folder of pictures, .npy, .npz, .safetensors, .h5, IDX (.gz too) or CIFAR binary (.bin)"


class Images:
    """A set of images of one size, kept as they were read and given out as float32 in [-1, 1].

    Arguments:
        tensor: (N, C, H, W), uint8 (0 .. 255 stands for [-1, 1]) or float32 (data units); or such rows in files.
    Raises:
        TypeError: If the dtype is another.
        ValueError: If it is not 4-D, empty, or not finite (the first such image is named).
    """

    def __init__(self, tensor: Tensor | Rows) -> None:
        good = tensor.dtype in (torch.uint8, torch.float32)
        check(good, "Images", "tensor", "to be uint8 or float32", tensor, error=TypeError)
        check(tensor.ndim == 4, "Images", "tensor", "of shape (N, C, H, W)", tensor)
        check(math.prod(tensor.shape) > 0, "Images", "tensor", "to hold at least one image", tensor)
        if tensor.dtype == torch.float32:
            first = first_not_finite(tensor)
            if first is not None:
                fix = "Repair or remove it"
                raise ValueError(message("Images", "images", "to be finite", f"NaN or inf in image {first}", fix))
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        channels, height, width = self.tensor.shape[1:]
        return channels, height, width

    def __getitem__(self, ids: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Returns images as float32 in data units, (B, C, H, W), or (C, H, W) for a single int."""
        if isinstance(ids, Sequence):
            ids = torch.tensor(list(ids), dtype=torch.long)
        if isinstance(ids, Tensor):
            ids = ids.to(self.tensor.device)
        found = self.tensor[ids]
        return _in_data_units(found)

    @property
    def floats(self) -> Tensor | Rows:
        """All images as float32 in data units, (N, C, H, W)."""
        return mapped(self.tensor, _in_data_units)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Images({len(self)} x {self.shape}, {str(self.tensor.dtype).removeprefix('torch.')})"

    def subset(self, ids: slice | Sequence[int] | Tensor) -> Images:
        """Returns the images of some ids, in that order, as a set of their own."""
        chosen = copy(self)  # of which all are known to be finite
        chosen.__dict__.pop("fingerprint", None)
        chosen.tensor = picked(self.tensor, ids)
        check(len(chosen) > 0, "Images", "ids", "to name one image at least", "none")
        return chosen

    @cached_property
    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits that depend on every pixel, the shape and the dtype, and on nothing else."""
        return fingerprint(self.tensor)


def _in_data_units(pixels: Tensor) -> Tensor:
    """Returns pixels as float32 in data units, never the same memory."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels.clone()


def fingerprint(tensor: Tensor | Rows) -> str:
    """Returns 16 hexadecimal digits that depend on every value of a tensor, its shape and its dtype."""
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=8)
    for _, part in pieces(tensor):
        digest.update(part.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def load(
    source: str | os.PathLike[str], *, crop: int | None = None, size: int | None = None, limit: int | None = None
) -> Images:
    r"""Returns the images of a file or a folder.

    The content of a file tells its format; its name only where the content does not. 8-bit images stay 8-bit in memory,
    16-bit pictures become floats, 0 ... 65535 for [-1, 1]. Pictures are turned upright by their EXIF data; all pages of
    a TIFF file are images, animations are refused; of several links to one file the first is read. Floats are taken to
    be in data units, nominally [-1, 1], and kept as they are; arrays in [0, 1] or [0, 255] are refused, as nothing in a
    file says what they mean.

    Arguments:
        source: A folder of pictures (searched recursively, sorted by path), a reconstruction store, a .npy, .npz,
            .safetensors or .h5 file (`file.npz:key` selects an array; (N, H, W), (N, H, W, C) and (N, C, H, W) are
            told apart by the channel axis being the smallest), an IDX file (.gz too), a CIFAR-10 or CIFAR-100
            binary file or folder, or "sample:train", "sample:test" for the images that come with the library.
        crop: Cuts the centre square of this many pixels, before resizing (CelebA protocol: crop=140, size=64).
        size: Cuts the centre square and resizes it to size x size with an antialiased bilinear filter.
        limit: Only the first so many images.
    Returns:
        The images.
    Raises:
        ValueError: If the source is missing, empty, damaged, of mixed sizes without `size`, or not finite.
        TypeError: If its values are neither 8-bit nor float (pictures: nor 16-bit).
        RuntimeError: If an optional package is needed and missing.
    """
    for name, value in {"crop": crop, "size": size, "limit": limit}.items():
        check(value is None or value > 0, "load", name, "to be positive", value)
    if str(source).startswith("sample:"):
        part = str(source).removeprefix("sample:")
        check(part in ("train", "test"), "load", "source", "to be sample:train or sample:test", str(source))
        source = SAMPLE / f"{part}.npz"
    path, key = split_key(str(source))
    check(path.exists(), "load", str(path), "to exist", "nothing there", "Check the path")
    tensor = _read(path, key, limit)
    if tensor is None:
        return Images(read_folder(path, crop, size, limit))
    return Images(crop_and_resize(tensor, crop, size))


def _read(path: Path, key: str | None, limit: int | None) -> Tensor | Rows | None:
    """The images of a source, None if it holds pictures: those are cut and resized one by one as they are read."""
    if path.is_dir():
        if (path / MANIFEST).exists() and any(path.glob("shard-*.safetensors")):
            return picked(Store.open(path).rows(), slice(0, limit))
        files = training_files(path)
        return read_cifar(files, limit) if files else None
    kind = format_of(path)
    if kind in ARRAYS.values():
        return read_images(path, key, limit)
    check(kind is not None, "load", str(path), "to be of a known kind", path.name, f"Give {FORMATS}")
    check(key is None, "load", str(path), "to be an array file", f"a {kind} file and the key {key!r}", "Leave it out")
    if kind == "idx":
        return read_idx(path, limit)
    return read_cifar([path], limit) if kind == "cifar" else None
