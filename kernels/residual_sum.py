"""The scaled sum of a few tensors and a bias per channel."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._group_norm_tiles import memory_format
from ._launch import launch
from ._tuned import tuned

TILE, WARPS = 4096, 4  # elements and warps: four 16-byte loads of bfloat16 for each thread, from every term


@triton.jit(do_not_specialize=["rows"])
def residual_sum_kernel(
    x, second, third, bias, y, rows, columns, channels, scale,
    LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK_R x BLOCK_C elements of y = scale (x + second + third + bias).

    Memory is a matrix: pixels x channels (LAST), or planes x pixels. Grid (blocks of rows, blocks of columns). Moves
    every term and y once.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    offset = row[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    h = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    if second is not None:
        h += tl.load(second + offset, mask=mask, other=0.0).to(tl.float32)
    if third is not None:
        h += tl.load(third + offset, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        if LAST:
            h += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
        else:
            h += tl.load(bias + row % channels, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    tl.store(y + offset, (h * scale).to(y.dtype.element_ty), mask=mask)


def residual_sum(x: Tensor, *rest: Any) -> Tensor:
    """Launches the kernel; the arguments are the op's."""
    *others, bias, scale = rest
    layout = memory_format(x)
    last, channels = layout != torch.contiguous_format, x.shape[1]
    terms = [None if t is None else t.contiguous(memory_format=layout) for t in (x, *others)]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    planes = x.shape[0] * channels
    rows, columns = (x.numel() // channels, channels) if last else (planes, x.numel() // planes)
    block_c = min(triton.next_power_of_2(columns), 128 if last else 1024)
    size, warps = tuned(
        "residual_sum", x, (x.element_size(), last, columns, sum(t is not None for t in terms)), (TILE, WARPS)
    )
    block_r = min(max(size // block_c, 1), triton.next_power_of_2(rows))
    tile = {"LAST": last, "BLOCK_R": block_r, "BLOCK_C": block_c, "num_warps": warps}
    grid = (triton.cdiv(rows, tile["BLOCK_R"]), triton.cdiv(columns, block_c))
    with torch.cuda.device_of(x):
        arguments = (*terms, None if bias is None else bias.contiguous(), y, rows, columns, channels, float(scale))
        launch(residual_sum_kernel, grid, *arguments, **tile)
    return y
