"""Convolutions by oneDNN with weights that are cast, folded and reordered once, forward and backward."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from emfast.nn.layout import CHANNELS_LAST, as_kernel, as_rows, is_real, upsampling_kernel_gradient
from emfast.nn.ways.operands import Columns, Parameters, Plan, columns, is_product, kernel, shift

ONE = [1, 1]  # dilation, as every call wants it


def unsupported(plan: Plan, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> str | None:
    """Returns why it cannot take these tensors, or None if it can."""
    if plan.training and plan.dtype == torch.float32:
        return "float32 weights that are new at every call: preparing them costs more than it saves"
    if not torch.backends.mkldnn.enabled or not _takes(plan.dtype):
        return f"{plan.dtype}, of which this oneDNN prepares no weights"
    if not is_real(*xs, *weights, *biases) or any(x.numel() == 0 for x in (*xs, *weights)):
        return "tensors without values"
    dense = all(w.is_contiguous() or w.is_contiguous(memory_format=CHANNELS_LAST) for w in weights)
    return None if dense else "weights with gaps"


@cache
def _takes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def forward(
    plan: Plan, xs: Sequence[Tensor], weights: Parameters, biases: Parameters | None, residual: Tensor | None
) -> Tensor:
    """Returns the convolution of the inputs plus the residual; each input's is added to that of those before it."""
    y, bias = residual, shift(biases, plan)
    for x, part in zip(xs, columns(plan, [x.shape for x in xs]), strict=True):
        if plan.training:  # the backward pass needs the kernel again, but not in this form
            w = _reordered(plan, weights.get(kernel, plan, part), x.shape)
        else:
            w = weights.get(_forward_kernel, plan, part, x.shape)
        y, bias = _convolved(plan, x, w, bias, y), None
    result: Any = y
    return result


def to_inputs(
    plan: Plan, g: Tensor, shapes: Sequence[torch.Size], weights: Parameters, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Returns the gradients to inputs. Where it can, each is a convolution, with kernels flipped and transposed."""
    size = as_kernel(weights.parts[0]).shape[2]
    same = plan.upsample or (plan.stride == 1 and 2 * plan.padding == size - 1)
    found: list[Tensor | None] = []
    for shape, part, need in zip(shapes, columns(plan, shapes), needs, strict=True):
        if not need:
            found.append(None)
        elif plan.training or not same:  # kernels that are learned change before they could be used again
            x = g.new_empty(1).expand(shape)
            found.append(_gradients(plan, g, x, weights.get(kernel, plan, part), [True, False, False])[0])
        else:
            w = weights.get(_backward_kernel, plan, part, g.shape)
            stride = [2 if plan.upsample else 1] * 2
            found.append(_operators()[0](g, w, None, [plan.padding] * 2, stride, ONE, 1, "none", [], ""))
    return found


def to_weights(plan: Plan, g: Tensor, xs: Sequence[Tensor], weights: Parameters) -> tuple[Tensor, None]:
    """Returns the gradient to the kernels."""
    slopes = []
    for x, part in zip(xs, columns(plan, [x.shape for x in xs]), strict=True):
        if is_product(plan, weights.parts):  # of long rows: MKL is faster than oneDNN
            with torch.autocast("cpu", enabled=False):
                slopes.append(as_kernel((as_rows(x).mT @ as_rows(g)).mT))
        else:
            slope = _gradients(plan, g, x, weights.get(kernel, plan, part), [False, True, False])[1]
            slopes.append(upsampling_kernel_gradient(slope.float()) if plan.upsample else slope)
    return slopes[0] if len(slopes) == 1 else torch.cat(slopes, 1), None


def _gradients(plan: Plan, g: Tensor, x: Tensor, w: Tensor, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    s, p = (2, 1) if plan.upsample else (plan.stride, plan.padding)
    arguments = (g, x, w, None, [s, s], [p, p], ONE, plan.upsample, [0, 0], 1, mask)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(*arguments)
    return found


def _forward_kernel(weights: Sequence[Tensor], plan: Plan, part: Columns, shape: torch.Size) -> Tensor:
    return _reordered(plan, kernel(weights, plan, part), shape)


def _backward_kernel(weights: Sequence[Tensor], plan: Plan, part: Columns, shape: torch.Size) -> Tensor:
    """Returns kernels as `to_inputs` reads them, for a gradient of a shape."""
    w = kernel(weights, plan, part)
    if plan.upsample:
        return _reorder(w, 2, plan.padding, shape)
    return _reorder(w.flip(2, 3).transpose(0, 1).contiguous(memory_format=CHANNELS_LAST), 1, plan.padding, shape)


def _reordered(plan: Plan, w: Tensor, shape: torch.Size) -> Tensor:
    """Returns kernels as the forward pass reads them, for an input of a shape."""
    if not plan.upsample:
        return _reorder(w, plan.stride, plan.padding, shape)
    reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
    packed: Tensor = reorder(w, ONE, [0, 0], [2, 2], ONE, 1, list(shape))
    return packed


def _reorder(w: Tensor, stride: int, padding: int, shape: torch.Size) -> Tensor:
    reorder = torch.ops.mkldnn._reorder_convolution_weight
    packed: Tensor = reorder(w, [padding] * 2, [stride] * 2, ONE, 1, list(shape))
    return packed


@cache
def _operators() -> Any:
    """Returns the overloads that are called, looked up once; a build of torch without oneDNN has none."""
    ops = torch.ops.mkldnn
    plain = ops._convolution_pointwise
    return plain.default, plain.binary, ops._convolution_transpose_pointwise.default


def _convolved(plan: Plan, x: Tensor, w: Tensor, bias: Tensor | None, other: Tensor | None) -> Tensor:
    """Returns the convolution of one input, added to what the others gave."""
    plain, binary, transposed = _operators()
    if plan.upsample:
        y: Tensor = transposed(x, w, bias, ONE, [0, 0], [2, 2], ONE, 1, "none", [], "")
        return y if other is None else y + other
    s, p = [plan.stride] * 2, [plan.padding] * 2
    if other is None:
        y = plain(x, w, bias, p, s, ONE, 1, "none", [], "")
    else:
        y = binary(x, other, w, bias, p, s, ONE, 1, "add", 1.0, None, [], None)
    return y
