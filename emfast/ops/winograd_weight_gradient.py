"""The weight gradient of a 3 x 3 convolution in float32 by Winograd's F(3 x 3, 2 x 2) or F(3 x 3, 2 x 4)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast._check import check
from emfast._library import register, run_cpp
from emfast.ops._winograd import ROWS, WIDTHS, A, B, G

LAST = torch.channels_last


def winograd_weight_gradient(
    grad: Tensor,  # (B, D, H', W')
    x: Tensor,  # (B, C, H, W)
    skip: Tensor | None = None,  # (B, C', H, W)
    *,
    upsample: bool = False,
    width: int = 2,
) -> Tensor:
    r"""Returns the gradient of the weight of `winograd_convolution`.

    .. math:: G^\top \left( \sum_t A y_{dt} A'^\top \odot B^\top x_{ct} B' \right) G' \quad \text{over tiles } t

    Arguments:
        grad: The gradient to the convolution's result; float32 or float64.
        x: The convolution's input.
        skip: A second input, read as if concatenated to x over channels.
        upsample: Whether x was first upsampled by two (nearest neighbours); tiles are of width 2 then.
        width: The columns of `grad` in a tile: 2, or 4: a quarter less to multiply, a third of a digit less exact.

    Returns:
        A contiguous tensor of shape (D, C + C', 3, 3), the same for any number of threads.

    Raises:
        ValueError: If shapes do not match, or the width is another.
        TypeError: If dtypes differ, or are neither float32 nor float64.

    References:
        | Fast Algorithms for Convolutional Neural Networks (Lavin & Gray, 2016), arXiv 1509.09308
    """
    name, scale = "winograd_weight_gradient", 2 if upsample else 1
    check(x.dim() == 4, name, "x", "of shape (B, C, H, W)", x)
    fits = skip is None or (skip.dim() == 4 and skip.shape[0] == x.shape[0] and skip.shape[2:] == x.shape[2:])
    check(fits, name, "skip", "of the shape of x but for its channels", skip)
    size = (x.shape[0], scale * x.shape[2], scale * x.shape[3])
    fits = grad.dim() == 4 and (grad.shape[0], *grad.shape[2:]) == size
    check(fits, name, "grad", f"of shape ({size[0]}, D, {size[1]}, {size[2]})", grad)
    fits = grad.dtype in (torch.float32, torch.float64)
    check(fits, name, "grad", "of dtype float32 or float64", grad, error=TypeError)
    for key, tensor in (("x", x), ("skip", skip)):
        same = tensor is None or tensor.dtype == grad.dtype
        check(same, name, key, f"of dtype {grad.dtype}", tensor, error=TypeError)
    check(width in WIDTHS[: 1 if upsample else 2], name, "width", f"to be one of {WIDTHS}, 2 if upsampled", width)
    result: Tensor = _op(grad, x, skip, upsample, width)
    return result


def is_slow(inputs: int, outputs: int) -> bool:
    """Returns whether oneDNN was measured to be as fast.

    Its time over the kernels', channels_last, two threads with AVX-512: batch 4, 128 to 128 channels at 32 x 32 1.7x,
    256 to 256 at 16 x 16 1.8x, at 8 x 8 1.8x and at 4 x 4 2.0x, 512 to 256 at 16 x 16 1.7x; batch 64, 64 to 64 at
    16 x 16 1.3x, 32 to 32 at 32 x 32 1.1x, 96 to 32 1.2x; but 16 to 64 at 16 x 16 1.0x, 64 to 16 0.6x, 1 to 32 at
    32 x 32 0.5x, and of batch 4 3 to 128 0.3x and 128 to 3 0.7x.

    Arguments:
        inputs, outputs: How many channels.
    """
    return inputs < 32 or outputs < 32


def reference(grad: Tensor, x: Tensor, skip: Tensor | None, upsample: bool, width: int) -> Tensor:
    """The specification; in float64, because its sums are as long as the batch has tiles."""
    h = (x if skip is None else torch.cat((x, skip), 1)).double()
    h = F.interpolate(h, scale_factor=2.0) if upsample else h
    (b, c), (a, e), (g, f) = ([m[n].to(x.device) for n in (ROWS, width)] for m in (B, A, G))
    bottom, right = h.shape[2] % 2, -h.shape[3] % width
    d = F.pad(h, (1, 1 + right, 1, 1 + bottom)).unfold(2, 4, 2).unfold(3, width + 2, width)
    y = F.pad(grad.double(), (0, right, 0, bottom)).unfold(2, 2, 2).unfold(3, width, width)
    v = torch.einsum("ij,ncyxjk,lk->ilcnyx", b, d, c).flatten(3)
    w = torch.einsum("ji,ndyxjk,kl->ildnyx", a, y, e).flatten(3)
    return torch.einsum("ij,ildt,ilct,lk->dcjk", g, w, v, f).to(grad.dtype).contiguous()


def _fake(grad: Tensor, x: Tensor, skip: Tensor | None, upsample: bool, width: int) -> Tensor:
    return grad.new_empty((grad.shape[1], x.shape[1] + (0 if skip is None else skip.shape[1]), 3, 3))


def _cpp(grad: Tensor, x: Tensor, skip: Tensor | None, upsample: bool, width: int) -> Tensor:
    result = _fake(grad, x, skip, upsample, width)
    tensors = [None if t is None else t.contiguous(memory_format=LAST) for t in (grad, x, skip)]
    channels = (grad.shape[1], x.shape[1], 0 if skip is None else skip.shape[1])
    size = (grad.shape[0], *grad.shape[2:], width)
    run_cpp("winograd_weight_gradient", [*tensors, result], channels, size, upsample)
    return result


def _unsupported(grad: Tensor, x: Tensor, *_: Any) -> str | None:
    if grad.dtype != torch.float32:
        return f"{grad.dtype}; the kernel takes float32"
    return "an empty tensor" if grad.numel() == 0 or x.numel() == 0 else None


_op = register(
    "winograd_weight_gradient",
    "(Tensor grad, Tensor x, Tensor? skip, bool upsample, int width) -> Tensor",
    reference=reference,
    fake=_fake,
    cpp=_cpp,
    unsupported=_unsupported,
)
