"""Group normalisation at the head of a residual block, whose input goes two ways."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from emfast._library import first_order, wanted_gradients
from emfast.ops.group_norm_silu import forward_op, gradients_op, group_norm_silu, validate

Features = Tensor | tuple[Tensor, Tensor]


def group_norm_fork(
    x: Features,  # (B, C, ...)
    num_groups: int,
    weight: Tensor | None = None,  # (C,) or (B, C)
    bias: Tensor | None = None,  # (C,) or (B, C)
    *,
    eps: float = 1e-5,
    silu: bool = True,
) -> tuple[Tensor, Features]:
    r"""Returns `group_norm_silu` of x, and x itself for what else reads it.

    The gradients of both ways are added in the kernel of the normalisation: autograd would read and write them again.

    Arguments:
        x: As in `group_norm_silu`, and so are the others.
        num_groups: The number of groups.
        weight: The scale.
        bias: The shift.
        eps: Added to the variance.
        silu: Whether SiLU follows.

    Returns:
        The normalisation, and x: one tensor or two.
    """
    if torch.compiler.is_compiling():  # which cannot ask autograd what gradients are wanted
        return group_norm_silu(x, num_groups, weight, bias, eps=eps, silu=silu), x
    first, skip = x if isinstance(x, tuple) else (x, None)
    validate(first, skip, num_groups, weight, bias, None)
    y, first, *rest = _Fork.apply((num_groups, eps, silu), first, skip, weight, bias)
    return y, (first, *rest) if rest else first


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: Any, x: Tensor, skip: Tensor | None, weight: Any, bias: Any) -> Any:
        num_groups, eps, silu = options
        y, statistics = forward_op(x, skip, None, weight, bias, num_groups, eps, silu)
        tensors = (x, skip, weight, bias)
        ctx.slots = [i for i, tensor in enumerate(tensors, 1) if tensor is not None]
        ctx.save_for_backward(*tensors, statistics)
        ctx.options = num_groups, silu
        ctx.set_materialize_grads(False)
        return (y, x) if skip is None else (y, x, skip)

    @staticmethod
    @partial(first_order, "group_norm_silu")
    def backward(ctx: Any, saved: tuple[Any, ...], grad: Tensor | None, *passed: Tensor | None) -> Any:
        added = (*passed, None)[:2]
        if grad is None:
            return None, *added, None, None
        x, skip, *parameters, statistics = saved
        needs = wanted_gradients(ctx)
        full = any(needs[3:])
        arguments = (grad, x, skip, None, *parameters, statistics, *ctx.options, full, *added)
        dx, dskip, sums = gradients_op(*arguments)
        gradients = [dx if needs[1] else None, dskip if needs[2] else None]
        for part, tensor, need in zip(sums[1:], parameters, needs[3:], strict=False):
            gradients.append((part.sum(0) if tensor.dim() == 1 else part).to(tensor.dtype) if need else None)
        return None, *gradients, *[None] * (4 - len(gradients))
