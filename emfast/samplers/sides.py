"""Networks that halve their images, and images whose sides they cannot halve, or that have other channels."""

from typing import NoReturn

import torch
from torch import Tensor

from emfast._check import check
from emfast.diffusion import Denoiser
from emfast.diffusion.tiled import MULTIPLES, REFUSALS

CHANNELS = (1, 3, 2, 4)


def explain_refused_images(error: Exception, denoiser: Denoiser, x: Tensor, t: Tensor, function: str) -> NoReturn:
    """Raises a sentence if an error is of the sides or channels of the images, which the network does not take.

    Any other error is raised as it is. Nothing is asked of the network but other images: with sides that are odd
    multiples of 2, 4, ..., or with other channels.

    Arguments:
        error: What a step raised.
        denoiser: The denoiser.
        x: (B, C, H, W) what it was given.
        t: A time.
        function: The public function the caller used.
    """
    channels, height, width = x.shape[1:]
    if isinstance(error, torch.OutOfMemoryError) or _takes(denoiser, x, (channels, height, width), t):
        raise error
    for multiple in MULTIPLES:
        if _takes(denoiser, x, (channels, *((side // multiple | 1) * multiple for side in (height, width))), t):
            requirement = f"to have sides that are multiples of {multiple}, for the network halves its images"
            fix = "Crop or resize them, or give them a border of unobserved pixels"
            check(False, function, "images", requirement, f"{height} x {width}", fix)
    for count in CHANNELS:
        if _takes(denoiser, x, (count, height, width), t):
            check(False, function, "images", f"to have {count} channels, as the network has", channels)
    raise error


@torch.no_grad()
def _takes(denoiser: Denoiser, x: Tensor, shape: tuple[int, ...], t: Tensor) -> bool:
    try:
        return denoiser(x.new_zeros(1, *shape), t).shape == (1, *shape)
    except REFUSALS:
        return False
