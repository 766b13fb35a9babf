"""Folders of pictures (PNG, JPEG, TIFF, ...)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from emfast._check import check
from emfast.data.arrays import check_units
from emfast.data.files import PICTURES, distinct, files_below
from emfast.data.picture import Picture, read_picture
from emfast.data.resize import crop_and_resize


def read_folder(path: Path, crop: int | None = None, size: int | None = None, limit: int | None = None) -> Tensor:
    """Returns the (N, C, H, W) images of a folder, or of a single file: uint8 if all have 8 bits, else float32.

    Grey if every picture is grey, else RGB; an alpha channel is dropped. Hidden files and folders are left out. A file
    that several links lead to is read once.

    Arguments:
        path: The folder, searched recursively and sorted by path, or the picture.
        crop: See `load`.
        size: See `load`; with None the pictures must have one size.
        limit: Only the first so many images.
    Raises:
        ValueError: If there is no picture, one cannot be read or is an animation, the sizes are mixed, or floats are
            not in known units.
        TypeError: If a picture has neither 8 nor 16 bits per channel nor floats.
        OSError: If a folder cannot be read.
    """
    files = _pictures(path) if path.is_dir() else [path]
    check(len(files) > 0, "load", str(path), f"to hold pictures ({', '.join(PICTURES)})", "none", "Check the path")
    files = files[:limit]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pictures = list(pool.map(partial(_read, crop=crop, size=size, limit=limit), files))
    shape = pictures[0].images.shape[2:]
    for file, picture in zip(files, pictures, strict=True):
        found = "x".join(map(str, picture.images.shape[2:]))
        requirement = f"to have the {shape[0]}x{shape[1]} pixels of {files[0].name}"
        fix = "Give size=, which cuts and resizes"
        check(picture.images.shape[2:] == shape, "load", str(file), requirement, found, fix)
    ends = [end for picture in pictures if picture.floats for end in picture.images.aminmax()]
    if ends:
        check_units(torch.stack(ends), str(path))
    parts = [picture.images for picture in pictures]
    if any(part.dtype != torch.uint8 for part in parts):
        parts = [part.float() / 127.5 - 1 if part.dtype == torch.uint8 else part for part in parts]
    channels = max(part.shape[1] for part in parts)
    return torch.cat([part.expand(-1, channels, -1, -1) for part in parts])[:limit]


def _pictures(folder: Path) -> list[Path]:
    return distinct(sorted(path for path in files_below(folder) if path.name.lower().endswith(PICTURES)))


def _read(path: Path, crop: int | None, size: int | None, limit: int | None) -> Picture:
    images, floats = read_picture(path, limit)
    return Picture(crop_and_resize(images, crop, size), floats)
