"""3 x 3 convolutions in float32 by Winograd's algorithm, where that was measured to be faster than oneDNN."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast._library import extension_error, wanted
from emfast.nn.packed import Plan, as_rows, cast, on_cpu
from emfast.nn.prepared import Prepared, prepared
from emfast.ops._winograd import best_width
from emfast.ops.winograd_convolution import WinogradWeights, is_slow, winograd_convolution, winograd_kernel
from emfast.ops.winograd_weight_gradient import is_slow as is_slow_gradient
from emfast.ops.winograd_weight_gradient import winograd_weight_gradient


def is_winograd(plan: Plan, xs: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    """Returns whether `winograd` can take these inputs, and the weight and bias, and is faster than oneDNN."""
    weight, inputs = tensors[0], sum(x.shape[1] for x in xs)
    fits = plan.dtype == torch.float32 and (plan.stride, plan.padding, plan.outputs, plan.interleaved) == (1, 1, 1, 1)
    if not fits or len(xs) > 2 or weight.shape[2:] != (3, 3) or is_slow(inputs, weight.shape[0]):
        return False
    if torch.compiler.is_compiling() or extension_error():
        return False
    given = (*xs, *tensors)
    return on_cpu(*given) and all(t.numel() > 0 for t in given) and weight.dtype == torch.float32


def winograd(plan: Plan, training: bool, residual: Tensor | None, *tensors: Tensor) -> Tensor:
    """Returns what `convolution` does, for inputs, weight and bias in this order.

    Arguments:
        plan: The constants.
        training: Whether weights are new at every call, so that their transforms are not kept.
        residual: What is added.
        tensors: The inputs, the weight and the bias.
    """
    y: Tensor = _Winograd.apply(plan, training, residual, *tensors)
    return y


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, training: bool, residual: Tensor | None, *tensors: Tensor) -> Any:
        n = plan.inputs
        xs, weight = [cast(x, plan.dtype) for x in tensors[:n]], tensors[n]
        bias = tensors[n + 1].to(plan.dtype) if plan.bias else None
        ctx.plan, ctx.sizes = plan, [x.shape for x in xs]
        ctx.dtypes = [t.dtype for t in tensors]
        ctx.residual = None if residual is None else residual.dtype
        ctx.slots = [i for i, t in enumerate((residual, *tensors), 2) if t is not None]
        ctx.save_for_backward(weight, *(xs if ctx.needs_input_grad[3 + n] else ()))
        ctx.prepared = None if training else prepared([weight])
        part = 0, weight.shape[1], False, _width(plan, xs[0])
        return winograd_convolution(
            xs[0],
            _kernel(ctx.prepared, weight, part),
            weight.shape[0],
            skip=xs[1] if n == 2 else None,
            bias=bias,
            residual=None if residual is None else cast(residual, plan.dtype),
            resample="upsample" if plan.upsample else None,
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan, n = ctx.plan, ctx.plan.inputs
        weight, *xs = ctx.saved_tensors
        needs = wanted(ctx)[2:]
        gradients: list[Any] = [grad.to(ctx.residual) if needs[0] else None, *[None] * len(ctx.dtypes)]
        g, begin = cast(grad, plan.dtype), 0
        for i, size in enumerate(ctx.sizes):
            if needs[1 + i]:
                kernel = _kernel(ctx.prepared, weight, (begin, begin + size[1], True, _width(plan, g)))
                dx = winograd_convolution(g, kernel, size[1], resample="pool" if plan.upsample else None)
                gradients[1 + i] = dx.to(ctx.dtypes[i])
            begin += size[1]
        if needs[1 + n]:
            gradients[1 + n] = _to_weight(plan, g, xs, weight)
        if plan.bias and needs[2 + n]:
            sums = as_rows(g).sum(0)
            gradients[2 + n] = sums.to(ctx.dtypes[1 + n])
        return None, None, *gradients


Part = tuple[int, int, bool, int]  # of a weight: its first and last input channel, whether mirrored, the tiles' width


def _kernel(kept: Prepared | None, weight: Tensor, part: Part) -> Tensor | WinogradWeights:
    """Returns the transformed kernel, or (where weights are new at every call) what the op transforms itself."""
    return WinogradWeights(weight, *part) if kept is None else kept.get([weight], _transformed, part)


def _transformed(weights: Sequence[Tensor], part: Part) -> Tensor:
    return winograd_kernel(WinogradWeights(weights[0], *part))


def _width(plan: Plan, x: Tensor) -> int:
    return 2 if plan.upsample else best_width(x.shape[3])


def _to_weight(plan: Plan, g: Tensor, xs: Sequence[Tensor], weight: Tensor) -> Tensor:
    if not is_slow_gradient(*weight.shape[:2]):
        return winograd_weight_gradient(g, *xs, upsample=plan.upsample, width=_width(plan, g))
    h = xs[0] if len(xs) == 1 else torch.cat(tuple(xs), 1)
    h = F.interpolate(h, scale_factor=2.0) if plan.upsample else h
    one, mask = [1, 1], [False, True, False]
    dweight: Tensor = torch.ops.aten.convolution_backward(g, h, weight, None, one, one, one, False, [0, 0], 1, mask)[1]
    return dweight
