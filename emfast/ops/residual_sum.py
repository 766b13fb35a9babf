"""The sum at the end of a residual block, with bias and scale, in one pass."""

from typing import Any

import torch
from torch import Tensor

from emfast._check import check
from emfast._library import register, wanted_gradients
from emfast.ops._tensors import accumulate, empty, unsupported

MOST = 3  # terms


def residual_sum(
    *terms: Tensor,  # (B, C, ...)
    bias: Tensor | None = None,  # (C,)
    scale: float = 1.0,
) -> Tensor:
    r"""Returns the scaled sum of one to three tensors and a bias.

    .. math:: s \, (x_1 + x_2 + x_3 + b)

    Arguments:
        terms: The results of convolutions, and what they are added to; float16, bfloat16, float32 or float64.
        bias: The sum of their biases, per channel, in any floating dtype.
        scale: s.

    Returns:
        A tensor of the shape, dtype and memory format of the first term (channels_last stays so, the rest is
        contiguous). Arithmetic is float32 (float64 for float64), rounded once.

    Raises:
        ValueError: If there are more than three terms, or shapes do not match.
        TypeError: If the terms are not floating, or differ in dtype.
    """
    name = "residual_sum"
    check(0 < len(terms) <= MOST, name, "the number of terms", f"to be 1 to {MOST}", len(terms))
    x = terms[0]
    check(x.is_floating_point(), name, "x", "to be a floating tensor", x.dtype, "Cast it with x.float()", TypeError)
    check(x.dim() >= 2, name, "x", "of shape (B, C, ...)", x)
    for term in terms[1:]:
        check(term.shape == x.shape, name, "every term", f"of the shape {tuple(x.shape)} of the first", term)
        check(term.dtype == x.dtype, name, "every term", f"of dtype {x.dtype}", term.dtype, error=TypeError)
    check(bias is None or bias.shape == x.shape[1:2], name, "bias", f"of shape ({x.shape[1]},)", bias)
    y: Tensor = _op(*terms, *[None] * (MOST - len(terms)), bias, float(scale))
    return y


def reference(x: Tensor, second: Tensor | None, third: Tensor | None, bias: Tensor | None, scale: float) -> Tensor:
    """The specification."""
    h = x.to(accumulate(x))
    for term in (second, third):
        h = h if term is None else h + term.to(h.dtype)
    if bias is not None:
        h = h + bias.to(h.dtype).reshape(-1, *[1] * (x.dim() - 2))
    return empty(x, x.shape[1]).copy_(h * scale)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return empty(x, x.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.slots = [i for i, tensor in enumerate(tensors) if tensor is not None]
    ctx.dtype = None if tensors[3] is None else tensors[3].dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """One gradient for all terms: that to the sum itself, without a pass, where the scale is 1."""
    needs = wanted_gradients(ctx)
    g = grad if ctx.scale == 1 else grad * ctx.scale
    wide = torch.promote_types(grad.dtype, torch.float32)
    dbias = g.sum([0, *range(2, g.dim())], dtype=wide).to(ctx.dtype) if needs[3] else None
    return *[g if need else None for need in needs[:3]], dbias, None


_op = register(
    "residual_sum",
    "(Tensor x, Tensor? second, Tensor? third, Tensor? bias, float scale) -> Tensor",
    reference=reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton="residual_sum",
    unsupported=unsupported,
)
