"""Convolutions by emfast's own kernels in bfloat16, on processors with AMX: weights are read as they are.

In training weights are new at every step, and preparing them for another way would cost more than it saves. The
concatenation of two inputs is never written.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from emfast.nn.layout import as_kernel, is_real, joined, sorted_rows
from emfast.nn.ways.operands import Parameters, Plan
from emfast.ops.convolution import convolution, convolution_input_gradient
from emfast.ops.convolution import unsupported as unsupported_by_op
from emfast.ops.convolution_weight_gradient import convolution_weight_gradient


def unsupported(plan: Plan, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> str | None:
    """Returns why it cannot take these tensors, or None if it can."""
    learns = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
    if not (plan.training and learns) and len(xs) == 1:
        return "one input outside of training, for which other ways prepare the weights"
    if len(xs) > 2:
        return f"{len(xs)} inputs; the kernel takes two"
    if not is_real(*xs, *weights, *biases) or any(x.numel() == 0 for x in (*xs, *weights)):
        return "tensors without values"
    return unsupported_by_op(plan.dtype, [as_kernel(w) for w in weights], biases, plan.window)


def forward(
    plan: Plan, xs: Sequence[Tensor], weights: Parameters, biases: Parameters | None, residual: Tensor | None
) -> Tensor:
    """Returns the convolution of one input or two, plus the residual."""
    shifts = [] if biases is None else _in_order(plan, biases.parts)
    return convolution(xs[0], xs[1] if len(xs) == 2 else None, _kernels(plan, weights), shifts, residual, plan.window)


def to_inputs(
    plan: Plan, g: Tensor, shapes: Sequence[torch.Size], weights: Parameters, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Returns the gradients to all inputs, which come in one pass."""
    if not any(needs):
        return [None] * len(shapes)
    found = convolution_input_gradient(g, _kernels(plan, weights), shapes[0], plan.window)
    return [*found[: len(shapes)]]


def to_weights(plan: Plan, g: Tensor, xs: Sequence[Tensor], weights: Parameters) -> tuple[Tensor, Tensor]:
    """Returns the gradients to the kernels and to the bias, which come in one pass."""
    size = as_kernel(weights.parts[0]).shape[2]
    return convolution_weight_gradient(g, xs[0], xs[1] if len(xs) == 2 else None, size, plan.window)


def _kernels(plan: Plan, weights: Parameters) -> list[Tensor]:
    return [as_kernel(w) for w in _in_order(plan, weights.parts)]


def _in_order(plan: Plan, parts: Sequence[Tensor]) -> list[Tensor]:
    """Returns parameters in the order of the result's channels."""
    return list(parts) if plan.interleaved == 1 else [sorted_rows(joined(parts), plan.interleaved)]
