"""A 3 x 3 convolution in float32 by Winograd's F(2 x 2, 3 x 3). On GPUs cuDNN has it: there is no Triton kernel."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast._check import check
from emfast._library import addresses, extension, register

LAST = torch.channels_last
PANEL, GROUP = 32, 16  # outputs and inputs to which kernels are padded
RESAMPLES = (None, "upsample", "pool")
POOLED = "of even height and width to pool, and no residual"

# d, g and m are transformed by B^T d B, G g G^T and A^T m A
B = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
G = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
A = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])


def winograd_kernel(
    weight: Tensor,  # (D, C, 3, 3)
    begin: int = 0,
    end: int | None = None,
    *,
    adjoint: bool = False,
) -> Tensor:
    r"""Returns the weight of a convolution as `winograd_convolution` takes it.

    .. math:: u_{dc} = G g_{dc} G^\top

    Arguments:
        weight: The weight; float32 or float64.
        begin: The first input channel that is used.
        end: The channel behind the last one; all by default.
        adjoint: Whether the kernel is that of the gradient to these channels: flipped and transposed.

    Returns:
        A contiguous tensor of shape (D / 32, 16, C, 32), zero where D or C is rounded up, C to a multiple of 16.

    Raises:
        ValueError: If the weight is no 3 x 3 kernel or the channels are not among its own.
        TypeError: If it is neither float32 nor float64.
    """
    check(
        weight.dim() == 4 and weight.shape[2:] == (3, 3), "winograd_kernel", "weight", "of shape (D, C, 3, 3)", weight
    )
    _check_dtype("winograd_kernel", "weight", weight)
    end = weight.shape[1] if end is None else end
    fits = 0 <= begin < end <= weight.shape[1]
    check(fits, "winograd_kernel", "begin and end", f"to be channels of {weight.shape[1]}, in order", (begin, end))
    kernel: Tensor = _kernel_op(weight, begin, end, adjoint)
    return kernel


def winograd_convolution(
    x: Tensor,  # (B, C, H, W)
    kernel: Tensor,  # (D / 32, 16, C + C', 32)
    outputs: int,
    *,
    skip: Tensor | None = None,  # (B, C', H, W)
    bias: Tensor | None = None,  # (D,)
    residual: Tensor | None = None,  # (B, D, H', W')
    resample: str | None = None,
) -> Tensor:
    r"""Returns the convolution of x with a border of one zero, plus a residual; `emfast.nn` differentiates it.

    .. math:: y = A^\top \left( \sum_c u_c \odot B^\top x_c B \right) A + b + r \quad \text{on tiles of 4 x 4 pixels}

    16 multiplications instead of 36 for four pixels; 9 where the image is upsampled or the result pooled, because seven
    terms of a tile then vanish. An infinity gives infinities and NaN in the four pixels of every tile that reads it.

    Arguments:
        x: The features; float32 or float64.
        kernel: The weight, from `winograd_kernel`.
        outputs: The number D of output channels.
        skip: A second input, read as if concatenated to x over channels.
        bias: Is added to the result.
        residual: Is added to the result.
        resample: "upsample" convolves x upsampled by two (nearest neighbours), "pool" returns the sums of 2 x 2 pixels
            of an even-sized result. Each is the other's adjoint.

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
    shape = _kernel_shape(x.shape[1] + (0 if skip is None else skip.shape[1]), outputs)
    check(kernel.shape == shape, name, "kernel", f"of shape {shape}", kernel)
    check(bias is None or bias.shape == (outputs,), name, "bias", f"of shape ({outputs},)", bias)
    size = _size(x, outputs, resample == "upsample", resample == "pool")
    check(residual is None or residual.shape == size, name, "residual", f"of shape {size}", residual)
    for key, tensor in (("skip", skip), ("kernel", kernel), ("bias", bias), ("residual", residual)):
        check(tensor is None or tensor.dtype == x.dtype, name, key, f"of dtype {x.dtype}", tensor, error=TypeError)
    y: Tensor = _op(x, skip, kernel, bias, residual, outputs, resample == "upsample", resample == "pool")
    return y


def _check_dtype(function: str, name: str, x: Tensor) -> None:
    check(x.dtype in (torch.float32, torch.float64), function, name, "of dtype float32 or float64", x, error=TypeError)


def is_slow(inputs: int, outputs: int) -> bool:
    """Returns whether oneDNN was measured to be faster than the kernels, with prepared weights.

    Its time over theirs, two threads with AVX-512: batch 4, 128 to 128 channels at 32 x 32 1.9x, 256 to 256 at 16 x 16
    1.7x, at 8 x 8 1.6x and at 4 x 4 2.1x, 512 to 256 at 16 x 16 1.6x; batch 64, 32 to 32 at 32 x 32 1.4x, 64 to 64 at
    8 x 8 1.7x; but 3 to 128 at 32 x 32 0.4x, 128 to 3 1.0x, and of batch 64 1 to 32 0.2x and 32 to 1 0.9x. In training,
    where kernels are transformed at every step, oneDNN reorders weights too: at 4 x 4 the whole step is still faster.
    """
    return inputs < 16 or outputs < 16


def reference_kernel(weight: Tensor, begin: int, end: int, adjoint: bool) -> Tensor:
    """The specification of the transformed weight."""
    w, g = weight[:, begin:end], G.to(weight)
    w = w.flip(2, 3).transpose(0, 1) if adjoint else w
    u = torch.einsum("ij,dcjk,lk->ilcd", g, w, g).flatten(0, 1)
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
) -> Tensor:
    """The specification."""
    h, b, a = x if skip is None else torch.cat((x, skip), 1), B.to(x), A.to(x)
    h = F.interpolate(h, scale_factor=2.0) if upsample else h
    height, width = h.shape[2:]
    d = F.pad(h, (1, 1 + width % 2, 1, 1 + height % 2)).unfold(2, 4, 2).unfold(3, 4, 2)
    v = torch.einsum("ij,ncyxjk,lk->nilcyx", b, d, b).flatten(1, 2)
    u = kernel.permute(1, 2, 0, 3).flatten(2)[:, : h.shape[1], :outputs]
    m = torch.einsum("sco,nscyx->nsoyx", u, v).unflatten(1, (4, 4))
    y = torch.einsum("ij,njkoyx,lk->noyixl", a, m, a).flatten(4, 5).flatten(2, 3)[..., :height, :width]
    y = y if bias is None else y + bias[:, None, None]
    y = 4 * F.avg_pool2d(y, 2) if pool else y
    return (y if residual is None else y + residual).clone(memory_format=LAST)


def _kernel_shape(inputs: int, outputs: int) -> tuple[int, int, int, int]:
    return -(-outputs // PANEL), 16, -(-inputs // GROUP) * GROUP, PANEL


def _size(x: Tensor, outputs: int, upsample: bool, pool: bool) -> tuple[int, int, int, int]:
    height, width = (n * 2 if upsample else n // 2 if pool else n for n in x.shape[2:])
    return x.shape[0], outputs, height, width


def _fake_kernel(weight: Tensor, begin: int, end: int, adjoint: bool) -> Tensor:
    sizes = (weight.shape[0], end - begin)
    return weight.new_empty(_kernel_shape(*sizes) if adjoint else _kernel_shape(*sizes[::-1]))


def _fake(x: Tensor, skip: Any, kernel: Any, b: Any, r: Any, outputs: int, upsample: bool, pool: bool) -> Tensor:
    size = _size(x, outputs, upsample, pool)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=LAST)


def _cpp_kernel(weight: Tensor, begin: int, end: int, adjoint: bool) -> Tensor:
    kernel, w = _fake_kernel(weight, begin, end, adjoint), weight.contiguous()
    extension().winograd_kernel(addresses(w, kernel), (*w.shape[:2], begin, end), adjoint)
    return kernel


def _cpp(x: Tensor, skip: Tensor | None, kernel: Tensor, bias: Any, residual: Any, *rest: Any) -> Tensor:
    outputs, upsample, pool = rest
    y = _fake(x, skip, kernel, bias, residual, *rest)
    images = [None if t is None else t.contiguous(memory_format=LAST) for t in (x, skip, residual)]
    parameters = [None if t is None else t.contiguous() for t in (kernel, bias)]
    channels = (x.shape[1], 0 if skip is None else skip.shape[1], outputs)
    size = (x.shape[0], *(x.shape if pool else y.shape)[2:])
    pointers = addresses(*images[:2], *parameters, images[2], y)
    extension().winograd_convolution(pointers, channels, size, upsample, pool)
    return y


def _unsupported(x: Tensor) -> str | None:
    if x.dtype != torch.float32:
        return f"{x.dtype}; the kernel takes float32"
    return "an empty tensor" if x.numel() == 0 else None


_kernel_op = register(
    "winograd_kernel",
    "(Tensor weight, int begin, int end, bool adjoint) -> Tensor",
    reference=reference_kernel,
    fake=_fake_kernel,
    cpp=_cpp_kernel,
    unsupported=lambda weight, *_: _unsupported(weight),
)
_op = register(
    "winograd_convolution",
    "(Tensor x, Tensor? skip, Tensor kernel, Tensor? bias, Tensor? residual, int outputs, bool upsample, bool pool)"
    " -> Tensor",
    reference=reference,
    fake=_fake,
    cpp=_cpp,
    unsupported=lambda x, *_: _unsupported(x),
)
