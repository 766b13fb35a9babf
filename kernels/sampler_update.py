"""The last line of a sampler's step."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grid import grid, place
from ._launch import launch
from .random import BLOCK, normals


@triton.jit(do_not_specialize=["seed"])
def update_kernel(x_t, x_0, guidance, table, k, ids, x_s, count, seed, BLOCK: tl.constexpr):
    """Writes 4 BLOCK elements of one image: x_s = c_x x_t + c_0 x_0 + std z + guidance.

    Grid: images x blocks. The coefficients and the step are read on the device, no noise is drawn where std is zero.
    Moves x_t, x_0, guidance and x_s once.
    """
    image, first = place(count, 4 * BLOCK)
    step = tl.load(k)
    row = table + 9 * step
    c_x, c_0, std = tl.load(row + 3).to(tl.float32), tl.load(row + 4).to(tl.float32), tl.load(row + 5).to(tl.float32)
    e = first + tl.arange(0, 4 * BLOCK)
    inside = e < count
    offset = image * count + e
    x = c_x * tl.load(x_t + offset, mask=inside).to(tl.float32)
    x += c_0 * tl.load(x_0 + offset, mask=inside).to(tl.float32)
    if std != 0:
        x += std * normals(seed, step, tl.load(ids + image), first // 4, BLOCK)
    if guidance is not None:
        x += tl.load(guidance + offset, mask=inside).to(tl.float32)
    tl.store(x_s + offset, x.to(x_s.dtype.element_ty), mask=inside)


def sampler_update(x_t: Tensor, *rest: Any) -> Tensor:
    """Launches the kernel; the arguments are the op's."""
    *tensors, seed = rest
    x_t, tensors = x_t.contiguous(), [None if t is None else t.contiguous() for t in tensors]
    x_s = torch.empty_like(x_t)
    if x_s.numel():
        count = x_t.numel() // len(x_t)
        with torch.cuda.device_of(x_t):
            launch(update_kernel, grid(len(x_t), count, 4 * BLOCK), x_t, *tensors, x_s, count, seed, BLOCK=BLOCK)
    return x_s
