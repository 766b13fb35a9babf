"""The self-attention block of diffusers, in channels_last from end to end: no copy between image and tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emfast._library import OPS
from emfast.nn.branch import normalised_branch
from emfast.nn.convolution import convolution
from emfast.nn.packed import on_cpu
from emfast.nn.swap import Swapped, is_plain, precision
from emfast.ops import attention, packed_attention

# Devices on which the op has a kernel. Its reference is a specification: elsewhere torch's own attention is faster.
KERNELS = {
    "cpu": OPS["attention"].why_not("cpp", "cpu") is None,
    "cuda": OPS["attention"].why_not("triton", "cuda") is None,
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
        projections = (self.to_q, self.to_k, self.to_v)
        h, x = (x, x) if self.group_norm is None else normalised_branch(self.group_norm, x, silu=False)
        weights = [layer.weight for layer in projections]
        biases = None if self.to_q.bias is None else [layer.bias for layer in projections]
        qkv = convolution(h, weights, biases, dtype=dtype, training=self.training)
        h = attend(qkv, self.heads)
        out, dropout = self.to_out
        active = dropout.training and dropout.p > 0
        residual = x if self.residual_connection else None
        y = convolution(
            h, out.weight, out.bias, residual=None if active else residual, dtype=dtype, training=self.training
        )
        if active:
            y = F.dropout(y, dropout.p)
            y = y if residual is None else y + residual
        y = y if self.rescale_output_factor == 1 else y / self.rescale_output_factor
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
    x = x.permute(three, 0, head, 1, size)  # (3, B, H, N, D)
    query, key, value = x.unbind()
    if not KERNELS.get(qkv.device.type, False) or OPS["attention"].unsupported(query) is not None:
        out = F.scaled_dot_product_attention(query, key, value)
    else:
        out = packed_attention(x) if on_cpu(x) else attention(query, key, value)
    return out.transpose(1, 2).reshape(batch, *shape, channels // 3).permute(0, 3, 1, 2)
