"""Convolutions in training: the weights are new at every step, so that nothing is prepared for them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emfast._library import wanted
from emfast.nn.packed import Plan, as_kernel, cast, on_cpu
from emfast.ops.convolution import convolution, convolution_input_gradient, unsupported
from emfast.ops.convolution_weight_gradient import convolution_weight_gradient


def is_learned(plan: Plan, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
    """Returns whether the weights are to get gradients, or there is a pair, and the op can take these tensors."""
    learns = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
    if torch.compiler.is_compiling() or not (learns or len(xs) > 1):
        return False
    return (
        on_cpu(*xs, *weights, *biases)
        and all(x.numel() > 0 for x in (*xs, *weights))
        and len(xs) <= 2
        and unsupported(plan.dtype, [as_kernel(w) for w in weights], biases, window(plan)) is None
    )


def learned_convolution(plan: Plan, residual: Tensor | None, *tensors: Tensor) -> Tensor:
    """Returns what `emfast.nn.convolution` does, for inputs, weights and biases in this order."""
    y: Tensor = _Learned.apply(plan, residual, *tensors)
    return y


def window(plan: Plan) -> tuple[int, int, bool]:
    """Returns stride, padding and whether x is upsampled, as the ops take them."""
    return plan.stride, plan.padding, plan.upsample


class _Learned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, residual: Tensor | None, *tensors: Tensor) -> Any:
        n, m = plan.inputs, plan.inputs + plan.outputs
        xs, weights = [cast(x, plan.dtype) for x in tensors[:n]], tensors[n:m]
        ctx.plan, ctx.dtypes = plan, [t.dtype for t in tensors]
        ctx.residual = None if residual is None else residual.dtype
        ctx.slots = [i for i, t in enumerate((residual, *tensors), 1) if t is not None]
        ctx.save_for_backward(*weights, *xs)
        other = None if residual is None else cast(residual, plan.dtype)
        kernels = [as_kernel(w) for w in weights]
        return convolution(xs[0], xs[1] if n == 2 else None, kernels, tensors[m:], other, window(plan))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan, n, m = ctx.plan, ctx.plan.inputs, ctx.plan.inputs + ctx.plan.outputs
        saved = ctx.saved_tensors  # once: gradient checkpointing recomputes them
        weights, xs = saved[: plan.outputs], saved[plan.outputs :]
        needs = wanted(ctx)[1:]
        gradients: list[Any] = [grad.to(ctx.residual) if needs[0] else None, *[None] * len(ctx.dtypes)]
        g = cast(grad, plan.dtype)
        if any(needs[1 : 1 + n]):
            both = convolution_input_gradient(g, [as_kernel(w) for w in weights], xs[0].shape, window(plan))
            gradients[1 : 1 + n] = [dx.to(dtype) for dx, dtype in zip(both, ctx.dtypes[:n], strict=False)]
        if any(needs[1 + n :]):
            size, rows = as_kernel(weights[0]).shape[2], [w.shape[0] for w in weights]
            dweight, dbias = convolution_weight_gradient(g, xs[0], xs[1] if n == 2 else None, size, window(plan))
            parts = dweight.split(rows)
            gradients[1 + n : 1 + m] = [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]
            if plan.bias:
                gradients[1 + m :] = dbias.split(rows)
        return None, *gradients
