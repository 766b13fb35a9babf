"""The self-attention block of diffusers, in channels_last from end to end: no copy between image and tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from emfast.adapters.parts import Part, itself, norm
from emfast.adapters.swap import Swapped, features, precision
from emfast.nn.attention import attend
from emfast.nn.convolution import convolution
from emfast.nn.normalisation import normalised_and_input

PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")  # those whose result is plain attention
ABSENT = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")


class Attention(Swapped):
    """diffusers' Attention on an image: one projection to queries, keys and values; the residual in the last one."""

    def parts(self: Any) -> list[Part]:
        """The projections, the normalisation, and the processor, which says what is computed."""
        query = self.to_q
        sizes = {"in_features": query.in_features, "out_features": query.out_features}
        known = dict.fromkeys(ABSENT) | {"scale_qk": True}
        if type(self.processor).__name__ == "AttnProcessor":  # the other one does not read it
            known["scale"] = (query.out_features // self.heads) ** -0.5
        found = [itself(self, **known), Part("processor", self.processor, PROCESSORS)]
        projections = {"to_q": query, "to_k": self.to_k, "to_v": self.to_v}
        found += [Part(name, layer, (nn.Linear,), sizes) for name, layer in projections.items()]
        found.append(Part("to_out.0", self.to_out[0], (nn.Linear,)))
        return found if self.group_norm is None else [*found, norm("group_norm", self.group_norm)]

    def example(self: Any) -> tuple[Any, ...]:
        """An image."""
        return (features(self.to_q.weight, self.to_q.in_features, 4, 4),)

    def accelerated(
        self: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Any:
        """As diffusers'."""
        crossed = encoder_hidden_states is not None or attention_mask is not None
        if crossed or set(cross_attention_kwargs) - {"temb"} or hidden_states.dim() != 4:
            return NotImplemented
        layers = (self.to_q, self.to_k, self.to_v)
        if len({layer.bias is None for layer in layers}) > 1:  # one projection has a bias for all three, or none
            return NotImplemented
        dtype = precision(self.settings(), hidden_states)
        x = hidden_states.to(dtype=dtype, memory_format=torch.channels_last)
        h, residual = (x, x) if self.group_norm is None else normalised_and_input(self.group_norm, x, silu=False)
        biases = None if self.to_q.bias is None else [layer.bias for layer in layers]
        qkv = convolution(h, [layer.weight for layer in layers], biases, dtype=dtype, training=self.training)
        y = _projected(self, attend(qkv, self.heads), residual, dtype)
        return y.to(hidden_states.dtype) if self.settings().dtype else y


def _projected(block: Any, h: Tensor, residual: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the last projection, with what stands behind it."""
    out, dropout = block.to_out[:2]  # diffusers' own way calls no other
    options: dict[str, Any] = {"dtype": dtype, "training": block.training}
    scale = 1 / block.rescale_output_factor
    idle = not (dropout.training and getattr(dropout, "p", 1))
    if idle and not Part("to_out.1", dropout, (nn.Dropout,)).obstacle():
        kept = residual if block.residual_connection else None
        return convolution(h, out.weight, out.bias, residual=kept, scale=scale, **options)
    y = dropout(convolution(h, out.weight, out.bias, **options))
    y = y + residual if block.residual_connection else y
    return y if scale == 1 else y * scale
