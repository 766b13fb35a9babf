"""Self-attention of images in channels_last from end to end: no copy between image and tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast.dispatch import TABLE, Way, device_type, pick
from emfast.ops import packed_attention
from emfast.ops.attention import is_slow, unsupported

_MISSING = {device: TABLE["packed_attention"][i].missing(device) for i, device in enumerate(("cpu", "cuda"))}


def _missing(device: str) -> str | None:
    """Returns why the op has no kernel for a type of device. Its reference is slower than torch's own attention."""
    return _MISSING.get(device, f"there is no kernel for {device}")


TABLE["attention layer"] = (
    Way("packed_attention", packed_attention, missing=_missing, unsupported=unsupported, slower=is_slow),
    Way("torch", None),
)


class _Parts(torch.autograd.Function):
    """Query, key and value of packed projections, whose gradients become one tensor in the strides of these."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor) -> tuple[Tensor, ...]:
        ctx.shape, ctx.strides = packed.shape, packed.stride()
        return packed.unbind()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        packed = grads[0].new_empty_strided(ctx.shape, ctx.strides)
        for part, grad in zip(packed.unbind(), grads, strict=True):
            part.copy_(grad)
        return packed


def attend(qkv: Tensor, heads: int, order: str = "3hd") -> Tensor:
    """Returns softmax(q k^T / sqrt d) v of packed projections, (B, H D, height, width), nothing copied between.

    Arguments:
        qkv: (B, 3 H D, height, width), channels_last.
        heads: H.
        order: What the channels hold, outermost first: 3 (query, key, value), h (heads) and d (size of a head).
    """
    (batch, channels), shape = qkv.shape[:2], qkv.shape[2:]
    sizes = {"3": 3, "h": heads, "d": channels // (3 * heads)}
    x = qkv.permute(0, 2, 3, 1).reshape(batch, shape.numel(), *[sizes[axis] for axis in order])  # (B, N, *order)
    three, head, size = (2 + order.index(axis) for axis in "3hd")
    packed = x.permute(three, 0, head, 1, size)  # (3, B, H, N, D)
    way = pick("attention layer", device_type(qkv), packed)
    out = way.compute(packed) if way.compute else F.scaled_dot_product_attention(*_Parts.apply(packed))
    return out.transpose(1, 2).reshape(batch, *shape, channels // 3).permute(0, 3, 1, 2)
