"""A normalisation where features branch: the gradients of both ways are added up as the normalisation's is computed."""

from typing import Any

import torch
from torch import Tensor

from emfast._library import wanted
from emfast.nn.packed import on_cpu
from emfast.ops import group_norm_silu
from emfast.ops.group_norm_silu import is_slow


def normalised_branch(norm: Any, x: Any, *, silu: bool = True) -> tuple[Tensor, Any]:
    """Returns a module's group normalisation of x, and x itself for the way around it.

    Autograd would add the gradients of both ways in a pass of its own.

    Arguments:
        norm: The module: its groups, weight, bias and eps.
        x: The features; two tensors are read as their concatenation over channels, and returned as two.
        silu: Whether SiLU follows.
    """
    xs = x if isinstance(x, tuple) else (x,)
    parameters = norm.weight, norm.bias
    learned = torch.is_grad_enabled() and on_cpu(*xs) and all(part.requires_grad for part in xs)
    if not learned or torch.compiler.is_compiling() or (len(xs) == 1 and is_slow(x, *parameters)):
        return group_norm_silu(x, norm.num_groups, *parameters, eps=norm.eps, silu=silu), x
    y, *parts = _Branch.apply(norm.num_groups, norm.eps, silu, *parameters, *xs)
    return y, tuple(parts) if len(parts) > 1 else parts[0]


class _Branch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, groups: int, eps: float, silu: bool, weight: Tensor | None, bias: Tensor | None, *xs: Tensor
    ) -> Any:
        tensors = (xs[0], xs[1] if len(xs) > 1 else None, None, weight, bias)
        y, statistics = torch.ops.emfast.group_norm_silu.default(*tensors, groups, eps, silu)
        ctx.slots = [i for i, tensor in enumerate((weight, bias, *xs), 3) if tensor is not None]
        ctx.groups, ctx.silu = groups, silu
        ctx.save_for_backward(*tensors, statistics)
        ctx.set_materialize_grads(False)
        return y, *xs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *added: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return *[None] * 5, *added
        x, skip, *parameters, statistics = ctx.saved_tensors
        needs, others = wanted(ctx)[3:5], (*added, None)[:2]
        options = (statistics, ctx.groups, ctx.silu, any(needs))
        differentiate = torch.ops.emfast.group_norm_silu_backward.default
        dx, dskip, sums = differentiate(grad, x, skip, *others, *parameters, *options)
        gradients = [
            sums[i].sum(0).to(tensor.dtype) if need else None
            for i, (tensor, need) in enumerate(zip(parameters[1:], needs, strict=True), 1)
        ]
        return None, None, None, *gradients, dx, *([] if skip is None else [dskip])
