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
    rows, columns = (_starts(side, size) for side in (height, width))
    parts = [images[..., top : top + size, left : left + size] for top in rows for left in columns]
    return torch.stack(parts, 1).flatten(0, 1)


def patch_places(count: int, sides: tuple[int, int], size: int) -> Tensor:
    """Returns where the patches of `cut_patches` are from, (N K, 3) int64: image, top and left.

    Arguments:
        count: N, the number of images.
        sides: Their height and width.
        size: The side of the patches.
    """
    rows, columns = (torch.tensor(_starts(side, size)) for side in sides)
    return torch.cartesian_prod(torch.arange(count), rows, columns)


def sharing_pixels(places: Tensor, others: Tensor, size: int) -> Tensor:
    """Returns which patches have pixels in common with some of the others, (N,) bool.

    Arguments:
        places: (N, 3), see `patch_places`.
        others: (M, 3), those of the others.
        size: The side of all.
    """
    found = torch.zeros(len(places), dtype=torch.bool)
    for other in others:
        far = (places - other).abs()
        found |= (far[:, 0] == 0) & (far[:, 1:] < size).all(1)
    return found


def _starts(side: int, size: int) -> list[int]:
    """Returns where the patches begin along a side; the last one ends with it, and may overlap the one before."""
    return [*range(0, side - size, size), side - size]
