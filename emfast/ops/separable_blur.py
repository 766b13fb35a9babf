"""A separable blur, its adjoint, and how far blurred images are from their observations."""

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


def separable_blur(
    x: Tensor,  # (B, C, H, W)
    rows: Tensor,  # (K,)
    columns: Tensor,  # (L,)
    *,
    padding: Literal["reflect", "circular"] = "reflect",
    adjoint: bool = False,
) -> Tensor:
    r"""Returns images correlated with a separable kernel, the same for all, or the adjoint of that.

    .. math:: (A x)_{ij} = \sum_{kl} r_k c_l \, x_{i + k - \lfloor K/2 \rfloor, \, j + l - \lfloor L/2 \rfloor}

    Arguments:
        x: The images; float16, bfloat16, float32 or float64.
        rows: The weights r of the rows around a pixel, an odd number. They have no gradient.
        columns: The weights c of the columns around a pixel, an odd number. They have no gradient.
        padding: What lies outside: "reflect" (the edge pixel is not repeated) or "circular".
        adjoint: Returns :math:`A^\top x` instead, exact at the edges too.

    Returns:
        A contiguous tensor of the shape and dtype of x. Arithmetic is float32 (float64 for float64).

    Raises:
        ValueError: If there are too many taps for the images, an even number, or they require a gradient.
        TypeError: If x is not floating.
    """
    circular = _validate("separable_blur", x, None, rows, columns, padding)
    blurred: Tensor = _blur(x, rows, columns, circular, adjoint)
    return blurred


def separable_blur_misfit(
    x: Tensor,  # (B, C, H, W)
    y: Tensor,  # (B, C, H, W)
    rows: Tensor,  # (K,)
    columns: Tensor,  # (L,)
    *,
    padding: Literal["reflect", "circular"] = "reflect",
) -> Misfit:
    r"""Returns the residual of blurred images, its squared norm per image, and its adjoint.

    .. math:: r = y - A x, \quad \|r\|_2^2, \quad A^\top r

    Arguments:
        x: The images; float16, bfloat16, float32 or float64.
        y: The observations, of the dtype of x.
        rows: See `separable_blur`.
        columns: See `separable_blur`.
        padding: See `separable_blur`.

    Returns:
        r, contiguous, of the shape and dtype of x; (B,) float32 (float64 for float64), summed in partial sums; A^T r,
        like r.

    Raises:
        ValueError: As `separable_blur`, or if the shapes of x and y differ.
        TypeError: If x is not floating or y of another dtype.
    """
    circular = _validate("separable_blur_misfit", x, y, rows, columns, padding)
    misfit: Misfit = _misfit(x, y, rows, columns, circular)
    return misfit


def _validate(name: str, x: Tensor, y: Tensor | None, rows: Tensor, columns: Tensor, padding: str) -> bool:
    check_images(name, x, y)
    for key, value in (("rows", rows), ("columns", columns)):
        check(value.dim() == 1, name, key, "of one dimension", value)
    return check_taps(name, x, padding, (len(rows), len(columns)), rows, columns)


def reference(x: Tensor, rows: Tensor, columns: Tensor, circular: bool, adjoint: bool) -> Tensor:
    """The specification."""
    h = x.to(accumulate(x))
    halves, rows, columns = (len(rows) // 2, len(columns) // 2), rows.to(h), columns.to(h)
    if adjoint:
        h, rows, columns = spread(h, halves), rows.flip(0), columns.flip(0)
    planes = (h if adjoint else pad(h, halves, circular)).flatten(0, 1)[:, None]
    h = F.conv2d(F.conv2d(planes, rows[None, None, :, None]), columns[None, None, None])
    h = h.unflatten(0, x.shape[:2])[:, :, 0]
    return (fold(h, halves, circular) if adjoint else h).to(x.dtype).contiguous()


def reference_misfit(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, circular: bool) -> Misfit:
    """The specification of the misfit."""
    return misfit_of(x, y, *(lambda v, a=a: reference(v, rows, columns, circular, a) for a in (False, True)))


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _cpp(x: Tensor, rows: Tensor, columns: Tensor, circular: bool, adjoint: bool) -> Tensor:
    result = _fake(x)
    tensors = (x.contiguous(), rows.float().contiguous(), columns.float().contiguous(), result)
    extension().separable_blur(addresses(*tensors), _sizes(x, rows, columns), circular, adjoint)
    return result


def _cpp_misfit(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, circular: bool) -> Misfit:
    results = fake_misfit(x)
    tensors = (x.contiguous(), y.contiguous(), rows.float().contiguous(), columns.float().contiguous(), *results)
    extension().separable_blur_misfit(addresses(*tensors), _sizes(x, rows, columns), circular)
    return results


def _sizes(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[int, ...]:
    return DTYPES[x.dtype], *x.shape, len(rows), len(columns)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])
    ctx.circular, ctx.adjoint = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _blur(grad, *ctx.saved_tensors, ctx.circular, not ctx.adjoint), None, None, None, None


def _setup_misfit(ctx: Any, inputs: tuple[Any, ...], output: Misfit) -> None:
    ctx.save_for_backward(output[0], inputs[2], inputs[3])
    ctx.circular = inputs[4]
    ctx.set_materialize_grads(False)


def _misfit_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    residual, rows, columns = ctx.saved_tensors
    maps = (lambda v, a=a: _blur(v, rows, columns, ctx.circular, a) for a in (False, True))
    return *misfit_gradients(residual, grads, *maps), None, None, None


_blur = register(
    "separable_blur",
    "(Tensor x, Tensor rows, Tensor columns, bool circular, bool adjoint) -> Tensor",
    reference=reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton="separable_blur",
    cpp=_cpp,
    unsupported=unsupported,
)
_misfit = register(
    "separable_blur_misfit",
    "(Tensor x, Tensor y, Tensor rows, Tensor columns, bool circular) -> (Tensor, Tensor, Tensor)",
    reference=reference_misfit,
    fake=fake_misfit,
    backward=_misfit_backward,
    setup_context=_setup_misfit,
    triton="separable_blur",
    cpp=_cpp_misfit,
    unsupported=unsupported,
)
