"""Centre crop and resize, the same for every source."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from emfast._check import check
from emfast.data.file_rows import collect
from emfast.data.rows import Rows, pieces


def crop_and_resize(
    images: Tensor | Rows,  # (N, C, H, W)
    crop: int | None = None,
    size: int | None = None,
) -> Tensor | Rows:
    """Returns the centre square of images, resized with an antialiased bilinear filter.

    Arguments:
        images: uint8 or float32.
        crop: Side of the square in pixels; with None the shorter side if a size is given, else nothing is cut.
        size: Side of the result in pixels; None keeps the square as it is.
    Returns:
        The images, of the same dtype (uint8 rounded to nearest).
    Raises:
        ValueError: If the crop is larger than the images.
    """
    height, width = images.shape[-2:]
    if crop is None and size is None:
        return images
    side = min(height, width) if crop is None else crop
    check(side <= min(height, width), "load", "crop", f"to fit in images of {height}x{width} pixels", side)
    top, left = (height - side) // 2, (width - side) // 2
    cut = partial(_cut, box=(top, left, side), size=side if size is None else size)
    parts = (cut(part) for _, part in pieces(images))
    return collect(parts)


def _cut(images: Tensor, box: tuple[int, int, int], size: int) -> Tensor:
    top, left, side = box
    images = images[..., top : top + side, left : left + side]
    return images.contiguous() if size == side else _resize(images, size)


def _resize(images: Tensor, size: int) -> Tensor:
    resized = functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else resized
