"""A separable blur, its adjoint, and how far blurred images are from their observations."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from emfast._check import check
from emfast.ops._blurs import Blur
from emfast.ops._images import Misfit, check_images, check_taps, fold, pad, spread
from emfast.ops._tensors import accumulate


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
    blurred: Tensor = _op.blur(x, rows, columns, circular, adjoint)
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
    misfit: Misfit = _op.misfit(x, y, rows, columns, circular)
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


_op = Blur(
    "separable_blur", "Tensor rows, Tensor columns", reference=reference, sizes=lambda *taps: tuple(map(len, taps))
)
