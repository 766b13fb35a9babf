"""The gradients of a convolution's weight and bias, in float32 and in the order of the parameter."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast._check import check
from emfast._library import register, run_cpp
from emfast.ops._tensors import accumulate
from emfast.ops.convolution import Window, unsupported_machine, unsupported_window

LAST = torch.channels_last


def convolution_weight_gradient(
    grad: Tensor,  # (B, D, H', W')
    x: Tensor,  # (B, C, H, W)
    skip: Tensor | None,  # (B, C', H, W)
    size: int,
    window: Window,
) -> tuple[Tensor, Tensor]:
    r"""Returns the gradients of the weight and the bias of a convolution.

    .. math:: \frac{\partial L}{\partial w_{dck}} = \sum_p g_{dp} \, x_{c, sp + k - \text{padding}}, \quad
        \frac{\partial L}{\partial b_d} = \sum_p g_{dp}

    Arguments:
        grad: The gradient to the convolution's result; float16, bfloat16, float32 or float64.
        x: The convolution's input, of the same dtype.
        skip: A second input, read as if concatenated to x over channels.
        size: The kernel's height and width.
        window: The stride, the padding, and whether x was first upsampled by two (nearest neighbours).

    Returns:
        Tensors of shape (D, C + C', size, size) and (D,), contiguous, in float32 (float64 for float64).

    Raises:
        ValueError: If shapes do not match.
        TypeError: If dtypes differ.
    """
    name, (stride, padding, upsample) = "convolution_weight_gradient", window
    check(x.dim() == 4, name, "x", "of shape (B, C, H, W)", x)
    fits = skip is None or (skip.dim() == 4 and skip.shape[0] == x.shape[0] and skip.shape[2:] == x.shape[2:])
    check(fits, name, "skip", "of the shape of x but for its channels", skip)
    shape = [(n * (2 if upsample else 1) + 2 * padding - size) // stride + 1 for n in x.shape[2:]]
    fits = grad.dim() == 4 and grad.shape[0] == x.shape[0] and list(grad.shape[2:]) == shape
    check(fits, name, "grad", f"of shape ({x.shape[0]}, D, {shape[0]}, {shape[1]})", grad)
    for key, tensor in (("x", x), ("skip", skip)):
        same = tensor is None or tensor.dtype == grad.dtype
        check(same, name, key, f"of dtype {grad.dtype}", tensor, error=TypeError)
    result: tuple[Tensor, Tensor] = _op(grad, x, skip, size, *window)
    return result


def reference(
    grad: Tensor, x: Tensor, skip: Tensor | None, size: int, stride: int, padding: int, upsample: bool
) -> tuple[Tensor, Tensor]:
    """The specification."""
    dweight, dbias = _fake(grad, x, skip, size)
    h = x if skip is None else torch.cat((x, skip), 1)
    h = F.interpolate(h, scale_factor=2.0) if upsample else h
    w, one = grad.new_empty(1).expand(dweight.shape), [1, 1]
    both = torch.ops.aten.convolution_backward(
        grad, h, w, None, [stride] * 2, [padding] * 2, one, False, [0, 0], 1, [False, True, False]
    )
    rows = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])  # a view of a channels_last image
    return dweight.copy_(both[1]), torch.sum(rows, 0, dtype=dbias.dtype, out=dbias)


def _fake(grad: Tensor, x: Tensor, skip: Tensor | None, size: int, *rest: Any) -> tuple[Tensor, Tensor]:
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    dtype = accumulate(grad)
    dweight = grad.new_empty((grad.shape[1], channels, size, size), dtype=dtype)
    return dweight, grad.new_empty(grad.shape[1], dtype=dtype)


def _cpp(
    grad: Tensor, x: Tensor, skip: Tensor | None, size: int, stride: int, padding: int, upsample: bool
) -> tuple[Tensor, Tensor]:
    tensors = [None if t is None else t.contiguous(memory_format=LAST) for t in (grad, x, skip)]
    dweight, dbias = _fake(grad, x, skip, size)
    channels = (grad.shape[1], x.shape[1], 0 if skip is None else skip.shape[1])
    grid = (grad.shape[0], *grad.shape[2:], *x.shape[2:], size, stride, padding, upsample)
    run_cpp("convolution_weight_gradient", [*tensors, dweight, dbias], channels, grid)
    return dweight, dbias


def _unsupported(
    grad: Tensor, x: Tensor, skip: Tensor | None, size: int, stride: int, padding: int, upsample: bool
) -> str | None:
    if grad.dtype != torch.bfloat16:
        return f"{grad.dtype}; the kernel takes bfloat16"
    empty = "an empty tensor" if grad.numel() == 0 or x.numel() == 0 else None
    return unsupported_machine() or unsupported_window(size, stride, padding, upsample) or empty


def _slower(grad: Tensor, x: Tensor, skip: Tensor | None, size: int, *window: Any) -> bool:
    # Sums of 1 MB and more leave the cache: 64 x 256 x 16 x 16 to 256 channels 0.9x, 64 x 256 x 33 x 33 strided 0.6x.
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    return x.is_cpu and x.numel() >= 1 << 22 and grad.shape[1] * channels * size**2 > 1 << 18


_op = register(
    "convolution_weight_gradient",
    "(Tensor grad, Tensor x, Tensor? skip, int size, int stride, int padding, bool upsample) -> (Tensor, Tensor)",
    reference=reference,
    fake=_fake,
    cpp=_cpp,
    unsupported=_unsupported,
    slower=_slower,
)
