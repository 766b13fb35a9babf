"""Attention at the sizes of a U-Net: many small heads, on the strides that the projections around it leave and want."""

from typing import Any

import torch
from torch import Tensor

from emfast._check import check
from emfast._library import register, run_cpp, triton_launcher
from emfast.ops import _tensors
from emfast.ops._tensors import DTYPES, accumulate

# Dimensions of a head that the Triton kernels take. Of 256 float32 ones the sums were 1.7 times less exact than torch's
# may be, and took 12 times as long (H100).
LARGEST, LARGEST_FLOAT32 = 256, 64


def attention(
    query: Tensor,  # (B, H, N, D)
    key: Tensor,  # (B, H, M, D)
    value: Tensor,  # (B, H, M, D)
    *,
    scale: float | None = None,
) -> Tensor:
    r"""Returns the mean of the values, weighted by the softmax of the scaled products of queries and keys.

    .. math:: \mathrm{softmax}(s \, q k^\top) v

    Arguments:
        query: The queries, in any strides: q, k and v may be views of one projection's output, of shape (B, N, H, D) or
            (B, N, 3, H, D), and are read where they are. float16, bfloat16, float32 or float64.
        key: The keys, M of them for N queries.
        value: The values.
        scale: s > 0; None is 1 / sqrt(D).

    Returns:
        A tensor of the shape and dtype of query, with the memory of a contiguous (B, N, H, D): what the projection
        behind it wants. Softmax and sums are float32 (float64 for float64). Gradients have the same strides.

    Raises:
        ValueError: If shapes do not match, there are no keys, or scale is not positive.
        TypeError: If the tensors are not floating, or differ in dtype.

    References:
        | Attention Is All You Need (Vaswani et al., 2017), arXiv 1706.03762
        | FlashAttention (Dao et al., 2022), arXiv 2205.14135
    """
    _validate(query, key, value, scale)
    out: Tensor = _forward(query, key, value, query.shape[3] ** -0.5 if scale is None else scale)[0]
    return out


def packed_attention(
    packed: Tensor,  # (3, B, H, N, D)
    *,
    scale: float | None = None,
) -> Tensor:
    r"""Returns `attention` of the queries, keys and values that one projection has put into one tensor.

    .. math:: \mathrm{softmax}(s \, q k^\top) v, \quad (q, k, v) = p

    Arguments:
        packed: A view of the projection's output, in any strides; it is read where it is.
        scale: s > 0; None is 1 / sqrt(D).

    Returns:
        A tensor as `attention` returns it. The gradient to packed has the strides of packed: as a whole it is what the
        projection's backward reads, with no copy of its three parts.
    """
    name = "packed_attention"
    floating = packed.is_floating_point()
    check(floating, name, "packed", "to be a floating tensor", packed.dtype, "Cast it with packed.float()", TypeError)
    fits = packed.dim() == 5 and packed.shape[0] == 3 and packed.shape[3] > 0 and packed.shape[4] > 0
    check(fits, name, "packed", "of shape (3, B, H, N, D), N and D > 0", packed)
    check(scale is None or scale > 0, name, "scale", "to be positive", scale)
    out: Tensor = _packed_forward(packed, packed.shape[4] ** -0.5 if scale is None else scale)[0]
    return out


def is_slow(packed: Tensor) -> bool:
    """Returns whether `emfast precompile --tune` measured torch's own attention to be faster on this GPU."""
    if not packed.is_cuda or torch.compiler.is_compiling():
        return False
    slow: bool = triton_launcher("attention", "is_slow")(packed)
    return slow


def _validate(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> None:
    name = "attention"
    floating = query.is_floating_point()
    check(floating, name, "query", "to be a floating tensor", query.dtype, "Cast it with query.float()", TypeError)
    check(query.dim() == 4 and query.shape[3] > 0, name, "query", "of shape (B, H, N, D)", query)
    fits = key.dim() == 4 and key.shape[:2] == query.shape[:2] and key.shape[3] == query.shape[3] and key.shape[2] > 0
    check(fits, name, "key", "of the shape (B, H, M, D) of query but for M > 0", key)
    check(value.shape == key.shape, name, "value", f"of the shape {tuple(key.shape)} of key", value)
    for argument, tensor in (("key", key), ("value", value)):
        check(tensor.dtype == query.dtype, name, argument, f"of dtype {query.dtype}", tensor.dtype, error=TypeError)
    check(scale is None or scale > 0, name, "scale", "to be positive", scale)


def reference(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The specification: the result, and (B, H, N): the log-sum-exp of the scores, which the backward reads."""
    q, k, v = _accumulated(query, key, value)
    scores = q @ k.mT * scale
    out, lse = _fake(query, key, value, scale)
    return out.copy_(scores.softmax(3) @ v), torch.logsumexp(scores, 3, out=lse)


def reference_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of the gradients to query, key and value."""
    g, q, k, v, o = _accumulated(grad, query, key, value, out)
    weights = (q @ k.mT * scale - lse[..., None]).exp()
    slopes = weights * (g @ v.mT - (g * o).sum(3, keepdim=True)) * scale
    dquery, dkey, dvalue = _fake_backward(grad, query, key, value)
    return dquery.copy_(slopes @ k), dkey.copy_(slopes.mT @ q), dvalue.copy_(weights.mT @ g)


def packed_reference(packed: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The specification of `packed_attention`."""
    query, key, value = packed.unbind()
    return reference(query, key, value, scale)


def packed_reference_backward(grad: Tensor, packed: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    """The specification of its gradient."""
    query, key, value = packed.unbind()
    gradients = reference_backward(grad, query, key, value, out, lse, scale)
    return torch.empty_like(packed).copy_(torch.stack(gradients))


def _accumulated(*tensors: Tensor) -> list[Tensor]:
    return [tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors]


def _empty(x: Tensor) -> Tensor:
    batch, heads, tokens, size = x.shape
    return x.new_empty((batch, tokens, heads, size)).transpose(1, 2)


def _fake(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulate(query)
    return _empty(query), query.new_empty(query.shape[:3], dtype=dtype)


def _fake_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _empty(query), _empty(key), _empty(value)


def _cpp(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = _fake(query)
    tensors = (query, key, value, out)
    run_cpp("attention", [*tensors, lse], tuple(t.stride() for t in tensors), _sizes(query, key), scale)
    return out, lse


def _cpp_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, ...]:
    results = _fake_backward(grad, query, key, value)
    _write_gradients((grad, query, key, value, out), lse, scale, results)
    return results


def _cpp_packed(packed: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    query, key, value = packed.unbind()
    return _cpp(query, key, value, scale)


def _cpp_packed_backward(grad: Tensor, packed: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    result = torch.empty_like(packed)
    dense = result.stride(4) == 1  # what the kernel writes
    written = result if dense else packed.new_empty(packed.shape)
    _write_gradients((grad, *packed.unbind(), out), lse, scale, written.unbind())
    return result if dense else result.copy_(written)


def _write_gradients(inputs: tuple[Tensor, ...], lse: Tensor, scale: float, results: tuple[Tensor, ...]) -> None:
    tensors = (*inputs, *results)
    strides, sizes = tuple(t.stride() for t in tensors), _sizes(*inputs[1:3])
    run_cpp("attention_backward", [*tensors, lse.contiguous()], strides, sizes, scale)


def _sizes(query: Tensor, key: Tensor) -> tuple[int, ...]:
    batch, heads, tokens, size = query.shape
    return DTYPES[query.dtype], batch, heads, tokens, key.shape[2], size


def largest(dtype: torch.dtype) -> int:
    """Returns the dimensions of a head that the Triton kernels take at most in a dtype."""
    return LARGEST_FLOAT32 if dtype == torch.float32 else LARGEST


def unsupported(query: Tensor, *rest: Any) -> str | None:
    """Returns why the kernels cannot take queries, or packed projections, or None if they can."""
    if query.is_cuda and query.shape[-1] > largest(query.dtype):
        return f"{query.shape[-1]} dimensions of a head, which only the reference takes"
    return _tensors.unsupported(query)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    return *_gradients(grad, *ctx.saved_tensors, ctx.scale), None


def _packed_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    return (None if grad is None else _packed_gradients(grad, *ctx.saved_tensors, ctx.scale)), None


_gradients = register(
    "attention_backward",
    "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, float scale)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference_backward,
    fake=_fake_backward,
    triton="attention_backward",
    cpp=_cpp_backward,
    unsupported=lambda grad, query, *rest: unsupported(query),
)
_forward = register(
    "attention",
    "(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor, Tensor)",
    reference=reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton="attention",
    cpp=_cpp,
    unsupported=unsupported,
)
_packed_gradients = register(
    "packed_attention_backward",
    "(Tensor grad, Tensor packed, Tensor out, Tensor lse, float scale) -> Tensor",
    reference=packed_reference_backward,
    fake=lambda grad, packed, *rest: torch.empty_like(packed),
    triton="attention_backward",
    cpp=_cpp_packed_backward,
    unsupported=lambda grad, packed, *rest: unsupported(packed),
)
_packed_forward = register(
    "packed_attention",
    "(Tensor packed, float scale) -> (Tensor, Tensor)",
    reference=packed_reference,
    fake=lambda packed, scale: _fake(packed[0]),
    backward=_packed_backward,
    setup_context=_setup_context,
    triton="attention",
    cpp=_cpp_packed,
    unsupported=unsupported,
)
