"""3 x 3 convolutions in float32 by Winograd's algorithm."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast.nn.layout import is_real, joined
from emfast.nn.ways.operands import Parameters, Plan, columns, shift
from emfast.ops._winograd import best_width
from emfast.ops.winograd_convolution import WinogradWeights, is_slow, winograd_convolution, winograd_kernel
from emfast.ops.winograd_weight_gradient import is_slow as is_slow_gradient
from emfast.ops.winograd_weight_gradient import winograd_weight_gradient

Part = tuple[int, int, bool, int]  # of a weight: its first and last input channel, whether mirrored, the tiles' width


def unsupported(plan: Plan, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> str | None:
    """Returns why it cannot take these tensors, or None if it can."""
    weight = weights[0]
    if plan.dtype != torch.float32 or weight.dtype != torch.float32:
        return f"{plan.dtype} with weights of {weight.dtype}; the kernel computes in float32"
    if (plan.stride, plan.padding) != (1, 1) or weight.shape[2:] != (3, 3):
        return f"kernel {tuple(weight.shape[2:])}, stride {plan.stride}, padding {plan.padding}; it takes 3 x 3, 1, 1"
    if len(weights) > 1 or plan.interleaved > 1 or len(xs) > 2:
        return "several weights, interleaved rows, or more than two inputs"
    given = (*xs, *weights, *biases)
    return None if is_real(*given) and all(t.numel() > 0 for t in given) else "tensors without values"


def slower(plan: Plan, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
    """Returns whether oneDNN was measured to be faster."""
    return is_slow(sum(x.shape[1] for x in xs), weights[0].shape[0])


def forward(
    plan: Plan, xs: Sequence[Tensor], weights: Parameters, biases: Parameters | None, residual: Tensor | None
) -> Tensor:
    """Returns the convolution of one input or two, plus the residual."""
    weight = weights.parts[0]
    return winograd_convolution(
        xs[0],
        _kernel(plan, weights, (0, weight.shape[1], False, _width(plan, xs[0]))),
        weight.shape[0],
        skip=xs[1] if len(xs) == 2 else None,
        bias=shift(biases, plan),
        residual=residual,
        resample="upsample" if plan.upsample else None,
    )


def to_inputs(
    plan: Plan, g: Tensor, shapes: Sequence[torch.Size], weights: Parameters, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Returns the gradients to inputs, each the convolution with mirrored kernels."""
    found: list[Tensor | None] = []
    for (first, end), need in zip(columns(plan, shapes), needs, strict=True):
        kernel = _kernel(plan, weights, (first, end, True, _width(plan, g))) if need else None
        resample = "pool" if plan.upsample else None
        found.append(None if kernel is None else winograd_convolution(g, kernel, end - first, resample=resample))
    return found


def to_weights(plan: Plan, g: Tensor, xs: Sequence[Tensor], weights: Parameters) -> tuple[Tensor, None]:
    """Returns the gradient to the kernels."""
    weight = weights.parts[0]
    if not is_slow_gradient(*weight.shape[:2]):
        width = _width(plan, g)
        return winograd_weight_gradient(g, *xs, upsample=plan.upsample, width=width), None
    h = joined(xs, 1)
    h = F.interpolate(h, scale_factor=2.0) if plan.upsample else h
    one, mask = [1, 1], [False, True, False]
    return torch.ops.aten.convolution_backward(g, h, weight, None, one, one, one, False, [0, 0], 1, mask)[1], None


def _kernel(plan: Plan, weights: Parameters, part: Part) -> Tensor | WinogradWeights:
    """Returns the transformed kernel, or (where weights are new at every call) what the op transforms itself."""
    return WinogradWeights(weights.parts[0], *part) if plan.training else weights.get(_transformed, part)


def _transformed(weights: Sequence[Tensor], part: Part) -> Tensor:
    return winograd_kernel(WinogradWeights(weights[0], *part))


def _width(plan: Plan, x: Tensor) -> int:
    return 2 if plan.upsample else best_width(x.shape[3])
