"""Convolutions in torch's own operators, which torch differentiates: for every device, torch.compile and training."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast.nn.layout import as_image, as_rows, cast
from emfast.nn.ways.operands import Columns, Plan, columns, is_product, kernel, sorted_bias


def plain_convolution(
    plan: Plan, residual: Tensor | None, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Returns what `emfast.nn.convolution` does.

    Arguments:
        plan: The constants.
        residual: What is added.
        xs: The inputs.
        weights: The weights.
        biases: As many, or none.
    """
    with torch.autocast(xs[0].device.type, enabled=False):
        bias = sorted_bias(biases, plan) if biases else None
        y: Any = None if residual is None else residual.to(plan.dtype)
        for x, part in zip(xs, columns(plan, [x.shape for x in xs]), strict=True):
            term = convolved(plan, cast(x, plan.dtype), matrix_or_kernel(weights, plan, part), bias)
            y, bias = term if y is None else term + y, None
    return y


def matrix_or_kernel(weights: Sequence[Tensor], plan: Plan, columns: Columns) -> Tensor:
    """Returns the kernels of some input channels in the compute precision; of a matrix product as its matrix.

    In float32 kernels stay kernels: torch lets cuDNN round to tf32 where it does not let cuBLAS.

    Arguments:
        weights: All weights.
        plan: The constants.
        columns: The channels.
    """
    w = kernel(weights, plan, columns)
    matrix = is_product(plan, weights) and (plan.dtype != torch.float32 or weights[0].dim() == 2)
    return w.flatten(1) if matrix else w


def convolved(plan: Plan, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the convolution of one input.

    Arguments:
        plan: The constants.
        x: The input.
        w: What `matrix_or_kernel` made.
        bias: The bias.
    """
    if plan.upsample:
        return F.conv_transpose2d(x, w, bias, 2, 1)
    if w.dim() == 2:
        return as_image(F.linear(as_rows(x), w, bias), x)
    return F.conv2d(x, w, bias, plan.stride, plan.padding)
