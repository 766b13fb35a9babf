"""A blur with a kernel for each image, its adjoint, and how far blurred images are from their observations."""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from emfast._check import check
from emfast._library import addresses, extension, register
from emfast.ops._images import (
    DTYPES,
    Misfit,
    accumulate,
    check_images,
    check_taps,
    fake_misfit,
    fold,
    misfit_gradients,
    misfit_of,
    pad,
    spread,
    unsupported,
)


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
    blurred: Tensor = _blur(x, kernel, circular, adjoint)
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
    misfit: Misfit = _misfit(x, y, kernel, circular)
    return misfit


def _validate(name: str, x: Tensor, y: Tensor | None, kernel: Tensor, padding: str) -> bool:
    check_images(name, x, y)
    square = kernel.dim() == 4 and kernel.shape[1] == 1 and kernel.shape[2] == kernel.shape[3]
    fits = square and kernel.shape[0] in (1, x.shape[0])
    check(fits, name, "kernel", f"of shape ({x.shape[0]} or 1, 1, K, K)", kernel)
    return check_taps(name, x, padding, kernel.shape[2:], kernel)


def reference(x: Tensor, kernel: Tensor, circular: bool, adjoint: bool) -> Tensor:
    """The specification."""
    h = x.to(accumulate(x))
    half, planes = kernel.shape[2] // 2, x.shape[0] * x.shape[1]
    weight = kernel.to(h).expand(*x.shape[:2], -1, -1).flatten(0, 1)[:, None]  # (B C, 1, K, K)
    if adjoint:
        h, weight = spread(h, (half, half)), weight.flip(-2, -1)
    h = (h if adjoint else pad(h, (half, half), circular)).flatten(0, 1)
    h = F.conv2d(h[None], weight, groups=planes)[0].unflatten(0, x.shape[:2])
    return (fold(h, (half, half), circular) if adjoint else h).to(x.dtype).contiguous()


def reference_misfit(x: Tensor, y: Tensor, kernel: Tensor, circular: bool) -> Misfit:
    """The specification of the misfit."""
    return misfit_of(x, y, *(lambda v, a=a: reference(v, kernel, circular, a) for a in (False, True)))


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _cpp(x: Tensor, kernel: Tensor, circular: bool, adjoint: bool) -> Tensor:
    result = _fake(x)
    tensors = (x.contiguous(), kernel.float().contiguous(), result)
    extension().blur(addresses(*tensors), _sizes(x, kernel), circular, adjoint)
    return result


def _cpp_misfit(x: Tensor, y: Tensor, kernel: Tensor, circular: bool) -> Misfit:
    results = fake_misfit(x)
    tensors = (x.contiguous(), y.contiguous(), kernel.float().contiguous(), *results)
    extension().blur_misfit(addresses(*tensors), _sizes(x, kernel), circular)
    return results


def _sizes(x: Tensor, kernel: Tensor) -> tuple[int, ...]:
    return DTYPES[x.dtype], *x.shape, kernel.shape[2], kernel.shape[0]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.circular, ctx.adjoint = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _blur(grad, *ctx.saved_tensors, ctx.circular, not ctx.adjoint), None, None, None


def _setup_misfit(ctx: Any, inputs: tuple[Any, ...], output: Misfit) -> None:
    ctx.save_for_backward(output[0], inputs[2])
    ctx.circular = inputs[3]
    ctx.set_materialize_grads(False)


def _misfit_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    residual, kernel = ctx.saved_tensors
    maps = (lambda v, a=a: _blur(v, kernel, ctx.circular, a) for a in (False, True))
    return *misfit_gradients(residual, grads, *maps), None, None


_blur = register(
    "blur",
    "(Tensor x, Tensor kernel, bool circular, bool adjoint) -> Tensor",
    reference=reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton="blur",
    cpp=_cpp,
    unsupported=unsupported,
)
_misfit = register(
    "blur_misfit",
    "(Tensor x, Tensor y, Tensor kernel, bool circular) -> (Tensor, Tensor, Tensor)",
    reference=reference_misfit,
    fake=fake_misfit,
    backward=_misfit_backward,
    setup_context=_setup_misfit,
    triton="blur",
    cpp=_cpp_misfit,
    unsupported=unsupported,
)
