"""The self-attention block of diffusers, in channels_last from end to end: no copy between image and tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emfast._library import OPS
from emfast.nn.conditional import forked
from emfast.nn.convolution import convolution
from emfast.nn.swap import Swapped, is_plain, precision
from emfast.ops import packed_attention
from emfast.ops.attention import is_slow

# Devices on which the op has a kernel. Its reference is a specification: elsewhere torch's own attention is faster.
KERNELS = {
    "cpu": OPS["packed_attention"].why_not("cpp", "cpu") is None,
    "cuda": OPS["packed_attention"].why_not("triton", "cuda") is None,
}
PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")  # those whose result is plain attention


class Attention(Swapped):
    """diffusers' Attention on an image: one projection to queries, keys and values; the residual in the last one."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        crossed = encoder_hidden_states is not None or attention_mask is not None
        if crossed or set(cross_attention_kwargs) - {"temb"} or hidden_states.dim() != 4 or not _is_known(self):
            inputs = (hidden_states, encoder_hidden_states, attention_mask)
            return super().forward(*inputs, **cross_attention_kwargs)  # type: ignore[misc]
        dtype = precision(self.settings(), hidden_states)
        x = hidden_states.to(dtype=dtype, memory_format=torch.channels_last)
        norm, projections = self.group_norm, (self.to_q, self.to_k, self.to_v)
        h, residual = (x, x) if norm is None else forked(norm, x, silu=False)
        weights = [layer.weight for layer in projections]
        biases = None if self.to_q.bias is None else [layer.bias for layer in projections]
        qkv = convolution(h, weights, biases, dtype=dtype, training=self.training)
        h = attend(qkv, self.heads)
        out, dropout = self.to_out
        active = dropout.training and dropout.p > 0
        options: dict[str, Any] = {"dtype": dtype, "training": self.training}
        scale = 1 / self.rescale_output_factor
        if not active:
            options |= {"residual": residual if self.residual_connection else None, "scale": scale}
        y = convolution(h, out.weight, out.bias, **options)
        if active:
            y = F.dropout(y, dropout.p)
            y = y + residual if self.residual_connection else y
            y = y if scale == 1 else y * scale
        return y.to(hidden_states.dtype) if self.settings().dtype else y


def _is_known(block: Any) -> bool:
    """Returns whether this is self-attention as diffusers makes it, its parts as they were made."""
    absent = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
    if type(block.processor).__name__ not in PROCESSORS or any(getattr(block, name, None) for name in absent):
        return False
    layers = (block.to_q, block.to_k, block.to_v, block.to_out[0])
    norm = block.group_norm is None or is_plain(block.group_norm, nn.GroupNorm)
    same = block.to_q.weight.shape == block.to_k.weight.shape == block.to_v.weight.shape
    return norm and same and block.scale_qk and all(is_plain(layer, nn.Linear) for layer in layers)


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
    batch, channels, *shape = qkv.shape
    sizes = {"3": 3, "h": heads, "d": channels // (3 * heads)}
    x = qkv.permute(0, 2, 3, 1).reshape(batch, -1, *[sizes[axis] for axis in order])  # (B, N, *order)
    three, head, size = (2 + order.index(axis) for axis in "3hd")
    packed = x.permute(three, 0, head, 1, size)  # (3, B, H, N, D)
    known = KERNELS.get(qkv.device.type, False) and OPS["packed_attention"].unsupported(packed) is None
    if known and not is_slow(packed):
        out = packed_attention(packed)
    else:
        out = F.scaled_dot_product_attention(*_Parts.apply(packed))
    return out.transpose(1, 2).reshape(batch, *shape, channels // 3).permute(0, 3, 1, 2)
