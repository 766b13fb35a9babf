r"""The convolution of the accelerated modules: channels_last, in the compute precision, with weights prepared once.

It is computed in one of the ways of `emfast.nn.ways`, which differ in what they call and what they prepare; what they
have in common, and all of autograd's bookkeeping, is here.

Nearest-neighbour upsampling by two followed by a 3 x 3 convolution is a transposed convolution of stride 2 whose 4 x 4
kernel is the 3 x 3 kernel convolved with a 2 x 2 box: 4/9 of the multiplications, and the large image is never written.

cuDNN adds no bias and no residual as torch calls it: each is a pass over the image. On a GPU what follows a convolution
takes them instead: a normalisation its bias (`bias_for_normalisation`), `residual_sum` all that the last convolution of
a block is added to. A convolution of two inputs is a term for each: their concatenation would be written, and read
again. A 1 x 1 convolution is a matrix product, which adds its bias for nothing, and so is a linear layer.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emfast._library import extension_error, first_order, wanted_gradients
from emfast.dispatch import TABLE, Way, device_type, pick
from emfast.nn.layout import as_kernel, as_rows, cast, interleaved_rows, joined, sorted_rows
from emfast.nn.ways import cudnn, native, onednn, winograd
from emfast.nn.ways.operands import Parameters, Plan
from emfast.nn.ways.plain import plain_convolution
from emfast.ops.residual_sum import MOST, residual_sum

Tensors = Sequence[Tensor]


def _missing(needed: str, extension: bool, device: str) -> str | None:
    if device != needed:
        return f"it does not run on {device}"
    return extension_error() if extension else None


_on_cpu, _compiled, _on_gpu = (partial(_missing, *needs) for needs in (("cpu", False), ("cpu", True), ("cuda", False)))
TABLE["convolution layer"] = (
    Way("AMX", native, ("cpp",), _compiled, native.unsupported, traceable=False),
    Way("Winograd", winograd, ("cpp",), _compiled, winograd.unsupported, winograd.slower, traceable=False),
    Way("oneDNN", onednn, ("cpp", "triton"), _on_cpu, onednn.unsupported, traceable=False),
    Way("cuDNN", cudnn, ("cpp", "triton"), _on_gpu, cudnn.unsupported, traceable=False),
    Way("torch", None),
)


class Shortcut(NamedTuple):
    """A residual that is a convolution itself: `convolution(x, weight, bias, padding=padding)`."""

    x: Tensor | Tensors
    weight: Tensor
    bias: Tensor | None
    padding: int = 0


def convolution(
    x: Tensor | Tensors,  # (B, C, H, W)
    weight: Tensor | Tensors,  # (D, C, K, K) or (D, C)
    bias: Tensor | Tensors | None = None,  # (D,)
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
    xs, weights, biases = _sequence(x), _sequence(weight), () if bias is None else _sequence(bias)
    plan = Plan(stride, padding, upsample, dtype or xs[0].dtype, interleaved, training)
    if device_type(xs[0]) == "cuda":
        return _summed(plan, residual, scale, xs, weights, biases)
    if isinstance(residual, Shortcut):
        x, weight, bias, padding = residual
        residual = convolution(x, weight, bias, padding=padding, dtype=dtype, training=training)
    y = _computed(plan, residual, xs, weights, biases)
    return y if scale == 1 else y * scale


def bias_for_normalisation(bias: Tensor | None, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Returns the bias of a convolution of x that a normalisation follows: what the one adds, and what the other does.

    Arguments:
        bias: The bias.
        x: What the convolution reads.
    """
    return (None, bias) if device_type(x) == "cuda" else (bias, None)


def _sequence(x: Tensor | Tensors) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


def _computed(plan: Plan, residual: Tensor | None, xs: Tensors, weights: Tensors, biases: Tensors) -> Tensor:
    """Returns the convolution plus the residual, by the first way that takes them."""
    way = pick("convolution layer", device_type(xs[0]), plan, xs, weights, biases)
    if way.compute is None:
        return plain_convolution(plan, residual, xs, weights, biases)
    y: Tensor = _Convolution.apply(way.compute, plan, len(xs), len(weights), residual, *xs, *weights, *biases)
    return y


def _summed(
    plan: Plan, residual: Tensor | Shortcut | None, scale: float, xs: Tensors, weights: Tensors, biases: Tensors
) -> Tensor:
    """The same on a GPU: what is to be added is added in one pass."""
    if residual is None and len(xs) == 1 and scale == 1:
        return _computed(plan, None, xs, weights, biases)
    terms = _terms(plan, xs, weights)
    shifts = [sorted_rows(joined(biases), plan.interleaved)] if biases else []
    if isinstance(residual, Shortcut):
        other = plan._replace(stride=1, padding=residual.padding, upsample=False, interleaved=1)
        terms += _terms(other, _sequence(residual.x), (residual.weight,))
        shifts += [] if residual.bias is None else [residual.bias]
    elif residual is not None:
        terms.append(residual.to(plan.dtype))
    while len(terms) > MOST:
        terms = [residual_sum(*terms[:MOST]), *terms[MOST:]]
    return residual_sum(*terms, bias=sum(shifts[1:], shifts[0]) if shifts else None, scale=scale)


def _terms(plan: Plan, xs: Tensors, weights: Tensors) -> list[Tensor]:
    """Returns the convolution of each input by itself."""
    terms: list[Tensor] = []
    for x in xs:
        terms.append(_computed(plan, None, (x,), weights, ()))
        plan = plan._replace(first=plan.first + x.shape[1])
    return terms


class _Convolution(torch.autograd.Function):
    """A convolution in any of the ways: the only place that knows which gradients are wanted, and what is kept."""

    @staticmethod
    def forward(
        ctx: Any, way: Any, plan: Plan, inputs: int, outputs: int, residual: Tensor | None, *tensors: Tensor
    ) -> Tensor:
        split = inputs + outputs
        xs, weights, biases = [cast(x, plan.dtype) for x in tensors[:inputs]], tensors[inputs:split], tensors[split:]
        ctx.way, ctx.plan, ctx.inputs, ctx.outputs = way, plan, inputs, outputs
        ctx.shapes, ctx.dtypes = [x.shape for x in xs], [None if t is None else t.dtype for t in (residual, *tensors)]
        ctx.slots = [slot for slot, tensor in enumerate((residual, *tensors), 4) if tensor is not None]
        learned = any(ctx.needs_input_grad[5 + inputs : 5 + split])  # else nothing but the weights is kept
        ctx.save_for_backward(*weights, *(xs if learned else ()))
        parameters, shifts = Parameters.of(plan, weights), Parameters.of(plan, biases) if biases else None
        ctx.memory = parameters.memory
        other = None if residual is None else cast(residual, plan.dtype)
        y: Tensor = way.forward(plan, xs, parameters, shifts, other)
        return y

    @staticmethod
    @partial(first_order, "convolution")
    def backward(ctx: Any, saved: Tensors, grad: Tensor) -> tuple[Any, ...]:
        plan, inputs = ctx.plan, ctx.inputs
        weights, xs = Parameters(saved[: ctx.outputs], ctx.memory), saved[ctx.outputs :]
        wants_residual, *wants = wanted_gradients(ctx)[4:]
        split = inputs + ctx.outputs
        g, slope, sums = cast(grad, plan.dtype), None, None
        found: list[Any] = [*ctx.way.to_inputs(plan, g, ctx.shapes, weights, wants[:inputs])]
        if any(wants[inputs:split]):
            slope, sums = ctx.way.to_weights(plan, g, xs, weights)
        if any(wants[split:]) and sums is None:
            sums = as_rows(g).sum(0, dtype=torch.promote_types(g.dtype, torch.float32))
        found += _gradients_of_weights(plan, slope, weights.parts)
        if wants[split:]:
            found += _shared(sums, plan.interleaved, weights.parts)
        found = [grad if wants_residual else None, *found]
        return None, None, None, None, *(_cast(x, dtype) for x, dtype in zip(found, ctx.dtypes, strict=True))


def _cast(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if gradient is None else gradient.to(dtype)


def _shared(rows: Tensor | None, interleaved: int, weights: Tensors) -> Tensors | list[None]:
    """Returns what belongs to the result's channels as what belongs to the rows of each weight."""
    if rows is None:
        return [None] * len(weights)
    return interleaved_rows(rows, interleaved).split([weight.shape[0] for weight in weights])


def _gradients_of_weights(plan: Plan, slope: Tensor | None, weights: Tensors) -> list[Tensor | None]:
    """Returns the gradient to the kernels of some input channels as those to whole weights, in their shapes."""
    found: list[Tensor | None] = []
    for part, weight in zip(_shared(slope, plan.interleaved, weights), weights, strict=True):
        if part is None:
            found.append(None)
            continue
        if part.shape[1] < weight.shape[1]:
            whole = torch.zeros_like(as_kernel(weight), memory_format=torch.contiguous_format)
            whole[:, plan.first : plan.first + part.shape[1]] = part
            part = whole
        found.append(part.to(weight.dtype, memory_format=torch.contiguous_format).reshape(weight.shape))
    return found
