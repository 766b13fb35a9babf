"""Convolutions on a GPU: by cuDNN and cuBLAS, with weights that are cast and folded once, and one pass for the rest.

cuDNN adds no bias and no residual as torch calls it: each is a pass over the image. What follows a convolution takes
them instead: a normalisation its bias (`later`), `residual_sum` all that the last convolution of a block is added to.
A convolution of two inputs is a term for each: their concatenation would be written, and read again. A 1 x 1
convolution is a matrix product, which adds its bias for nothing, and so is a linear layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast._library import wanted
from emfast.nn import prepared as memory
from emfast.nn.packed import (
    Plan,
    as_image,
    as_kernel,
    as_rows,
    cast,
    fold,
    interleaved_rows,
    is_product,
    is_real,
    sorted_rows,
    unfold,
)
from emfast.nn.prepared import prepared
from emfast.ops.residual_sum import MOST, residual_sum

KINDS = {"cuda"}  # of devices


def on_gpu(x: Tensor) -> bool:
    """Returns whether a tensor goes the way of GPUs."""
    return x.device.type in KINDS


@contextmanager
def rehearsed() -> Iterator[None]:
    """In the block CPU tensors, fake ones too, go the way of GPUs; nothing is kept that was prepared there."""
    from emfast.nn.attention import KERNELS

    with (
        patch.object(memory, "_kept", type(memory._kept)()),
        patch.dict(KERNELS, cpu=True),
        patch(f"{__name__}.KINDS", KINDS | {"cpu"}),
    ):
        yield


def later(bias: Tensor | None, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Returns the bias of a convolution of x, as what the convolution adds, and what the normalisation behind it does.

    Arguments:
        bias: The bias.
        x: What the convolution reads.
    """
    return (None, bias) if on_gpu(x) else (bias, None)


def terms(
    plan: Plan, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], *, training: bool
) -> list[Tensor]:
    """Returns the convolution of each input; they are still to be added. The first has the bias.

    Arguments:
        plan: The constants.
        xs: The inputs.
        weights: The kernels, of all inputs.
        biases: As many as weights, or none.
        training: Whether weights are new at every call.
    """
    found, start = [], 0
    plain = training or torch.compiler.is_compiling() or not is_real(*weights, *biases)
    with torch.autocast(xs[0].device.type, enabled=False):
        for x in xs:
            columns = (start, start + x.shape[1])
            own = () if start else biases
            if plain:
                parts = cast(x, plan.dtype), _kernel(weights, plan, columns), _bias(own, plan) if own else None
                found.append(_convolve(plan, *parts))
            else:
                found.append(_Term.apply(plan, columns, x, *weights, *own))
            start = columns[1]
    return found


def added(parts: list[Tensor], bias: Tensor | None, scale: float) -> Tensor:
    """Returns the scaled sum of any number of terms and a bias.

    Arguments:
        parts: The terms.
        bias: The sum of their biases.
        scale: The factor.
    """
    while len(parts) > MOST:
        parts = [residual_sum(*parts[:MOST]), *parts[MOST:]]
    return residual_sum(*parts, bias=bias, scale=scale)


def _kernel(weights: Sequence[Tensor], plan: Plan, columns: tuple[int, int]) -> Tensor:
    """Returns the kernels of some input channels, in the compute precision; folded in float32 at least.

    Those of a matrix product are a matrix. In float32 the weights of a convolution stay its own: torch lets cuDNN round
    to tf32 where it does not let cuBLAS.
    """
    product = is_product(plan, weights) and (plan.dtype != torch.float32 or weights[0].dim() == 2)
    w = as_kernel(weights[0] if len(weights) == 1 else torch.cat(tuple(weights)))
    w = sorted_rows(w, plan.interleaved)
    w = w if columns == (0, w.shape[1]) else w[:, columns[0] : columns[1]]
    if plan.upsample:
        w = fold(w.to(torch.promote_types(w.dtype, torch.float32)))
    return w.flatten(1).to(plan.dtype) if product else cast(w, plan.dtype)


def _bias(biases: Sequence[Tensor], plan: Plan) -> Tensor:
    return sorted_rows(biases[0] if len(biases) == 1 else torch.cat(tuple(biases)), plan.interleaved).to(plan.dtype)


def _convolve(plan: Plan, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    if plan.upsample:
        return F.conv_transpose2d(x, w, bias, 2, 1)
    if w.dim() == 2:
        return as_image(F.linear(as_rows(x), w, bias), x)
    return F.conv2d(x, w, bias, plan.stride, plan.padding)


def _to_input(plan: Plan, g: Tensor, w: Tensor, size: torch.Size) -> Tensor:
    """The gradient to the input, which is the transposed convolution: the input itself is not needed."""
    if plan.upsample:
        return F.conv2d(g, w, None, 2, 1)
    if w.dim() == 2:
        return as_image(as_rows(g) @ w, g)
    before = (n - (m - 1) * plan.stride for n, m in zip(size[2:], g.shape[2:], strict=True))
    rest = [n + 2 * plan.padding - w.shape[2] for n in before]  # pixels that no kernel reached
    return F.conv_transpose2d(g, w, None, plan.stride, plan.padding, rest)


def _to_weight(plan: Plan, g: Tensor, x: Tensor, w: Tensor) -> Tensor:
    if w.dim() == 2:
        return as_kernel(as_rows(g).mT @ as_rows(x))
    s, p = (2, 1) if plan.upsample else (plan.stride, plan.padding)
    arguments = (g, x, w, None, [s, s], [p, p], [1, 1], plan.upsample, [0, 0], 1, [False, True, False])
    slope: Tensor = torch.ops.aten.convolution_backward(*arguments)[1]
    return unfold(slope.float()) if plan.upsample else slope


class _Term(torch.autograd.Function):
    """The convolution of one input, with prepared weights both ways."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, columns: tuple[int, int], x: Tensor, *tensors: Tensor) -> Any:
        weights, biases = tensors[: plan.outputs], tensors[plan.outputs :]
        ctx.plan, ctx.columns, ctx.size, ctx.dtype = plan, columns, x.shape, x.dtype
        ctx.biases, ctx.slots = [b.dtype for b in biases], range(2, 3 + len(tensors))
        x = cast(x, plan.dtype)
        ctx.save_for_backward(*weights, *((x,) if any(ctx.needs_input_grad[3:]) else ()))
        ctx.prepared = prepared(weights)
        bias = prepared(biases).get(biases, _bias, plan) if biases else None
        return _convolve(plan, x, ctx.prepared.get(weights, _kernel, plan, columns), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan, columns, behind = ctx.plan, ctx.columns, 3 + ctx.plan.outputs
        saved = ctx.saved_tensors  # once: gradient checkpointing recomputes them
        weights, needs = saved[: plan.outputs], wanted(ctx)
        rows = [weight.shape[0] for weight in weights]
        g, w = cast(grad, plan.dtype), ctx.prepared.get(weights, _kernel, plan, columns)
        gradients: list[Any] = [None] * len(needs)
        if needs[2]:
            gradients[2] = _to_input(plan, g, w, ctx.size).to(ctx.dtype)
        if any(needs[3:behind]):
            parts = interleaved_rows(_to_weight(plan, g, saved[-1], w), plan.interleaved).split(rows)
            gradients[3:behind] = [_placed(*pair, columns) for pair in zip(parts, weights, strict=True)]
        if any(needs[behind:]):
            sums = g.sum((0, 2, 3), dtype=torch.promote_types(g.dtype, torch.float32))
            parts = interleaved_rows(sums, plan.interleaved).split(rows)
            gradients[behind:] = [part.to(dtype) for part, dtype in zip(parts, ctx.biases, strict=True)]
        return tuple(gradients)


def _placed(part: Tensor, weight: Tensor, columns: tuple[int, int]) -> Tensor:
    """Returns the gradient to some input channels as that to a weight."""
    whole = torch.zeros_like(as_kernel(weight), memory_format=torch.contiguous_format)
    whole[:, columns[0] : columns[1]] = part
    return whole.reshape(weight.shape)
