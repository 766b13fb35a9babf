"""The residual block of diffusers, and the up blocks that hand it the skip connection as it is."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emfast.nn.branch import normalised_branch
from emfast.nn.convolution import convolution
from emfast.nn.packed import cast
from emfast.nn.swap import Swapped, is_plain, precision
from emfast.ops import group_norm_silu, modulated


class ResnetBlock(Swapped):
    """diffusers' ResnetBlock2D: both normalisations with SiLU and time embedding, the residual in the last convolution.

    `skip` is a second input, read as if concatenated to the first over channels.
    """

    def forward(
        self: Any,
        input_tensor: Tensor,
        temb: Tensor | None = None,
        *args: Any,
        skip: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if args or kwargs or not _is_known(self):
            x = input_tensor if skip is None else torch.cat((input_tensor, skip), 1)
            return super().forward(x, temb, *args, **kwargs)  # type: ignore[misc]
        dtype = precision(self.settings(), input_tensor)
        x = cast(input_tensor, dtype)
        inputs: Any = x if skip is None else (x, cast(skip, dtype))
        h, inputs = normalised_branch(self.norm1, inputs)
        x = x if skip is not None else inputs
        resample = self.upsample or self.downsample
        if resample is not None:
            x = resample(x)
            inputs = x
            h = h if self.upsample is not None and _is_nearest(self.upsample) else resample(h)
        folded = self.upsample is not None and _is_nearest(self.upsample)
        h = convolution(
            h, self.conv1.weight, self.conv1.bias, padding=1, upsample=folded, dtype=dtype, training=self.training
        )
        h = F.dropout(_conditioned(self, h, temb), self.dropout.p, self.dropout.training)
        if self.conv_shortcut is not None:
            x = convolution(
                inputs, self.conv_shortcut.weight, self.conv_shortcut.bias, dtype=dtype, training=self.training
            )
        y = convolution(
            h, self.conv2.weight, self.conv2.bias, residual=x, padding=1, dtype=dtype, training=self.training
        )
        y = y if self.output_scale_factor == 1 else y / self.output_scale_factor
        return y.to(input_tensor.dtype) if self.settings().dtype else y


def _is_known(block: Any) -> bool:
    """Returns whether the parts are as they were made: not wrapped, replaced or observed since."""
    convolutions = all(is_plain(conv, nn.Conv2d) for conv in (block.conv1, block.conv2))
    shortcut = block.conv_shortcut is None or is_plain(block.conv_shortcut, nn.Conv2d)
    norms = is_plain(block.norm1, nn.GroupNorm) and is_plain(block.norm2, nn.GroupNorm)
    return convolutions and shortcut and norms and isinstance(block.nonlinearity, nn.SiLU)


def _is_nearest(upsample: Any) -> bool:
    return isinstance(upsample, nn.Module) and not getattr(upsample, "use_conv", True)


def _normalised(norm: Any, x: Any, **options: Any) -> Tensor:
    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, eps=norm.eps, **options)


def _conditioned(block: Any, h: Tensor, temb: Tensor | None) -> Tensor:
    """Returns the second normalisation with the time embedding before it (default) or after it (scale_shift)."""
    norm = block.norm2
    if block.time_emb_proj is not None and temb is not None:
        temb = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))
    if temb is None or block.time_embedding_norm != "scale_shift":
        return _normalised(norm, h, channel_bias=temb if block.time_embedding_norm == "default" else None)
    weight, bias = modulated(norm.weight, norm.bias, *temb.chunk(2, dim=1))
    return group_norm_silu(h, norm.num_groups, weight, bias, eps=norm.eps)


class UpBlock(Swapped):
    """diffusers' UpBlock2D and AttnUpBlock2D: the skip connections go to the residual blocks as they are."""

    hands_on = True

    def forward(
        self: Any,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        upsample_size: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        resnet: Any
        freed = getattr(self, "s1", None) and getattr(self, "b1", None)
        if args or kwargs or freed or not all(isinstance(resnet, ResnetBlock) for resnet in self.resnets):
            inputs = (hidden_states, res_hidden_states_tuple, temb, upsample_size)
            return super().forward(*inputs, *args, **kwargs)  # type: ignore[misc]
        attentions = getattr(self, "attentions", [None] * len(self.resnets))
        skips = reversed(res_hidden_states_tuple[-len(self.resnets) :])
        for resnet, attention, skip in zip(self.resnets, attentions, skips, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(_Pair(resnet), hidden_states, temb, skip)
            else:
                hidden_states = resnet(hidden_states, temb, skip=skip)
            hidden_states = hidden_states if attention is None else attention(hidden_states)
        for upsampler in self.upsamplers or ():
            condition = temb if isinstance(upsampler, ResnetBlock) else upsample_size
            hidden_states = upsampler(hidden_states, condition)
        return hidden_states


class _Pair:
    """A residual block as a function of positional tensors, which is what gradient checkpointing calls."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def __call__(self, x: Tensor, temb: Tensor | None, skip: Tensor) -> Any:
        return self.block(x, temb, skip=skip)
