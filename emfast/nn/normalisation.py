"""Group normalisation with the embedding of time around it, as guided-diffusion and EDM have it."""

from typing import Any

import torch
from torch import Tensor

from emfast.dispatch import TABLE, Way, device_type, pick
from emfast.nn.layout import is_real
from emfast.ops import group_norm_fork, group_norm_silu, modulated

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


def normalised_and_input(norm: Any, x: Features, *, silu: bool = True) -> tuple[Tensor, Any]:
    """Returns a module's group normalisation of x, followed by SiLU, and x for what else reads it.

    Their gradients are added in the kernel of the normalisation where that is faster.

    Arguments:
        norm: The module: its groups, weight, bias and eps.
        x: As in `normalised`.
        silu: Whether SiLU follows.
    """
    way = pick("group norm fork", device_type(x if isinstance(x, Tensor) else x[0]), norm, x)
    if way.compute is None:
        return normalised(norm, x, silu=silu), x
    y, x = way.compute(x, norm.num_groups, norm.weight, norm.bias, eps=norm.eps, silu=silu)
    return y, x


def _unsupported(norm: Any, x: Features) -> str | None:
    """Returns why a fork does not pay for the arguments, or None if it does. On a GPU it always does."""
    xs = (x,) if isinstance(x, Tensor) else x
    if device_type(xs[0]) == "cuda":
        return None
    if not (torch.is_grad_enabled() and all(part.requires_grad for part in xs)) or not is_real(*xs):
        return "no gradients that could be added"
    arguments = (xs[0], xs[1] if len(xs) > 1 else None, None, norm.weight, norm.bias)
    op = pick("group norm layer", xs[0].device.type, *arguments).name == "group_norm_silu"
    return None if op else "an image so small that torch's own normalisation is faster"


TABLE["group norm fork"] = (
    Way("group_norm_fork", group_norm_fork, unsupported=_unsupported),
    Way("torch", None),
)
