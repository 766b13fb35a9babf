"""Networks that halve their images, and images whose sides they cannot halve."""

from typing import NoReturn

import torch
from torch import Tensor

from emfast._check import check
from emfast.diffusion import Denoiser

MULTIPLES = (2, 4, 8, 16, 32, 64)
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError)  # what a network raises for sides it does not take


def explain_refused_sides(error: Exception, denoiser: Denoiser, x: Tensor, t: Tensor, function: str) -> NoReturn:
    """Raises a sentence if an error is of the sides of the images, which the network does not take; else the error.

    Nothing is asked of the network but images of other sides: odd multiples of 2, 4, ...

    Arguments:
        error: What a step raised.
        denoiser: The denoiser.
        x: (B, C, H, W) what it was given.
        t: A time.
        function: The public function the caller used.
    """
    height, width = x.shape[-2:]
    if isinstance(error, torch.OutOfMemoryError) or _takes_sides(denoiser, x, height, width, t):
        raise error
    for multiple in MULTIPLES:
        other = [(side // multiple | 1) * multiple for side in (height, width)]
        if _takes_sides(denoiser, x, other[0], other[1], t):
            requirement = f"to have sides that are multiples of {multiple}, for the network halves its images"
            fix = "Crop or resize them, or give them a border of unobserved pixels"
            check(False, function, "images", requirement, f"{height} x {width}", fix)
    raise error


@torch.no_grad()
def _takes_sides(denoiser: Denoiser, x: Tensor, height: int, width: int, t: Tensor) -> bool:
    try:
        return denoiser(x.new_zeros(1, x.shape[1], height, width), t).shape[-2:] == (height, width)
    except REFUSALS:
        return False
