"""The misfit of masked images, at the image sizes of the E-step."""

from collections.abc import Iterator

import torch
from measure import Case, images
from torch import Tensor

from emfast.ops import mask_misfit

SHAPES = [(64, 1, 32, 32), (256, 3, 32, 32), (4, 3, 256, 256)]
DTYPES = (torch.float32, torch.bfloat16)


def native(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in native torch."""
    mask = mask.to(x.dtype)
    residual = y - mask * x
    return residual, residual.square().flatten(1).sum(1), mask * residual


def cases(device: torch.device) -> Iterator[Case]:
    """Yields the rows of the table. It reads x, y and the mask, and writes the residual and its adjoint."""
    for count, *size in SHAPES:
        shape = (images(count, device), *size)
        for dtype in DTYPES:
            x, y = torch.randn(2, *shape, device=device).to(dtype).unbind()
            mask = (torch.rand(shape[0], 1, *shape[2:], device=device) > 0.5).float()
            traffic = {"forward": 4 * x.nbytes + mask.nbytes}
            label = " x ".join(map(str, shape))
            yield Case("mask_misfit", label, dtype, "contiguous", (x, y, mask), mask_misfit, native, traffic)
