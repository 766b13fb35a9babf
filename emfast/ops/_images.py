"""What the misfit and blur ops share: checks, padding, and the shape of a misfit."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast._check import check
from emfast.ops._tensors import accumulate

Misfit = tuple[Tensor, Tensor, Tensor]  # residual, squared norm of each image, adjoint of the residual


def check_images(name: str, x: Tensor, y: Tensor | None = None) -> None:
    """Checks images, and observations like them.

    Arguments:
        name: The op.
        x: The images.
        y: Observations of the same shape.
    """
    check(x.is_floating_point(), name, "x", "to be a floating tensor", x.dtype, "Cast it with x.float()", TypeError)
    check(x.dim() == 4, name, "x", "of shape (B, C, H, W)", x)
    if y is not None:
        check(y.shape == x.shape, name, "y", f"of the shape {tuple(x.shape)} of x", y)
        check(y.dtype == x.dtype, name, "y", f"of dtype {x.dtype}", y.dtype, error=TypeError)


def check_taps(name: str, x: Tensor, padding: str, sizes: Sequence[int], *taps: Tensor) -> bool:
    """Checks a blur's taps, of odd sizes along height and width, and its padding; returns whether that is circular.

    Arguments:
        name: The op.
        x: (B, C, H, W) images.
        padding: "reflect" or "circular".
        sizes: How many taps along height and width.
        taps: The taps.
    """
    for size, length in zip(sizes, x.shape[2:], strict=True):
        _check_count(name, size, length)
    for tensor in taps:
        check(not tensor.requires_grad, name, "the taps", "to require no gradient", "some that do", "Detach them")
    check(padding in ("reflect", "circular"), name, "padding", "to be reflect or circular", padding)
    return padding == "circular"


def _check_count(name: str, size: int, length: int) -> None:
    good = size % 2 == 1 and size // 2 < length
    check(good, name, "the number of taps", lambda: f"to be odd and < {2 * length}, twice the side of the images", size)


def pad(x: Tensor, halves: tuple[int, int], circular: bool) -> Tensor:
    """Returns images with margins along height and width.

    Arguments:
        x: (B, C, H, W) images.
        halves: Pixels of a margin along height and width.
        circular: Whether margins repeat the other side; else they mirror.
    """
    height, width = halves
    return F.pad(x, (width, width, height, height), mode="circular" if circular else "reflect")


def spread(x: Tensor, halves: tuple[int, int]) -> Tensor:
    """Returns images between zeros, where a correlation with flipped taps is the adjoint of one without margins.

    Arguments:
        x: (B, C, H, W) images.
        halves: Pixels of a margin along height and width.
    """
    height, width = halves
    return F.pad(x, (2 * width, 2 * width, 2 * height, 2 * height))


def fold(x: Tensor, halves: tuple[int, int], circular: bool) -> Tensor:
    """Returns the adjoint of `pad`: margins are added to the pixels that they repeat.

    Arguments:
        x: (B, C, H + 2 h, W + 2 w) images with margins.
        halves: (h, w).
        circular: As of `pad`.
    """
    for dim, half in zip((2, 3), halves, strict=True):
        before, core, after = x.split((half, x.shape[dim] - 2 * half, half), dim)
        n, core = core.shape[dim], core.clone()
        if circular:
            core.narrow(dim, n - half, half).add_(before)
            core.narrow(dim, 0, half).add_(after)
        elif half:
            core.narrow(dim, 1, half).add_(before.flip(dim))
            core.narrow(dim, n - 1 - half, half).add_(after.flip(dim))
        x = core
    return x


def misfit_of(x: Tensor, y: Tensor, apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Misfit:
    """The specification of every misfit op, from maps in the dtype of sums.

    Arguments:
        x: (B, C, H, W) images.
        y: Observations.
        apply, adjoint: A and its transpose.
    """
    r = (y.to(accumulate(x)) - apply(x.to(accumulate(x)))).contiguous()
    return r.to(x.dtype, copy=True), r.square().flatten(1).sum(1), adjoint(r).to(x.dtype).contiguous()


def fake_misfit(x: Tensor, *rest: Any) -> Misfit:
    """Returns uninitialised results of a misfit op."""
    residual = torch.empty_like(x, memory_format=torch.contiguous_format)
    return residual, x.new_empty(x.shape[0], dtype=accumulate(x)), torch.empty_like(residual)


def misfit_gradients(
    residual: Tensor,
    grads: Sequence[Tensor | None],
    apply: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Returns the gradients to x and y, from those to residual, squared norm and adjoint; any of these may be None.

    Arguments:
        residual: y - A x.
        grads: The gradients to the results of `misfit_of`.
        apply, adjoint: A and its transpose.
    """
    to_residual, to_norm, to_adjoint = grads
    total = torch.zeros_like(residual) if to_residual is None else to_residual
    if to_norm is not None:
        total = total + (2 * to_norm.reshape(-1, 1, 1, 1) * residual).to(residual.dtype)
    if to_adjoint is not None:
        total = total + apply(to_adjoint)
    return -adjoint(total), total
