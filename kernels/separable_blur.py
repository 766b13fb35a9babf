"""A separable blur, its adjoint and its misfit: one launch per axis."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grid import grid, place
from ._launch import launch

BLOCK = 1024  # elements of one image per program


@triton.jit
def axis_kernel(
    x, taps, y, out, partial, count, length, inner, size,
    CIRCULAR: tl.constexpr, ADJOINT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK elements of one image, blurred along an axis of `length` elements, `inner` apart.

    Grid: images x blocks. With y it writes y minus that, and the sum of the squares to partial (images, blocks). The
    adjoint of reflection reads a pixel and its two mirror images. x is gathered: `size` reads of each element come
    from the caches, one from memory. Moves x, y and out once.
    """
    image, begin = place(count, BLOCK)
    first, e = image * count, begin + tl.arange(0, BLOCK)
    inside = e < count
    i = e // inner % length
    line = x + first + (e - i * inner)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(size):
        weight = tl.load(taps + k)
        shift = size // 2 - k if ADJOINT else k - size // 2
        s = i + shift
        if CIRCULAR:
            s = tl.where(s < 0, s + length, tl.where(s >= length, s - length, s))
            h = tl.load(line + s * inner, mask=inside, other=0.0).to(tl.float32)
        elif ADJOINT:
            h = tl.load(line + s * inner, mask=inside & (s >= 0) & (s < length), other=0.0).to(tl.float32)
            s = shift - i
            h += tl.load(line + s * inner, mask=inside & (s >= 0) & (i > 0), other=0.0).to(tl.float32)
            s = 2 * (length - 1) - i + shift
            h += tl.load(line + s * inner, mask=inside & (s < length) & (i < length - 1), other=0.0).to(tl.float32)
        else:
            s = tl.where(s < 0, -s, tl.where(s >= length, 2 * (length - 1) - s, s))
            h = tl.load(line + s * inner, mask=inside, other=0.0).to(tl.float32)
        total += weight * h
    if y is not None:
        total = tl.load(y + first + e, mask=inside, other=0.0).to(tl.float32) - total
        squares = tl.sum(tl.where(inside, total * total, 0.0))
        tl.store(partial + tl.program_id(0), squares)
    tl.store(out + first + e, total.to(out.dtype.element_ty), mask=inside)


def blur_axis(
    x: Tensor, taps: Tensor, dim: int, circular: bool, adjoint: bool, dtype: torch.dtype, y: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Launches the kernel along a dimension; returns the result, in a dtype, and the partial sums if y is given."""
    count, blocks = x[0].numel(), triton.cdiv(x[0].numel(), BLOCK)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    partial = None if y is None else torch.empty(len(x), blocks, dtype=torch.float32, device=x.device)
    inner = x.shape[3] if dim == 2 else 1
    arguments = (x, taps.float().contiguous(), y, out, partial, count, x.shape[dim], inner, len(taps))
    with torch.cuda.device_of(x):
        launch(axis_kernel, grid(len(x), count, BLOCK), *arguments, CIRCULAR=circular, ADJOINT=adjoint, BLOCK=BLOCK)
    return out, partial


def separable_blur(x: Tensor, rows: Tensor, columns: Tensor, circular: bool, adjoint: bool) -> Tensor:
    """Launches both axes; the arguments are the op's."""
    h, _ = blur_axis(x.contiguous(), rows, 2, circular, adjoint, torch.float32)
    return blur_axis(h, columns, 3, circular, adjoint, x.dtype)[0]


def separable_blur_misfit(
    x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, circular: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches both axes of the blur and both of its adjoint; the arguments are the op's."""
    h, _ = blur_axis(x.contiguous(), rows, 2, circular, False, torch.float32)
    residual, partial = blur_axis(h, columns, 3, circular, False, x.dtype, y.contiguous())
    if partial is None:  # never, with y
        raise ValueError
    return residual, partial.sum(1), separable_blur(residual, rows, columns, circular, True)
