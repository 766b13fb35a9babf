"""Group normalisation with the embedding of time around it, as guided-diffusion and EDM have it."""

from typing import Any

from torch import Tensor

from emfast.ops import group_norm_silu, modulated


def normalised(
    norm: Any,
    x: Tensor | tuple[Tensor, Tensor],  # (B, C, H, W)
    embedding: Tensor | None = None,  # (B, C), or (B, 2 C) if scaled
    *,
    scaled: bool = False,
    silu: bool = True,
) -> Tensor:
    """Returns a module's group normalisation of x, followed by SiLU.

    Arguments:
        norm: The module: its groups, weight, bias and eps.
        x: The features; two tensors are read as their concatenation over channels.
        embedding: What is added to x before, or (scaled) scales and shifts after; the scale comes first, 0 changes
            nothing.
        scaled: Whether the embedding scales and shifts.
        silu: Whether SiLU follows.
    """
    if embedding is None or not scaled:
        options: dict[str, Any] = {"channel_bias": embedding, "eps": norm.eps, "silu": silu}
        return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, **options)
    weight, bias = modulated(norm.weight, norm.bias, *embedding.chunk(2, dim=1))
    return group_norm_silu(x, norm.num_groups, weight, bias, eps=norm.eps, silu=silu)
