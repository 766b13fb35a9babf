"""The misfit of images behind a Gaussian blur, at the image sizes of the E-step."""

from collections.abc import Iterator
from functools import partial

import torch
from measure import Case, images
from torch import Tensor

from emfast.ops import separable_blur_misfit

SHAPES = [(64, 1, 32, 32), (256, 3, 32, 32), (4, 3, 256, 256)]
DTYPES = (torch.float32, torch.bfloat16)
TAPS = torch.softmax(-0.125 * torch.arange(-4, 5).square(), 0)  # 9 of standard deviation 2


def matrix(length: int) -> Tensor:
    """The blur of an axis as a matrix, reflection included."""
    source = torch.arange(length)[:, None] + torch.arange(-4, 5)
    source = (length - 1) - ((length - 1) - source.abs()).abs()
    return torch.zeros(length, length).scatter_add_(1, source, TAPS.expand(length, -1).contiguous())


def native(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in native torch, with the padding in one matrix per axis: faster than convolutions."""
    residual = y - rows @ x @ columns.mT
    return residual, residual.square().flatten(1).sum(1), rows.mT @ residual @ columns


def ours(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, taps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The op."""
    return separable_blur_misfit(x, y, taps, taps)


def cases(device: torch.device) -> Iterator[Case]:
    """Yields the rows of the table. It reads x and y, and writes the residual and its adjoint."""
    for count, *size in SHAPES:
        shape = (images(count, device), *size)
        for dtype in DTYPES:
            x, y = torch.randn(2, *shape, device=device).to(dtype).unbind()
            inputs = (x, y, *(matrix(length).to(device, dtype) for length in shape[2:]))
            call = partial(ours, taps=TAPS.to(device))
            label = " x ".join(map(str, shape))
            traffic = {"forward": 4 * x.nbytes}
            yield Case("separable_blur_misfit", label, dtype, "contiguous", inputs, call, native, traffic)
