"""The misfit of masked images."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grid import grid, place
from ._launch import launch

BLOCK = 1024  # pixels of one channel per program


@triton.jit
def mask_misfit_kernel(x, y, mask, residual, partial, adjoint, channels, pixels, mask_stride, BLOCK: tl.constexpr):
    """Writes r = y - m x and m r of BLOCK pixels of one channel, and the sum of their r^2 to partial (B, C, blocks).

    Grid: images x channels x blocks. Moves x, y, the mask (once per channel), r and m r once.
    """
    plane, first = place(pixels, BLOCK)
    p = first + tl.arange(0, BLOCK)
    inside = p < pixels
    offset = plane * pixels + p
    m = tl.load(mask + plane // channels * mask_stride + p, mask=inside, other=0.0).to(tl.float32)
    r = tl.load(y + offset, mask=inside, other=0.0).to(tl.float32)
    r -= m * tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(residual + offset, r.to(residual.dtype.element_ty), mask=inside)
    tl.store(adjoint + offset, (m * r).to(adjoint.dtype.element_ty), mask=inside)
    tl.store(partial + tl.program_id(0), tl.sum(r * r))


def mask_misfit(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the kernel; the arguments are the op's."""
    x, y, mask = x.contiguous(), y.contiguous(), mask.contiguous()
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    blocks = triton.cdiv(pixels, BLOCK)
    residual, adjoint = torch.empty_like(x), torch.empty_like(x)
    partial = torch.empty(batch, channels * blocks, dtype=torch.float32, device=x.device)
    stride = pixels if len(mask) > 1 else 0
    with torch.cuda.device_of(x):
        arguments = (x, y, mask, residual, partial, adjoint, channels, pixels, stride)
        launch(mask_misfit_kernel, grid(batch * channels, pixels, BLOCK), *arguments, BLOCK=BLOCK)
    return residual, partial.sum(1), adjoint
