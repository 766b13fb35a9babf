"""A 3 x 3 convolution in float32 by Winograd's F(2 x 2, 3 x 3) or F(2 x 4, 3 x 3). cuDNN has it: no Triton kernel."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast._check import check
from emfast._library import register, run_cpp
from emfast.ops._winograd import ROWS, WIDTHS, A, B, G

LAST = torch.channels_last
PANEL, GROUP = 32, 16  # outputs and inputs to which kernels are padded
RESAMPLES = (None, "upsample", "pool")
POOLED = "of even height and width to pool, and no residual"


class WinogradWeights(NamedTuple):
    """Some input channels of a weight, or the gradient to them, for tiles of a width."""

    weight: Tensor  # (D, C, 3, 3)
    begin: int = 0
    end: int | None = None
    adjoint: bool = False
    width: int = 2


def winograd_kernel(weights: WinogradWeights) -> Tensor:
    r"""Returns the kernel of a convolution as `winograd_convolution` takes it, for weights that stay what they are.

    .. math:: u_{dc} = G g_{dc} G'^\top

    Arguments:
        weights: The weight, float32 or float64; the channels [begin, end) that are used, all by default; whether the
            kernel is that of the gradient to them, flipped and transposed; and the columns of a tile's result: 2, or 4
            for a quarter less to multiply and a third of a digit less exact.

    Returns:
        A contiguous tensor of shape (D / 32, T, C, 32) with T = 16 or 24 terms, zero where D or C is rounded up, C to a
        multiple of 16.

    Raises:
        ValueError: If the weight is no 3 x 3 kernel, the channels are not among its own, or the width is another.
        TypeError: If it is neither float32 nor float64.
    """
    kernel: Tensor = _kernel_op(weights.weight, *_part("winograd_kernel", weights))
    return kernel


def winograd_convolution(
    x: Tensor,  # (B, C, H, W)
    kernel: Tensor | WinogradWeights,  # (D / 32, T, C + C', 32)
    outputs: int,
    *,
    skip: Tensor | None = None,  # (B, C', H, W)
    bias: Tensor | None = None,  # (D,)
    residual: Tensor | None = None,  # (B, D, H', W')
    resample: str | None = None,
) -> Tensor:
    r"""Returns the convolution of x with a border of one zero, plus a residual; `emfast.nn` differentiates it.

    .. math:: y = A^\top \left( \sum_c u_c \odot B^\top x_c B' \right) A' + b + r \quad \text{on tiles}

    Tiles have 4 rows and 2 columns more than the pixels they give. 16 multiplications instead of 36 for 2 x 2 pixels,
    or 9 where the image is upsampled or the result pooled, because seven terms then vanish; 24 instead of 72 for 2 x 4.
    An infinity gives infinities and NaN in the pixels of every tile that reads it.

    Arguments:
        x: The features; float32 or float64.
        kernel: The weight, from `winograd_kernel`; or what that takes: it is transformed into memory that every call
            uses again, which is faster where weights are new at every call.
        outputs: The number D of output channels.
        skip: A second input, read as if concatenated to x over channels.
        bias: Is added to the result.
        residual: Is added to the result.
        resample: "upsample" convolves x upsampled by two (nearest neighbours), "pool" returns the sums of 2 x 2 pixels
            of an even-sized result. Each is the other's adjoint. Tiles are of width 2 then.

    Returns:
        A channels_last tensor. A sample's values depend neither on the others nor on the number of threads.

    Raises:
        ValueError: If shapes do not match.
        TypeError: If dtypes differ, or are neither float32 nor float64.

    References:
        | Fast Algorithms for Convolutional Neural Networks (Lavin & Gray, 2016), arXiv 1509.09308
    """
    name = "winograd_convolution"
    _check_dtype(name, "x", x)
    check(x.dim() == 4, name, "x", "of shape (B, C, H, W)", x)
    check(resample in RESAMPLES, name, "resample", f"to be one of {RESAMPLES}", resample)
    check(resample != "pool" or (residual is None and not any(n % 2 for n in x.shape[2:])), name, "x", POOLED, x)
    fits = skip is None or (skip.dim() == 4 and skip.shape[0] == x.shape[0] and skip.shape[2:] == x.shape[2:])
    check(fits, name, "skip", "of the shape of x but for its channels", skip)
    kernel, part = _kernel_and_part(kernel, x.shape[1] + (0 if skip is None else skip.shape[1]), outputs)
    narrow = resample is None or _width(kernel, part) == 2
    check(narrow, name, "kernel", "for tiles of width 2 where images are resampled", kernel)
    check(bias is None or bias.shape == (outputs,), name, "bias", f"of shape ({outputs},)", bias)
    size = _size(x, outputs, resample == "upsample", resample == "pool")
    check(residual is None or residual.shape == size, name, "residual", f"of shape {size}", residual)
    for key, tensor in (("skip", skip), ("kernel", kernel), ("bias", bias), ("residual", residual)):
        check(tensor is None or tensor.dtype == x.dtype, name, key, f"of dtype {x.dtype}", tensor, error=TypeError)
    y: Tensor = _op(x, skip, kernel, bias, residual, outputs, resample == "upsample", resample == "pool", part)
    return y


def _kernel_and_part(kernel: Tensor | WinogradWeights, inputs: int, outputs: int) -> tuple[Tensor, list[int]]:
    """Checks a kernel; returns it, or the weight and which part of it is meant, as the op takes them."""
    name = "winograd_convolution"
    if isinstance(kernel, WinogradWeights):
        weight, part = kernel.weight, _part(name, kernel)
        fits = _sizes(weight, *part[:3]) == (inputs, outputs)
        check(fits, name, "kernel", f"of {inputs} inputs and {outputs} outputs", weight)
        return weight, list(part)
    shapes = [_kernel_shape(inputs, outputs, width) for width in WIDTHS]
    check(kernel.shape in shapes, name, "kernel", f"of shape {shapes[0]} or {shapes[1]}", kernel)
    return kernel, []


def _part(name: str, weights: WinogradWeights) -> tuple[int, int, bool, int]:
    """Checks the weights; returns which part of them is meant."""
    weight, begin, end, adjoint, width = weights
    check(weight.dim() == 4 and weight.shape[2:] == (3, 3), name, "weight", "of shape (D, C, 3, 3)", weight)
    _check_dtype(name, "weight", weight)
    end = weight.shape[1] if end is None else end
    fits = 0 <= begin < end <= weight.shape[1]
    check(fits, name, "begin and end", f"to be channels of {weight.shape[1]}, in order", (begin, end))
    check(width in WIDTHS, name, "width", f"to be one of {WIDTHS}", width)
    return begin, end, adjoint, width


def _check_dtype(function: str, name: str, x: Tensor) -> None:
    check(x.dtype in (torch.float32, torch.float64), function, name, "of dtype float32 or float64", x, error=TypeError)


def is_slow(inputs: int, outputs: int) -> bool:
    """Returns whether oneDNN was measured to be faster than the kernels, with prepared weights.

    Where they were, its time over theirs is a row of benchmarks/results/ops.md. With tiles of width 2, two threads and
    AVX-512 they lost at batch 4 with 3 to 128 channels at 32 x 32 (0.4x) and 128 to 3 (1.0x), and at batch 64 with 1 to
    32 (0.2x) and 32 to 1 (0.9x).

    Arguments:
        inputs, outputs: How many channels.
    """
    return inputs < 16 or outputs < 16


def reference_kernel(weight: Tensor, begin: int, end: int, adjoint: int, width: int) -> Tensor:
    """The specification of the transformed weight."""
    w, g, h = weight[:, begin:end], G[ROWS].to(weight), G[width].to(weight)
    w = w.flip(2, 3).transpose(0, 1) if adjoint else w
    u = torch.einsum("ij,dcjk,lk->ilcd", g, w, h).flatten(0, 1)
    u = F.pad(u, (0, -u.shape[2] % PANEL, 0, -u.shape[1] % GROUP))
    return u.unflatten(2, (-1, PANEL)).permute(2, 0, 1, 3).contiguous()


def reference(
    x: Tensor,
    skip: Tensor | None,
    kernel: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    outputs: int,
    upsample: bool,
    pool: bool,
    part: list[int],
) -> Tensor:
    """The specification."""
    width = _width(kernel, part)
    kernel = reference_kernel(kernel, *part) if part else kernel
    h, b, c, a, e = x if skip is None else torch.cat((x, skip), 1), *(m[n].to(x) for m in (B, A) for n in (ROWS, width))
    h = F.interpolate(h, scale_factor=2.0) if upsample else h
    height, columns = h.shape[2:]
    d = F.pad(h, (1, 1 + -columns % width, 1, 1 + height % 2)).unfold(2, 4, 2).unfold(3, width + 2, width)
    v = torch.einsum("ij,ncyxjk,lk->nilcyx", b, d, c).flatten(1, 2)
    u = kernel.permute(1, 2, 0, 3).flatten(2)[:, : h.shape[1], :outputs]
    m = torch.einsum("sco,nscyx->nsoyx", u, v).unflatten(1, (4, width + 2))
    y = torch.einsum("ij,njkoyx,lk->noyixl", a, m, e).flatten(4, 5).flatten(2, 3)[..., :height, :columns]
    y = y if bias is None else y + bias[:, None, None]
    y = 4 * F.avg_pool2d(y, 2) if pool else y
    return (y if residual is None else y + residual).clone(memory_format=LAST)


def _sizes(weight: Tensor, begin: int, end: int, adjoint: int) -> tuple[int, int]:
    """Inputs and outputs of a part of a weight."""
    return (weight.shape[0], end - begin) if adjoint else (end - begin, weight.shape[0])


def _kernel_shape(inputs: int, outputs: int, width: int) -> tuple[int, int, int, int]:
    return -(-outputs // PANEL), 4 * (width + 2), -(-inputs // GROUP) * GROUP, PANEL


def _width(kernel: Tensor, part: list[int]) -> int:
    return part[3] if part else kernel.shape[1] // 4 - 2


def _size(x: Tensor, outputs: int, upsample: bool, pool: bool) -> tuple[int, int, int, int]:
    height, width = (n * 2 if upsample else n // 2 if pool else n for n in x.shape[2:])
    return x.shape[0], outputs, height, width


def _fake_kernel(weight: Tensor, begin: int, end: int, adjoint: bool, width: int) -> Tensor:
    return weight.new_empty(_kernel_shape(*_sizes(weight, begin, end, adjoint), width))


def _fake(
    x: Tensor, skip: Any, kernel: Any, b: Any, r: Any, outputs: int, upsample: bool, pool: bool, part: Any
) -> Tensor:
    size = _size(x, outputs, upsample, pool)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=LAST)


def _cpp_kernel(weight: Tensor, begin: int, end: int, adjoint: bool, width: int) -> Tensor:
    kernel, w = _fake_kernel(weight, begin, end, adjoint, width), weight.contiguous()
    run_cpp("winograd_kernel", [w, kernel], (*w.shape[:2], begin, end, adjoint, width))
    return kernel


def _cpp(x: Tensor, skip: Tensor | None, kernel: Tensor, bias: Any, residual: Any, *rest: Any) -> Tensor:
    outputs, upsample, pool, part = rest
    y = _fake(x, skip, kernel, bias, residual, *rest)
    images = [None if t is None else t.contiguous(memory_format=LAST) for t in (x, skip, residual)]
    parameters = [None if t is None else t.contiguous() for t in (kernel, bias)]
    channels = (x.shape[1], 0 if skip is None else skip.shape[1], outputs)
    size = (x.shape[0], *(x.shape if pool else y.shape)[2:], _width(kernel, part))
    weights = (*kernel.shape[:2], *part) if part else ()
    tensors = [*images[:2], *parameters, images[2], y]
    run_cpp("winograd_convolution", tensors, channels, size, upsample, pool, weights)
    return y


def _unsupported(x: Tensor) -> str | None:
    if x.dtype != torch.float32:
        return f"{x.dtype}; the kernel takes float32"
    return "an empty tensor" if x.numel() == 0 else None


_kernel_op = register(
    "winograd_kernel",
    "(Tensor weight, int begin, int end, bool adjoint, int width) -> Tensor",
    reference=reference_kernel,
    fake=_fake_kernel,
    cpp=_cpp_kernel,
    unsupported=lambda weight, *_: _unsupported(weight),
)
_op = register(
    "winograd_convolution",
    "(Tensor x, Tensor? skip, Tensor kernel, Tensor? bias, Tensor? residual, int outputs, bool upsample, bool pool,"
    " int[] part) -> Tensor",
    reference=reference,
    fake=_fake,
    cpp=_cpp,
    unsupported=lambda x, *_: _unsupported(x),
)
