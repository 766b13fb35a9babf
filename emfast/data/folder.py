"""Folders of pictures (PNG, JPEG, TIFF, ...)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from emfast._check import check
from emfast.data.arrays import check_units
from emfast.data.file_rows import collect
from emfast.data.files import PICTURES, SUFFIXES, distinct, files_below
from emfast.data.picture import Picture, read_picture
from emfast.data.resize import crop_and_resize
from emfast.data.rows import Rows, picked

AHEAD = 64  # pictures in memory at once


def read_folder(
    path: Path, crop: int | None = None, size: int | None = None, limit: int | None = None
) -> Tensor | Rows:
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
    others = [] if files else [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES]
    fix = f"Name the file, as in {others[0]}" if others else "Check the path"
    check(len(files) > 0, "load", str(path), f"to hold pictures ({', '.join(PICTURES)})", "none", fix)
    files = files[:limit]
    rows, kind, wanted = _collect(files, None, crop, size, limit, str(path))
    if wanted != kind:  # the first picture was not like all others
        rows, *_ = _collect(files, wanted, crop, size, limit, str(path))
    return picked(rows, slice(0, limit))


class _Kind(NamedTuple):
    channels: int
    deep: bool  # more than 8 bits

    def holds(self, other: _Kind) -> bool:
        return other.channels <= self.channels and other.deep <= self.deep


def _collect(
    files: list[Path], kind: _Kind | None, crop: int | None, size: int | None, limit: int | None, label: str
) -> tuple[Tensor | Rows, _Kind, _Kind]:
    """Returns the images as one kind, that of the first by default, that kind, and the one that holds all of them.

    What it does not hold is left out.
    """
    kinds: list[_Kind] = []
    ends: list[Tensor] = []

    def parts() -> Iterator[Tensor]:
        shape: torch.Size | None = None
        for file, (images, floats) in _read_all(files, crop, size, limit):
            shape = shape or images.shape[2:]
            found = "x".join(map(str, images.shape[2:]))
            requirement = f"to have the {shape[0]}x{shape[1]} pixels of {files[0].name}"
            check(
                images.shape[2:] == shape, "load", str(file), requirement, found, "Give size=, which cuts and resizes"
            )
            ends.extend(images.aminmax() if floats else ())
            own = _Kind(images.shape[1], images.dtype != torch.uint8)
            kinds.append(own)
            common = kind or kinds[0]
            if common.holds(own):
                images = images.float() / 127.5 - 1 if common.deep and not own.deep else images
                yield images.expand(-1, common.channels, -1, -1)

    rows = collect(parts())
    if ends:
        check_units(torch.stack(ends), label)
    return rows, kind or kinds[0], _Kind(max(each.channels for each in kinds), any(each.deep for each in kinds))


def _read_all(
    files: list[Path], crop: int | None, size: int | None, limit: int | None
) -> Iterator[tuple[Path, Picture]]:
    """Yields the pictures of files in order, a few of which are read at once."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), AHEAD):
            some = files[start : start + AHEAD]
            yield from zip(some, pool.map(partial(_read, crop=crop, size=size, limit=limit), some), strict=True)


def _pictures(folder: Path) -> list[Path]:
    return distinct(sorted(path for path in files_below(folder) if path.name.lower().endswith(PICTURES)))


def _read(path: Path, crop: int | None, size: int | None, limit: int | None) -> Picture:
    images, floats = read_picture(path, limit)
    return Picture(crop_and_resize(images, crop, size)[:], floats)
