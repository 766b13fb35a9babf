"""How far masked images are from their observations, and the way back, in one pass."""

from typing import Any

import torch
from torch import Tensor

from emfast._check import check
from emfast._library import register, run_cpp
from emfast.ops._images import Misfit, check_images, fake_misfit, misfit_gradients, misfit_of
from emfast.ops._tensors import DTYPES, accumulate, unsupported


def mask_misfit(
    x: Tensor,  # (B, C, H, W)
    y: Tensor,  # (B, C, H, W)
    mask: Tensor,  # (B or 1, 1, H, W)
) -> Misfit:
    r"""Returns the residual of masked images, its squared norm per image, and its adjoint.

    .. math:: r = y - m \odot x, \quad \|r\|_2^2, \quad A^\top r = m \odot r

    Arguments:
        x: The images; float16, bfloat16, float32 or float64.
        y: The observations, of the dtype of x.
        mask: 1 where a pixel is observed, 0 where it is missing; of the dtype of x or float32. It has no gradient.

    Returns:
        r, contiguous, of the shape and dtype of x; (B,) float32 (float64 for float64), summed in partial sums; m r,
        like r.

    Raises:
        ValueError: If shapes do not match or the mask requires a gradient.
        TypeError: If dtypes do not match.

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2022), arXiv 2209.14687
    """
    name = "mask_misfit"
    check_images(name, x, y)
    fits = mask.shape in ((x.shape[0], 1, *x.shape[2:]), (1, 1, *x.shape[2:]))
    check(fits, name, "mask", lambda: f"of shape ({x.shape[0]} or 1, 1, {x.shape[2]}, {x.shape[3]})", mask)
    known = mask.dtype in (x.dtype, torch.float32)
    check(known, name, "mask", f"of dtype {x.dtype} or torch.float32", mask.dtype, error=TypeError)
    check(not mask.requires_grad, name, "mask", "to require no gradient", "one that does", "Detach it")
    if mask.shape[0] > 1 and mask.stride(0) == 0:
        mask = mask[:1]  # one for all, which is not to be copied
    misfit: Misfit = _misfit(x, y, mask)
    return misfit


def reference(x: Tensor, y: Tensor, mask: Tensor) -> Misfit:
    """The specification."""
    m = mask.to(accumulate(x))
    return misfit_of(x, y, lambda v: m * v, lambda v: m * v)


def _cpp(x: Tensor, y: Tensor, mask: Tensor) -> Misfit:
    results = fake_misfit(x)
    x, y, mask = x.contiguous(), y.contiguous(), mask.contiguous()
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    sizes = (DTYPES[x.dtype], mask.dtype != x.dtype, batch, channels, pixels, pixels if len(mask) > 1 else 0)
    run_cpp("mask_misfit", [x, y, mask, *results], sizes)
    return results


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Misfit) -> None:
    ctx.save_for_backward(inputs[2], output[0])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    mask, residual = ctx.saved_tensors
    mask = mask.to(residual.dtype)
    return *misfit_gradients(residual, grads, lambda v: mask * v, lambda v: mask * v), None


_misfit = register(
    "mask_misfit",
    "(Tensor x, Tensor y, Tensor mask) -> (Tensor, Tensor, Tensor)",
    reference=reference,
    fake=fake_misfit,
    backward=_backward,
    setup_context=_setup_context,
    triton="mask_misfit",
    cpp=_cpp,
    unsupported=unsupported,
)
