r"""The convolution of the accelerated modules: channels_last, in the compute precision, with weights prepared once.

Nearest-neighbour upsampling by two followed by a 3 x 3 convolution is a transposed convolution of stride 2 whose 4 x 4
kernel is the 3 x 3 kernel convolved with a 2 x 2 box: 4/9 of the multiplications, and the large image is never written.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast.nn.gpu import added, on_gpu, terms
from emfast.nn.learned import is_learned, learned_convolution
from emfast.nn.packed import Plan, as_kernel, cast, fold, is_packed, packed_convolution, sorted_rows
from emfast.nn.winograd import is_winograd, winograd

Tensors = Sequence[Tensor]


class Shortcut(NamedTuple):
    """A residual that is a convolution itself: `convolution(x, weight, bias, padding=padding)`."""

    x: Tensor | Sequence[Tensor]
    weight: Tensor
    bias: Tensor | None
    padding: int = 0


def convolution(
    x: Tensor | Sequence[Tensor],  # (B, C, H, W)
    weight: Tensor | Sequence[Tensor],  # (D, C, K, K) or (D, C)
    bias: Tensor | Sequence[Tensor] | None = None,  # (D,)
    *,
    residual: Tensor | Shortcut | None = None,  # (B, D, H, W)
    scale: float = 1.0,
    stride: int = 1,
    padding: int = 0,
    upsample: bool = False,
    dtype: torch.dtype | None = None,
    interleaved: int = 1,
    training: bool = False,
) -> Tensor:
    r"""Returns the convolution of x, plus a residual, in channels_last.

    .. math:: y = s (w * x + b + r)

    Arguments:
        x: The features. Several tensors are read as their concatenation over channels, which is never written.
        weight: The kernels. Several tensors are read as their concatenation over output channels.
        bias: As many as weights, or None.
        residual: What is added to the result.
        scale: s.
        stride: The stride.
        padding: The zeros around x.
        upsample: Whether x is first upsampled by two (nearest neighbours); the kernel is 3 x 3 and the padding 1.
        dtype: The precision of products (sums are float32); that of x by default. Weights keep theirs, and their
            gradients have it.
        interleaved: Of how many groups the outputs of the weights are in turn; the result has group after group.
        training: Whether weights are new at every call, so that preparing them would cost more than it saves.
    """
    xs = tuple(x) if not isinstance(x, Tensor) else (x,)
    weights = tuple(weight) if not isinstance(weight, Tensor) else (weight,)
    biases = () if bias is None else tuple(bias) if not isinstance(bias, Tensor) else (bias,)
    plan = Plan(stride, padding, upsample, dtype or xs[0].dtype, len(xs), len(weights), len(biases) > 0, interleaved)
    if on_gpu(xs[0]):
        return _summed(plan, residual, scale, xs, weights, biases, training)
    if isinstance(residual, Shortcut):
        x, weight, bias, padding = residual
        residual = convolution(x, weight, bias, padding=padding, dtype=dtype, training=training)
    y = _one(plan, residual, xs, weights, biases, training)
    return y if scale == 1 else y * scale


def _one(plan: Plan, residual: Tensor | None, xs: Tensors, weights: Tensors, biases: Tensors, training: bool) -> Tensor:
    """The convolution with its residual, by the fastest of the ways on a CPU that can take it."""
    if (training or len(xs) > 1) and is_learned(plan, xs, weights, biases):  # pairs in one pass
        weights, biases = (tuple(sorted_rows(t, plan.interleaved) for t in ts) for ts in (weights, biases))
        return learned_convolution(plan, residual, *xs, *weights, *biases)
    if is_winograd(plan, xs, (*weights, *biases)):
        return winograd(plan, training, residual, *xs, *weights, *biases)
    new = training and plan.dtype == torch.float32  # preparing such weights costs more than it saves
    if not new and is_packed(plan, xs, weights):
        return packed_convolution(plan, residual, *xs, *weights, *biases)
    return _plain(plan, residual, xs, weights, biases)


def _summed(
    plan: Plan,
    residual: Tensor | Shortcut | None,
    scale: float,
    xs: Tensors,
    weights: Tensors,
    biases: Tensors,
    training: bool,
) -> Tensor:
    """The same on a GPU: what is to be added is added in one pass."""
    if residual is None and len(xs) == 1 and scale == 1:
        return terms(plan, xs, weights, biases, training=training)[0]
    parts = terms(plan, xs, weights, (), training=training)
    shifts = [sorted_rows(_joined(biases), plan.interleaved)] if biases else []
    if isinstance(residual, Shortcut):
        x = residual.x if not isinstance(residual.x, Tensor) else (residual.x,)
        other = Plan(1, residual.padding, False, plan.dtype, len(x), 1, False, 1)
        parts += terms(other, x, (residual.weight,), (), training=training)
        shifts += [] if residual.bias is None else [residual.bias]
    elif residual is not None:
        parts.append(residual.to(plan.dtype))
    return added(parts, sum(shifts[1:], shifts[0]) if shifts else None, scale)


def _plain(plan: Plan, residual: Tensor | None, xs: Tensors, weights: Tensors, biases: Tensors) -> Tensor:
    """The same in torch's own operators, for every device and torch.compile."""
    with torch.autocast(xs[0].device.type, enabled=False):
        w = as_kernel(sorted_rows(_joined(weights), plan.interleaved))
        b = sorted_rows(_joined(biases), plan.interleaved).to(plan.dtype) if plan.bias else None
        if plan.upsample:
            return F.conv_transpose2d(cast(xs[0], plan.dtype), fold(w).to(plan.dtype), b, 2, 1)
        y: Any = None if residual is None else residual.to(plan.dtype)
        start = 0
        for x in xs:
            part = cast(w[:, start : start + x.shape[1]], plan.dtype)
            term = F.conv2d(cast(x, plan.dtype), part, None if start else b, plan.stride, plan.padding)
            y, start = term if y is None else term + y, start + x.shape[1]
        return y


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
