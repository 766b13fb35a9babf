"""Attention on the output of one projection to queries, keys and values, whose gradient is one tensor too."""

from typing import Any

import torch
from torch import Tensor

from emfast._check import check
from emfast._library import addresses, extension, register
from emfast.ops.attention import DTYPES, reference_backward
from emfast.ops.attention import reference as reference_of_parts


def packed_attention(
    qkv: Tensor,  # (3, B, H, N, D)
    *,
    scale: float | None = None,
) -> Tensor:
    r"""Returns `attention` of queries, keys and values that are views of one tensor.

    .. math:: \mathrm{softmax}(s \, q k^\top) v

    Arguments:
        qkv: Queries, keys and values, in any strides; float16, bfloat16, float32 or float64.
        scale: s > 0; None is 1 / sqrt(D).

    Returns:
        A tensor of shape (B, H, N, D) with the memory of a contiguous (B, N, H, D). The gradient to qkv has the strides
        of qkv if these leave no gaps: nothing is gathered for it.

    Raises:
        ValueError: If qkv has another shape, or scale is not positive.
        TypeError: If qkv is not floating.

    References:
        | Attention Is All You Need (Vaswani et al., 2017), arXiv 1706.03762
    """
    name = "packed_attention"
    check(qkv.is_floating_point(), name, "qkv", "to be a floating tensor", qkv.dtype, error=TypeError)
    check(qkv.dim() == 5 and len(qkv) == 3 and qkv.shape[4] > 0, name, "qkv", "of shape (3, B, H, N, D)", qkv)
    check(scale is None or scale > 0, name, "scale", "to be positive", scale)
    out: Tensor = _forward(qkv, qkv.shape[4] ** -0.5 if scale is None else scale)[0]
    return out


def reference(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The specification: the result, and (B, H, N): the log-sum-exp of the scores, which the backward reads."""
    query, key, value = qkv.unbind()
    return reference_of_parts(query, key, value, scale)


def reference_gradient(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    """The specification of the gradient to qkv."""
    query, key, value = qkv.unbind()
    gradients = reference_backward(grad, query, key, value, out, lse, scale)
    return torch.empty_like(qkv).copy_(torch.stack(gradients))


def _fake(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    _, batch, heads, tokens, size = qkv.shape
    dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    out = qkv.new_empty((batch, tokens, heads, size)).transpose(1, 2)
    return out, qkv.new_empty((batch, heads, tokens), dtype=dtype)


def _cpp(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = _fake(qkv, scale)
    tensors = (*qkv.unbind(), out)
    extension().attention(addresses(*tensors, lse), [t.stride() for t in tensors], _sizes(qkv), scale)
    return out, lse


def _cpp_gradient(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    result = torch.empty_like(qkv)
    tensors = (grad, *qkv.unbind(), out, *result.unbind())
    where = addresses(*tensors, lse.contiguous())
    extension().attention_backward(where, [t.stride() for t in tensors], _sizes(qkv), scale)
    return result


def _sizes(qkv: Tensor) -> tuple[int, ...]:
    _, batch, heads, tokens, size = qkv.shape
    return DTYPES[qkv.dtype], batch, heads, tokens, tokens, size


def unsupported(qkv: Tensor, *rest: Any) -> str | None:
    """Returns why the kernels cannot take qkv, or None if they can."""
    if qkv.numel() == 0:
        return "an empty tensor"
    return None if qkv.dtype in DTYPES else f"{qkv.dtype}, which only the reference takes"


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.scale = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
    return None if grad is None else _gradient(grad, *ctx.saved_tensors, ctx.scale), None


_gradient = register(
    "packed_attention_backward",
    "(Tensor grad, Tensor qkv, Tensor out, Tensor lse, float scale) -> Tensor",
    reference=reference_gradient,
    fake=lambda grad, qkv, *rest: torch.empty_like(qkv),
    cpp=_cpp_gradient,
    unsupported=lambda grad, qkv, *rest: unsupported(qkv),
)
_forward = register(
    "packed_attention",
    "(Tensor qkv, float scale) -> (Tensor, Tensor)",
    reference=reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    cpp=_cpp,
    unsupported=unsupported,
)
