"""A blur with a kernel for each image, its adjoint and its misfit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grid import grid, place
from ._launch import launch

BLOCK = 512  # elements of one image per program
REFLECT, CIRCULAR, CIRCULAR_ADJOINT, SPREAD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def source(i, k, half, length, MODE: tl.constexpr):
    """Where element i of the result reads for tap k; -1 or less, or `length` or more, is zero."""
    if MODE == SPREAD:
        s = i - k
    elif MODE == REFLECT:
        s = i + k - half
        s = tl.where(s < 0, -s, tl.where(s >= length, 2 * (length - 1) - s, s))
    else:
        s = i + k - half if MODE == CIRCULAR else i - k + half
        s = tl.where(s < 0, s + length, tl.where(s >= length, s - length, s))
    return s


@triton.jit
def blur_kernel(
    x, kernel, y, out, partial, channels, height, width, out_height, out_width, size, kernel_stride,
    MODE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK elements of one blurred image.

    Grid: images x blocks. With y it writes y minus that, and the sum of the squares to partial (images, blocks). SPREAD
    is the adjoint without its padding: the result has margins, which fold_kernel adds to what they mirror. x is
    gathered: size^2 reads of each element come from the caches, one from memory. Moves x, y and out once.
    """
    image, begin = place(channels * out_height * out_width, BLOCK)
    e = begin + tl.arange(0, BLOCK)
    inside = e < channels * out_height * out_width
    i, j = e // out_width % out_height, e % out_width
    plane = x + (image * channels + e // (out_height * out_width)) * height * width
    weights = kernel + image * kernel_stride
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(size):
        row = source(i, k, size // 2, height, MODE)
        known = inside & (row >= 0) & (row < height)
        for n in range(size):
            column = source(j, n, size // 2, width, MODE)
            some = known & (column >= 0) & (column < width)
            h = tl.load(plane + row * width + column, mask=some, other=0.0).to(tl.float32)
            total += tl.load(weights + k * size + n) * h
    first = image * channels * out_height * out_width
    if y is not None:
        total = tl.load(y + first + e, mask=inside, other=0.0).to(tl.float32) - total
        squares = tl.sum(tl.where(inside, total * total, 0.0))
        tl.store(partial + tl.program_id(0), squares)
    tl.store(out + first + e, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def fold_kernel(g, out, channels, height, width, half, BLOCK: tl.constexpr):
    """Writes BLOCK elements of one image: what g (B, C, H + 2 half, W + 2 half) has for a pixel and its mirror images.

    Grid: images x blocks. Moves g and out once.
    """
    image, begin = place(channels * height * width, BLOCK)
    e = begin + tl.arange(0, BLOCK)
    inside = e < channels * height * width
    i, j = e // width % height, e % width
    plane = g + (image * channels + e // (height * width)) * (height + 2 * half) * (width + 2 * half)
    total = tl.zeros((BLOCK,), tl.float32)
    for a in tl.static_range(3):
        row = i if a == 0 else -i if a == 1 else 2 * (height - 1) - i
        new = (a == 0) | ((row != i) & (row >= -half) & (row < height + half))
        for b in tl.static_range(3):
            column = j if b == 0 else -j if b == 1 else 2 * (width - 1) - j
            some = inside & new & ((b == 0) | ((column != j) & (column >= -half) & (column < width + half)))
            total += tl.load(plane + (row + half) * (width + 2 * half) + column + half, mask=some, other=0.0)
    tl.store(out + image * channels * height * width + e, total.to(out.dtype.element_ty), mask=inside)


def _blurred(
    x: Tensor, kernel: Tensor, mode: int, dtype: torch.dtype, y: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Launches a blur in one of the modes; returns the result, in a dtype, and the partial sums if y is given."""
    (batch, channels, height, width), size = x.shape, kernel.shape[2]
    border = size // 2 * 2 if mode == SPREAD.value else 0
    out = torch.empty(batch, channels, height + border, width + border, dtype=dtype, device=x.device)
    blocks = triton.cdiv(out[0].numel(), BLOCK)
    partial = None if y is None else torch.empty(batch, blocks, dtype=torch.float32, device=x.device)
    kernel, stride = kernel.float().contiguous(), size * size if len(kernel) > 1 else 0
    sizes = (channels, height, width, *out.shape[2:], size, stride)
    with torch.cuda.device_of(x):
        programs = grid(batch, out[0].numel(), BLOCK)
        launch(blur_kernel, programs, x, kernel, y, out, partial, *sizes, MODE=mode, BLOCK=BLOCK)
    return out, partial


def blur(x: Tensor, kernel: Tensor, circular: bool, adjoint: bool) -> Tensor:
    """Launches the blur; the arguments are the op's."""
    x = x.contiguous()
    if circular or not adjoint:
        modes = (REFLECT, CIRCULAR, CIRCULAR_ADJOINT)
        return _blurred(x, kernel, modes[circular + adjoint].value, x.dtype, None)[0]
    g, out = _blurred(x, kernel, SPREAD.value, torch.float32, None)[0], torch.empty_like(x)
    with torch.cuda.device_of(x):
        launch(fold_kernel, grid(len(x), x[0].numel(), BLOCK), g, out, *x.shape[1:], kernel.shape[2] // 2, BLOCK=BLOCK)
    return out


def blur_misfit(x: Tensor, y: Tensor, kernel: Tensor, circular: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the blur and its adjoint; the arguments are the op's."""
    mode = CIRCULAR if circular else REFLECT
    residual, partial = _blurred(x.contiguous(), kernel, mode.value, x.dtype, y.contiguous())
    if partial is None:  # never, with y
        raise ValueError
    return residual, partial.sum(1), blur(residual, kernel, circular, True)
