"""Convolutions by oneDNN with weights that are cast, folded and reordered once, forward and backward."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast._library import wanted
from emfast.nn.prepared import Prepared, prepared

CHANNELS_LAST = torch.channels_last


class Plan(NamedTuple):
    """The constants of one call."""

    stride: int
    padding: int
    upsample: bool
    dtype: torch.dtype
    inputs: int
    outputs: int
    bias: bool
    interleaved: int


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns x in a dtype and channels_last."""
    return x.to(dtype=dtype, memory_format=CHANNELS_LAST)


def is_real(*tensors: Tensor) -> bool:
    """Returns whether tensors are no fake ones, by which a model is traced, nor of another class of their own."""
    return all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)


def on_cpu(*tensors: Tensor) -> bool:
    """Returns whether tensors are on a CPU, and real: a model is traced the way of a GPU."""
    return is_real(*tensors) and all(tensor.is_cpu for tensor in tensors)


def as_kernel(weight: Tensor) -> Tensor:
    """Returns the weight of a linear layer, or of Conv1d, as that of a 1 x 1 convolution, and any other as it is."""
    return weight if weight.dim() == 4 else weight.reshape(*weight.shape[:2], 1, 1)


def sorted_rows(x: Tensor, groups: int) -> Tensor:
    """Returns rows that belong to some groups in turn, the first group's first."""
    return x if groups == 1 else x.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)


def interleaved_rows(x: Tensor, groups: int) -> Tensor:
    """Undoes `sorted_rows`."""
    return x if groups == 1 else x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1)


def as_rows(x: Tensor) -> Tensor:
    """Returns the pixels of a channels_last tensor as the rows of a matrix."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_image(rows: Tensor, like: Tensor) -> Tensor:
    """Undoes `as_rows`."""
    batch, _, height, width = like.shape
    return rows.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def fold(weight: Tensor) -> Tensor:
    """Returns the (C, D, 4, 4) kernel that makes upsampling and a (D, C, 3, 3) convolution a transposed convolution."""
    return _box(F.pad(weight.flip(2, 3), (1, 1, 1, 1))).transpose(0, 1)


def unfold(grad: Tensor) -> Tensor:
    """Returns the gradient to the weight from that to fold(weight)."""
    return _box(grad.transpose(0, 1)).flip(2, 3)


def _box(x: Tensor) -> Tensor:
    rows = x[..., 1:, :] + x[..., :-1, :]
    return rows[..., 1:] + rows[..., :-1]


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Returns whether oneDNN takes prepared weights of this dtype here."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_packed(plan: Plan, xs: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Returns whether `packed_convolution` can take these tensors."""
    if torch.compiler.is_compiling() or not torch.backends.mkldnn.enabled or not _packs(plan.dtype):
        return False
    dense = all(w.is_contiguous() or w.is_contiguous(memory_format=CHANNELS_LAST) for w in weights)
    return dense and on_cpu(*xs, *weights) and all(x.numel() > 0 for x in (*xs, *weights))


def packed_convolution(plan: Plan, residual: Tensor | None, *tensors: Tensor) -> Tensor:
    """Returns what `convolution` does, for inputs, weights and biases in this order."""
    y: Tensor = _Convolution.apply(plan, residual, *tensors)
    return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, residual: Tensor | None, *tensors: Tensor) -> Any:
        n, m = plan.inputs, plan.inputs + plan.outputs
        xs, weights = [cast(x, plan.dtype) for x in tensors[:n]], tensors[n:m]
        bias = _concatenated(plan, tensors[m:]) if plan.bias else None
        ctx.plan, ctx.sizes = plan, [x.shape for x in tensors[:n]]
        ctx.dtypes = [t.dtype for t in tensors]
        ctx.residual = None if residual is None else residual.dtype
        ctx.slots = [i for i, t in enumerate((residual, *tensors), 1) if t is not None]
        learned = any(ctx.needs_input_grad[2 + n :])
        ctx.save_for_backward(*weights, *(xs if learned else ()))
        ctx.prepared = Prepared(weights) if learned else prepared(weights)
        y: Any = None if residual is None else cast(residual, plan.dtype)
        start = 0
        for x in xs:
            columns = (start, start + x.shape[1])
            if learned:  # the backward pass needs the kernel again, in this form
                w = _packed(weights, plan, columns, x.shape, ctx.prepared.get(weights, _kernel, plan, columns))
            else:
                w = ctx.prepared.get(weights, _packed, plan, columns, x.shape)
            y = _apply(plan, x, w, None if start else bias, y)
            start += x.shape[1]
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan, n = ctx.plan, ctx.plan.inputs
        saved = ctx.saved_tensors  # once: gradient checkpointing recomputes them
        weights, xs = saved[: plan.outputs], saved[plan.outputs :]
        needs = wanted(ctx)[1:]
        gradients: list[Any] = [grad.to(ctx.residual) if needs[0] else None, *[None] * len(ctx.dtypes)]
        g, start, slopes = cast(grad, plan.dtype), 0, []
        learned = any(needs[1 + n : 1 + n + plan.outputs])
        for i, size in enumerate(ctx.sizes):
            columns = (start, start + size[1])
            dx = None
            if learned:
                kernel = ctx.prepared.get(weights, _kernel, plan, columns)
                dx, slope = _to_both(plan, g, xs[i], kernel, needs[1 + i])
                slopes.append(slope)
            elif needs[1 + i]:
                dx = _to_input(plan, g, size, weights, columns, ctx.prepared)
            gradients[1 + i] = dx if dx is None else dx.to(ctx.dtypes[i])
            start += size[1]
        rows = [w.shape[0] for w in weights]
        if learned:
            whole = slopes[0] if n == 1 else torch.cat(slopes, 1)
            for j, part in enumerate(interleaved_rows(whole, plan.interleaved).split(rows)):
                part = part.to(ctx.dtypes[n + j], memory_format=torch.contiguous_format)
                gradients[1 + n + j] = part.reshape(weights[j].shape)
        if plan.bias and any(needs[1 + n + plan.outputs :]):
            sums = as_rows(g).sum(0, dtype=torch.float32)
            for j, part in enumerate(interleaved_rows(sums, plan.interleaved).split(rows)):
                gradients[1 + n + plan.outputs + j] = part.to(ctx.dtypes[n + plan.outputs + j])
        return None, *gradients


def _concatenated(plan: Plan, biases: Sequence[Tensor]) -> Tensor:
    whole = biases[0] if len(biases) == 1 else torch.cat(list(biases))
    return sorted_rows(whole, plan.interleaved).to(plan.dtype)


def _kernel(weights: Sequence[Tensor], plan: Plan, columns: tuple[int, int]) -> Tensor:
    """Returns the kernels of some input channels, in the compute precision."""
    w = as_kernel(weights[0] if len(weights) == 1 else torch.cat(list(weights)))
    w = sorted_rows(w, plan.interleaved).float()[:, columns[0] : columns[1]]
    return (fold(w) if plan.upsample else w).to(plan.dtype, memory_format=CHANNELS_LAST)


def is_product(plan: Plan, weights: Sequence[Tensor]) -> bool:
    """Returns whether a convolution is a matrix product."""
    usual = (plan.stride, plan.padding, plan.upsample) == (1, 0, False)
    return usual and weights[0].shape[2:].numel() == 1


@cache
def _ops() -> Any:
    """Returns the overloads that are called, looked up once; a build of torch without oneDNN has none."""
    ops = torch.ops.mkldnn
    plain = ops._convolution_pointwise
    return plain.default, plain.binary, ops._convolution_transpose_pointwise.default


def _pack(w: Tensor, stride: int, padding: int, shape: torch.Size) -> Tensor:
    one = [1, 1]
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(w, [padding] * 2, [stride] * 2, one, 1, list(shape))
    return packed


def _pack_transposed(w: Tensor, shape: torch.Size) -> Tensor:
    one = [1, 1]
    pack = torch.ops.mkldnn._reorder_convolution_transpose_weight
    packed: Tensor = pack(w, one, [0, 0], [2, 2], one, 1, list(shape))
    return packed


def _packed(
    weights: Sequence[Tensor], plan: Plan, columns: tuple[int, int], shape: torch.Size, kernel: Tensor | None = None
) -> Tensor:
    """Returns the kernels of some input channels as the forward pass reads them, for an input of a shape."""
    kernel = _kernel(weights, plan, columns) if kernel is None else kernel
    return _pack_transposed(kernel, shape) if plan.upsample else _pack(kernel, plan.stride, plan.padding, shape)


def _apply(plan: Plan, x: Tensor, w: Tensor, bias: Tensor | None, other: Tensor | None) -> Tensor:
    """Returns the convolution of one input, added to what the others gave."""
    plain, binary, transposed = _ops()
    if plan.upsample:
        return transposed(x, w, bias, [1, 1], [0, 0], [2, 2], [1, 1], 1, "none", [], "")
    s, p, one = [plan.stride] * 2, [plan.padding] * 2, [1, 1]
    if other is None:
        return plain(x, w, bias, p, s, one, 1, "none", [], "")
    return binary(x, other, w, bias, p, s, one, 1, "add", 1.0, None, [], None)


def _to_input(
    plan: Plan, g: Tensor, size: torch.Size, weights: Sequence[Tensor], columns: tuple[int, int], kept: Prepared
) -> Tensor:
    """The gradient to one input. Where it can it is a convolution itself, with kernels flipped and transposed."""
    one = [1, 1]
    same = plan.stride == 1 and 2 * plan.padding == as_kernel(weights[0]).shape[2] - 1
    if not plan.upsample and not same:
        w = kept.get(weights, _kernel, plan, columns)
        x, s, p = g.new_empty(1).expand(size), [plan.stride] * 2, [plan.padding] * 2
        mask = [True, False, False]
        dx: Tensor = torch.ops.aten.convolution_backward(g, x, w, None, s, p, one, False, [0, 0], 1, mask)[0]
        return dx
    w = kept.get(weights, _packed_mirrored, plan, columns, g.shape)
    return _ops()[0](g, w, None, [plan.padding] * 2, [2 if plan.upsample else 1] * 2, one, 1, "none", [], "")


def _packed_mirrored(weights: Sequence[Tensor], plan: Plan, columns: tuple[int, int], shape: torch.Size) -> Tensor:
    """Returns the kernels of some input channels as `_to_input` reads them, for a gradient of a shape."""
    w = _kernel(weights, plan, columns)
    if plan.upsample:
        return _pack(w, 2, plan.padding, shape)
    return _pack(w.flip(2, 3).transpose(0, 1).contiguous(memory_format=CHANNELS_LAST), 1, plan.padding, shape)


def _to_both(plan: Plan, g: Tensor, x: Tensor, kernel: Tensor, needs_x: bool) -> tuple[Tensor | None, Tensor]:
    """The gradients to one input and its kernels. Kernels that are learned change before they could be used again."""
    product = is_product(plan, [kernel])
    s, p = ([2, 2], [1, 1]) if plan.upsample else ([plan.stride] * 2, [plan.padding] * 2)
    mask = [needs_x, not product, False]
    both = torch.ops.aten.convolution_backward(g, x, kernel, None, s, p, [1, 1], plan.upsample, [0, 0], 1, mask)
    if product:  # of long rows: MKL is faster than oneDNN
        with torch.autocast(g.device.type, enabled=False):
            return both[0], as_kernel((as_rows(x).mT @ as_rows(g)).mT)
    return both[0], unfold(both[1].float()) if plan.upsample else both[1]
