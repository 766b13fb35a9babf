"""Folders of pictures (PNG, JPEG, ...), read with pillow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emfast._check import check, message
from emfast._files import check_regular
from emfast.data.resize import crop_and_resize

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def read_folder(path: Path, crop: int | None = None, size: int | None = None, limit: int | None = None) -> Tensor:
    """Returns the (N, C, H, W) uint8 images of a folder, or the one of a single picture.

    Grey if every picture is grey, else RGB; an alpha channel is dropped. Hidden files and folders are left out.

    Arguments:
        path: The folder, searched recursively and sorted by path, or the picture.
        crop: See `load`.
        size: See `load`; with None the pictures must have one size.
        limit: Only the first so many pictures.
    Raises:
        ValueError: If there is no picture, one cannot be read, or the sizes are mixed.
    """
    files = sorted(_pictures(path)) if path.is_dir() else [path]
    check(len(files) > 0, "load", str(path), f"to hold pictures ({', '.join(SUFFIXES)})", "none", "Check the path")
    files = files[:limit]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pictures = list(pool.map(partial(_read_picture, crop=crop, size=size), files))
    shape = pictures[0].shape[1:]
    for file, picture in zip(files, pictures, strict=True):
        found = "x".join(map(str, picture.shape[1:]))
        requirement = f"to have the {shape[0]}x{shape[1]} pixels of {files[0].name}"
        check(picture.shape[1:] == shape, "load", str(file), requirement, found, "Give size=, which cuts and resizes")
    channels = max(len(picture) for picture in pictures)
    return torch.stack([picture.expand(channels, -1, -1) for picture in pictures])


def _pictures(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(root, name)


def _read_picture(path: Path, crop: int | None, size: int | None) -> Tensor:
    from PIL import Image

    check_regular("load", path)
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            pixels = np.array(picture.convert("L" if mode in GREY else "RGB")) if mode in GREY + COLOUR else None
    except Exception as error:  # pillow raises a dozen kinds for damaged files
        fix = "The file is damaged or no picture: remove it"
        raise ValueError(message("load", str(path), "to be a picture", str(error), fix)) from error
    if pixels is None:
        fix = "Store such data as floats in [-1, 1] in a .npz or .h5 file"
        raise TypeError(message("load", str(path), "to have 8 bits per channel", f"pillow mode {mode}", fix))
    tensor = torch.from_numpy(pixels)
    tensor = tensor[None] if tensor.dim() == 2 else tensor.permute(2, 0, 1)
    return crop_and_resize(tensor[None].contiguous(), crop, size)[0]
