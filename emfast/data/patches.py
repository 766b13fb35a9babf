"""Large images, cut into patches to learn from."""

import torch
from torch import Tensor

from emfast._check import check


def cut_patches(images: Tensor, size: int, function: str = "cut_patches") -> Tensor:
    """Returns the patches of images, (N K, C, size, size): a grid that covers each, the last ones at its ends.

    Arguments:
        images: (N, C, H, W).
        size: The side of the patches, at most that of the images.
        function: The public function the caller used.
    Raises:
        ValueError: If the images are smaller.
    """
    height, width = images.shape[-2:]
    check(
        size <= min(height, width),
        function,
        "data.patch",
        f"to be <= {min(height, width)}, the side of the images",
        size,
    )
    rows, columns = ([*range(0, side - size, size), side - size] for side in (height, width))
    parts = [images[..., top : top + size, left : left + size] for top in rows for left in columns]
    return torch.stack(parts, 1).flatten(0, 1)
