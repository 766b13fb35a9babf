"""A convolution whose weights are new at every step: float32, read once, rounded and packed as they are used."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from emfast._library import extension, extension_error, register, run_cpp

LAST = torch.channels_last
Window = tuple[int, int, bool]  # stride, padding, upsample


def convolution(
    x: Tensor,  # (B, C, H, W)
    skip: Tensor | None,  # (B, C', H, W)
    weights: Sequence[Tensor],  # (D_i, C + C', K, K)
    biases: Sequence[Tensor],  # (D_i,)
    residual: Tensor | None,  # (B, D, H', W')
    window: Window,
) -> Tensor:
    r"""Returns the convolution of x, plus a residual; `emfast.nn` differentiates it.

    .. math:: y = w * x + b + r

    Arguments:
        x: The features; float16, bfloat16, float32 or float64.
        skip: A second input, read as if concatenated to x over channels.
        weights: Square kernels, read as their concatenation over output channels, rounded to the dtype of x.
        biases: As many as weights, or none.
        residual: What is added to the result.
        window: The stride, the padding, and whether x is first upsampled by two (nearest neighbours).

    Returns:
        A channels_last tensor of the dtype of x. Sums are float32 (float64 for float64).
    """
    y: Tensor = _op(x, skip, list(weights), list(biases), residual, *window)
    return y


def convolution_input_gradient(
    grad: Tensor,  # (B, D, H', W')
    weights: Sequence[Tensor],  # (D_i, C + C', K, K)
    shape: Sequence[int],  # B, C, H, W
    window: Window,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `convolution` to x, which has some channels, and to skip, which has the rest.

    Arguments:
        grad: The gradient to the result.
        weights: The kernels.
        shape: The shape of x.
        window: As in `convolution`.
    """
    result: tuple[Tensor, Tensor] = _gradient_op(grad, list(weights), list(shape[1:]), *window)
    return result


def reference(
    x: Tensor,
    skip: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    residual: Tensor | None,
    stride: int,
    padding: int,
    upsample: bool,
) -> Tensor:
    """The specification."""
    h = x if skip is None else torch.cat((x, skip), 1)
    h = F.interpolate(h, scale_factor=2.0) if upsample else h
    b = torch.cat(biases).to(x.dtype) if biases else None
    y = F.conv2d(h, torch.cat(weights).to(x.dtype), b, stride, padding)
    return (y if residual is None else y + residual).clone(memory_format=LAST)


def reference_gradient(
    grad: Tensor, weights: list[Tensor], shape: list[int], stride: int, padding: int, upsample: bool
) -> tuple[Tensor, Tensor]:
    """The specification of the gradient."""
    w = torch.cat(weights).to(grad.dtype)
    size = [n * (2 if upsample else 1) for n in shape[1:]]
    dh = conv2d_input((grad.shape[0], w.shape[1], *size), w, grad, stride, padding)
    dh = 4 * F.avg_pool2d(dh, 2) if upsample else dh
    dx, dskip = dh.split((shape[0], w.shape[1] - shape[0]), 1)
    return dx.clone(memory_format=LAST), dskip.clone(memory_format=LAST)


def _fake(x: Tensor, skip: Any, weights: list[Tensor], b: Any, r: Any, s: int, padding: int, upsample: bool) -> Tensor:
    size = [(n * (2 if upsample else 1) + 2 * padding - weights[0].shape[2]) // s + 1 for n in x.shape[2:]]
    return _empty(x, sum(w.shape[0] for w in weights), size)


def _fake_gradient(grad: Tensor, weights: list[Tensor], shape: list[int], *window: Any) -> tuple[Tensor, Tensor]:
    return _empty(grad, shape[0], shape[1:]), _empty(grad, weights[0].shape[1] - shape[0], shape[1:])


def _empty(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    return torch.empty((x.shape[0], channels, *size), dtype=x.dtype, device=x.device, memory_format=LAST)


def _cpp(x: Tensor, skip: Tensor | None, w: Any, biases: list[Tensor], residual: Tensor | None, *window: Any) -> Tensor:
    y = _fake(x, skip, w, biases, residual, *window)
    xs = [t.contiguous(memory_format=LAST) for t in (x, skip) if t is not None]
    added = None if residual is None else residual.contiguous(memory_format=LAST)
    shifts: list[Any] = list(biases) or [None] * len(w)
    grid = (x.shape[0], *y.shape[2:], *x.shape[2:], w[0].shape[2], *window)
    inputs = [[t, t.shape[1], None] for t in xs]
    run_cpp("convolution", inputs, _rows(w, shifts), [[y, y.shape[1], added]], grid, False)
    return y


def _cpp_gradient(grad: Tensor, w: list[Tensor], shape: list[int], *window: Any) -> tuple[Tensor, Tensor]:
    results = _fake_gradient(grad, w, shape)
    g = grad.contiguous(memory_format=LAST)
    grid = (g.shape[0], *g.shape[2:], *shape[1:], w[0].shape[2], *window)
    outputs = [[t, t.shape[1], None] for t in results if t.shape[1]]
    run_cpp("convolution", [[g, g.shape[1], None]], _rows(w, [None] * len(w)), outputs, grid, True)
    return results


def _rows(weights: Any, biases: Any) -> list[list[Tensor | int | None]]:
    return [[w, w.shape[0], b] for w, b in zip(weights, biases, strict=True)]


def unsupported(dtype: torch.dtype, weights: Sequence[Tensor], biases: Sequence[Tensor], window: Window) -> str | None:
    """Returns why the kernels cannot take images of a dtype with these weights, or None if they can.

    Arguments:
        dtype: That of the images.
        weights: (D, C, K, K) kernels.
        biases: (D,) biases.
        window: The stride and the padding in pixels, and whether images are doubled in size first.
    """
    if dtype != torch.bfloat16 or any(t.dtype != torch.float32 for t in (*weights, *biases)):
        return f"{dtype} beside {weights[0].dtype}; the kernel takes bfloat16 beside float32"
    if not all(t.is_contiguous() for t in (*weights, *biases)):
        return "weights that are not contiguous"
    return unsupported_machine() or unsupported_window(weights[0].shape[2], *window)


def unsupported_machine() -> str | None:
    """Returns why the kernels do not run here, or None if they do."""
    absent = extension_error() or not extension().has_amx()
    return "a processor without AMX, or an instruction set below it" if absent else None


def unsupported_window(size: int, stride: int, padding: int, upsample: bool) -> str | None:
    """Returns why the kernels cannot take a window, or None if they can.

    Arguments:
        size: Taps of the kernel along an axis.
        stride, padding: In pixels.
        upsample: Whether images are doubled in size first.
    """
    usual = size in (1, 3) and stride in (1, 2) and padding < size
    fits = usual and (not upsample or (size, stride, padding) == (3, 1, 1))
    return None if fits else f"kernel {size}, stride {stride}, padding {padding}, upsample {upsample}"


def is_slow(x: Tensor, weights: Sequence[Tensor], stride: int) -> bool:
    """Returns whether native torch was measured to be faster than the kernels.

    They compute blocks of 32 outputs, and pack all phases of a strided image, of which a 1 x 1 kernel reads one. Times
    of native torch over the kernel's, at 65,536 pixels: 32 to 1 or 3 channels 0.7x, 32 channels at a stride of 2 1.0x,
    128 or 256 channels 0.8x; at 4,096 pixels 128 to 3 channels 1.0x.

    Arguments:
        x: (B, C, H, W) images.
        weights: (D, C, K, K) kernels.
        stride: In pixels.
    """
    few = x.numel() >= x.shape[1] << 14 and sum(w.shape[0] for w in weights) < 16
    return x.is_cpu and (few or (stride == 2 and x.numel() >= 1 << 22))


def _unsupported(x: Tensor, *rest: Any) -> str | None:
    return unsupported(x.dtype, *rest) or ("an empty tensor" if x.numel() == 0 else None)


_op = register(
    "convolution",
    "(Tensor x, Tensor? skip, Tensor[] weights, Tensor[] biases, Tensor? residual,"
    " int stride, int padding, bool upsample) -> Tensor",
    reference=reference,
    fake=_fake,
    cpp=_cpp,
    unsupported=lambda x, skip, weights, biases, residual, *window: _unsupported(x, weights, biases, window),
    slower=lambda x, skip, weights, biases, residual, stride, *_: is_slow(x, weights, stride),
)
_gradient_op = register(
    "convolution_input_gradient",
    "(Tensor grad, Tensor[] weights, int[] shape, int stride, int padding, bool upsample) -> (Tensor, Tensor)",
    reference=reference_gradient,
    fake=_fake_gradient,
    cpp=_cpp_gradient,
    unsupported=lambda grad, weights, shape, *window: _unsupported(grad, weights, (), window),
)
