"""A blur with a kernel for each image, its adjoint, and how far blurred images are from their observations."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from emfast._check import check
from emfast.ops._blurs import Blur
from emfast.ops._images import Misfit, check_images, check_taps, fold, pad, spread
from emfast.ops._tensors import accumulate


def blur(
    x: Tensor,  # (B, C, H, W)
    kernel: Tensor,  # (B or 1, 1, K, K)
    *,
    padding: Literal["reflect", "circular"] = "reflect",
    adjoint: bool = False,
) -> Tensor:
    r"""Returns images, each correlated with a kernel of its own, or the adjoint of that.

    .. math:: (A x)_{ij} = \sum_{kl} w_{kl} \, x_{i + k - \lfloor K/2 \rfloor, \, j + l - \lfloor K/2 \rfloor}

    Arguments:
        x: The images; float16, bfloat16, float32 or float64.
        kernel: The weights w, K odd, shared by the channels; one kernel may serve all images. They have no gradient,
            and those that are zero cost nothing on a CPU.
        padding: What lies outside: "reflect" (the edge pixel is not repeated) or "circular".
        adjoint: Returns :math:`A^\top x` instead, exact at the edges too.

    Returns:
        A contiguous tensor of the shape and dtype of x. Arithmetic is float32 (float64 for float64).

    Raises:
        ValueError: If shapes do not match, K is even or too large, or the kernel requires a gradient.
        TypeError: If x is not floating.
    """
    circular = _validate("blur", x, None, kernel, padding)
    blurred: Tensor = _op.blur(x, kernel, circular, adjoint)
    return blurred


def blur_misfit(
    x: Tensor,  # (B, C, H, W)
    y: Tensor,  # (B, C, H, W)
    kernel: Tensor,  # (B or 1, 1, K, K)
    *,
    padding: Literal["reflect", "circular"] = "reflect",
) -> Misfit:
    r"""Returns the residual of blurred images, its squared norm per image, and its adjoint.

    .. math:: r = y - A x, \quad \|r\|_2^2, \quad A^\top r

    Arguments:
        x: The images; float16, bfloat16, float32 or float64.
        y: The observations, of the dtype of x.
        kernel: See `blur`.
        padding: See `blur`.

    Returns:
        r, contiguous, of the shape and dtype of x; (B,) float32 (float64 for float64), summed in partial sums; A^T r,
        like r.

    Raises:
        ValueError: As `blur`, or if the shapes of x and y differ.
        TypeError: If x is not floating or y of another dtype.
    """
    circular = _validate("blur_misfit", x, y, kernel, padding)
    misfit: Misfit = _op.misfit(x, y, kernel, circular)
    return misfit


def _validate(name: str, x: Tensor, y: Tensor | None, kernel: Tensor, padding: str) -> bool:
    check_images(name, x, y)
    square = kernel.dim() == 4 and kernel.shape[1] == 1 and kernel.shape[2] == kernel.shape[3]
    fits = square and kernel.shape[0] in (1, x.shape[0])
    check(fits, name, "kernel", lambda: f"of shape ({x.shape[0]} or 1, 1, K, K)", kernel)
    return check_taps(name, x, padding, kernel.shape[2:], kernel)


def reference(x: Tensor, kernel: Tensor, circular: bool, adjoint: bool) -> Tensor:
    """The specification."""
    if x.numel() == 0:  # torch convolves in no groups at all only with an error
        return x.new_empty(x.shape)
    h = x.to(accumulate(x))
    half, planes = kernel.shape[2] // 2, x.shape[0] * x.shape[1]
    weight = kernel.to(h).expand(*x.shape[:2], -1, -1).flatten(0, 1)[:, None]  # (B C, 1, K, K)
    if adjoint:
        h, weight = spread(h, (half, half)), weight.flip(-2, -1)
    h = (h if adjoint else pad(h, (half, half), circular)).flatten(0, 1)
    h = F.conv2d(h[None], weight, groups=planes)[0].unflatten(0, x.shape[:2])
    return (fold(h, (half, half), circular) if adjoint else h).to(x.dtype).contiguous()


_op = Blur("blur", "Tensor kernel", reference=reference, sizes=lambda kernel: (kernel.shape[2], len(kernel)))
