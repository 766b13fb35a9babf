"""Convolutions on a GPU by cuDNN, and matrix products by cuBLAS, with weights that are cast and folded once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast.nn.layout import as_image, as_kernel, as_rows, is_real, upsampling_kernel_gradient
from emfast.nn.ways.operands import Parameters, Plan, columns, shift
from emfast.nn.ways.plain import convolved, matrix_or_kernel


def unsupported(plan: Plan, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> str | None:
    """Returns why it cannot take these tensors, or None if it can."""
    if plan.training:
        return "weights that are new at every call, for which nothing is prepared"
    return None if is_real(*weights, *biases) else "weights without values"


def forward(
    plan: Plan, xs: Sequence[Tensor], weights: Parameters, biases: Parameters | None, residual: Tensor | None
) -> Tensor:
    """Returns the convolution of one input; several, and what is added, are `emfast.ops.residual_sum`'s."""
    (x,), (part,) = xs, columns(plan, [x.shape for x in xs])
    with torch.autocast(x.device.type, enabled=False):
        return convolved(plan, x, weights.get(matrix_or_kernel, plan, part), shift(biases, plan))


def to_inputs(
    plan: Plan, g: Tensor, shapes: Sequence[torch.Size], weights: Parameters, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Returns the gradient to the input, which is the transposed convolution: the input itself is not needed."""
    (shape,), (part,) = shapes, columns(plan, shapes)
    return [_to_input(plan, g, weights.get(matrix_or_kernel, plan, part), shape) if needs[0] else None]


def _to_input(plan: Plan, g: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
    if plan.upsample:
        return F.conv2d(g, w, None, 2, 1)
    if w.dim() == 2:
        return as_image(as_rows(g) @ w, g)
    before = (n - (m - 1) * plan.stride for n, m in zip(shape[2:], g.shape[2:], strict=True))
    rest = [n + 2 * plan.padding - w.shape[2] for n in before]  # pixels that no kernel reached
    return F.conv_transpose2d(g, w, None, plan.stride, plan.padding, rest)


def to_weights(plan: Plan, g: Tensor, xs: Sequence[Tensor], weights: Parameters) -> tuple[Tensor, None]:
    """Returns the gradient to the kernels."""
    (x,), (part,) = xs, columns(plan, [x.shape for x in xs])
    w = weights.get(matrix_or_kernel, plan, part)
    if w.dim() == 2:
        return as_kernel(as_rows(g).mT @ as_rows(x)), None
    s, p = (2, 1) if plan.upsample else (plan.stride, plan.padding)
    arguments = (g, x, w, None, [s, s], [p, p], [1, 1], plan.upsample, [0, 0], 1, [False, True, False])
    slope: Tensor = torch.ops.aten.convolution_backward(*arguments)[1]
    return upsampling_kernel_gradient(slope.float()) if plan.upsample else slope, None
