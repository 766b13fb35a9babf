"""Group normalisation with the embedding of time around it, as guided-diffusion and EDM have it."""

from typing import Any

import torch
from torch import Tensor

from emfast.nn.gpu import on_gpu
from emfast.nn.packed import on_cpu
from emfast.ops import group_norm_fork, group_norm_silu, modulated
from emfast.ops.group_norm_silu import is_slow

Features = Tensor | tuple[Tensor, Tensor]


def normalised(
    norm: Any,
    x: Features,  # (B, C, H, W)
    embedding: Tensor | None = None,  # (B, C), or (B, 2 C) if scaled
    *,
    bias: Tensor | None = None,  # (C,)
    scaled: bool = False,
    silu: bool = True,
) -> Tensor:
    """Returns a module's group normalisation of x, followed by SiLU.

    Arguments:
        norm: The module: its groups, weight, bias and eps.
        x: The features; two tensors are read as their concatenation over channels.
        embedding: What is added to x before, or (scaled) scales and shifts after; the scale comes first, 0 changes
            nothing.
        bias: What is added to x before, of all images, if anything: that of the convolution before.
        scaled: Whether the embedding scales and shifts.
        silu: Whether SiLU follows.
    """
    weights, shift = (norm.weight, norm.bias), None if scaled else embedding
    if scaled and embedding is not None:
        weights = modulated(*weights, *embedding.chunk(2, dim=1))
    if bias is not None:
        batch = x.shape[0] if isinstance(x, Tensor) else x[0].shape[0]
        shift = bias.expand(batch, -1) if shift is None else shift + bias
    return group_norm_silu(x, norm.num_groups, *weights, channel_bias=shift, eps=norm.eps, silu=silu)


def forked(norm: Any, x: Features, *, silu: bool = True) -> tuple[Tensor, Any]:
    """Returns a module's group normalisation of x, followed by SiLU, and x for what else reads it.

    Arguments:
        norm: The module: its groups, weight, bias and eps.
        x: As in `normalised`.
        silu: Whether SiLU follows.
    """
    xs = (x,) if isinstance(x, Tensor) else x
    learned = torch.is_grad_enabled() and on_cpu(*xs) and all(part.requires_grad for part in xs)
    slow = len(xs) == 1 and is_slow(xs[0], norm.weight, norm.bias)
    if on_gpu(xs[0]) or (learned and not slow):
        return group_norm_fork(x, norm.num_groups, norm.weight, norm.bias, eps=norm.eps, silu=silu)
    return normalised(norm, x, silu=silu), x
