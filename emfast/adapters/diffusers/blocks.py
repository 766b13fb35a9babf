"""The blocks of diffusers' U-Nets: residual and resampling ones, and those whose skip connections are not joined."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emfast.adapters.parts import Part, itself, norm, square
from emfast.adapters.swap import Swapped, features, is_plain, precision
from emfast.nn.convolution import Shortcut, bias_for_normalisation, convolution
from emfast.nn.layout import cast
from emfast.nn.normalisation import normalised, normalised_and_input


class ResnetBlock(Swapped):
    """diffusers' ResnetBlock2D: both normalisations with SiLU and time embedding, the residual in the last convolution.

    `skip` is a second input, read as if concatenated to the first over channels.
    """

    def parts(self: Any) -> list[Part]:
        """Those whose parameters are read. Dropout, time projection and resampling are called."""
        found = [norm("norm1", self.norm1), norm("norm2", self.norm2)]
        found += [square("conv1", self.conv1, 3), square("conv2", self.conv2, 3)]
        found.append(Part("nonlinearity", self.nonlinearity, (nn.SiLU,)))
        if self.conv_shortcut is not None:
            found.append(square("conv_shortcut", self.conv_shortcut, 1))
        if _is_nearest(self.upsample):
            known = {"interpolate": True, "norm": None, "use_conv_transpose": False}
            found.append(Part("upsample", self.upsample, ("Upsample2D",), known))
        return found

    def example(self: Any) -> tuple[Any, ...]:
        """Features, and the embedding of the time."""
        weight, projection = self.conv1.weight, self.time_emb_proj
        temb = None if projection is None else features(weight, projection.in_features)
        return features(weight, self.norm1.num_channels, 8, 8), temb

    def accelerated(
        self: Any,
        input_tensor: Tensor,
        temb: Tensor | None = None,
        *args: Any,
        skip: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As diffusers'."""
        if args or kwargs or self.time_embedding_norm not in ("default", "scale_shift"):
            return NotImplemented
        dtype = precision(self.settings(), input_tensor)
        x = cast(input_tensor, dtype)
        h, inputs = normalised_and_input(self.norm1, x if skip is None else (x, cast(skip, dtype)))
        folded = _is_nearest(self.upsample)
        resample = self.upsample or self.downsample
        if resample is not None:
            inputs = resample(_joined(inputs))
            h = h if folded else resample(h)
        options: dict[str, Any] = {"padding": 1, "dtype": dtype, "training": self.training}
        bias, shift = bias_for_normalisation(self.conv1.bias, x)
        h = convolution(h, self.conv1.weight, bias, upsample=folded, **options)
        h = self.dropout(_conditioned(self, h, temb, shift))
        residual: Any = inputs
        if self.conv_shortcut is not None:
            residual = Shortcut(inputs, self.conv_shortcut.weight, self.conv_shortcut.bias)
        options["scale"] = 1 / self.output_scale_factor
        y = convolution(h, self.conv2.weight, self.conv2.bias, residual=residual, **options)
        return y.to(input_tensor.dtype) if self.settings().dtype else y


def _is_nearest(upsample: Any) -> bool:
    return isinstance(upsample, nn.Module) and not getattr(upsample, "use_conv", True)


def _joined(inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return inputs if isinstance(inputs, Tensor) else torch.cat(inputs, 1)


def _conditioned(block: Any, h: Tensor, temb: Tensor | None, shift: Tensor | None) -> Tensor:
    """Returns the second normalisation with the time embedding before it (default) or after it (scale_shift)."""
    if block.time_emb_proj is not None and temb is not None:
        temb = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))
    return normalised(block.norm2, h, temb, bias=shift, scaled=block.time_embedding_norm == "scale_shift")


class Upsample(Swapped):
    """diffusers' Upsample2D: nearest neighbours and a 3 x 3 convolution, on the small image."""

    def parts(self: Any) -> list[Part]:
        """The convolution, and itself."""
        known = itself(self, interpolate=True, norm=None, use_conv=True, use_conv_transpose=False)
        return [known, square("conv", _convolution(self), 3)]

    def example(self: Any) -> tuple[Any, ...]:
        """An image."""
        return (features(_convolution(self).weight, self.channels, 4, 4),)

    def accelerated(self: Any, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As diffusers'."""
        if output_size is not None or args or kwargs:
            return NotImplemented
        conv, dtype = _convolution(self), precision(self.settings(), hidden_states)
        options: dict[str, Any] = {"dtype": dtype, "training": self.training}
        y = convolution(hidden_states, conv.weight, conv.bias, padding=1, upsample=True, **options)
        return y.to(hidden_states.dtype) if self.settings().dtype else y


def _convolution(upsample: Any) -> Any:
    return upsample.conv if upsample.name == "conv" else upsample.Conv2d_0


class Downsample(Swapped):
    """diffusers' Downsample2D with a convolution of stride 2."""

    def parts(self: Any) -> list[Part]:
        """The convolution, and itself."""
        return [itself(self, norm=None, use_conv=True), square("conv", self.conv, 3, 2, self.padding)]

    def example(self: Any) -> tuple[Any, ...]:
        """An image."""
        return (features(self.conv.weight, self.channels, 8, 8),)

    def accelerated(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As diffusers'."""
        if args or kwargs:
            return NotImplemented
        dtype = precision(self.settings(), hidden_states)
        x = hidden_states if self.padding else F.pad(hidden_states, (0, 1, 0, 1))
        options: dict[str, Any] = {"dtype": dtype, "training": self.training}
        y = convolution(x, self.conv.weight, self.conv.bias, stride=2, padding=self.padding, **options)
        return y.to(hidden_states.dtype) if self.settings().dtype else y


class UpBlock(Swapped):
    """diffusers' UpBlock2D and AttnUpBlock2D: the skip connections go to the residual blocks as they are."""

    hands_on = True

    def example(self: Any) -> tuple[Any, ...]:
        """Features, skip connections and the embedding of the time."""
        first, skips = self.resnets[0], []
        weight, width = first.conv1.weight, first.norm1.num_channels // 2
        size = width
        for resnet in self.resnets:
            skips.append(features(weight, resnet.norm1.num_channels - size, 4, 4))
            size = resnet.conv2.out_channels
        temb = None if first.time_emb_proj is None else features(weight, first.time_emb_proj.in_features)
        return features(weight, width, 4, 4), tuple(reversed(skips)), temb

    def accelerated(
        self: Any,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        upsample_size: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As diffusers'."""
        freed = getattr(self, "s1", None) and getattr(self, "b1", None)
        if args or kwargs or freed:
            return NotImplemented
        attentions = getattr(self, "attentions", [None] * len(self.resnets))
        skips = reversed(res_hidden_states_tuple[-len(self.resnets) :])
        for resnet, attention, skip in zip(self.resnets, attentions, skips, strict=True):
            block = _Pair(resnet)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, temb, skip)
            else:
                hidden_states = block(hidden_states, temb, skip)
            hidden_states = hidden_states if attention is None else attention(hidden_states)
        for upsampler in self.upsamplers or ():
            condition = temb if hasattr(upsampler, "time_emb_proj") else upsample_size
            hidden_states = upsampler(hidden_states, condition)
        return hidden_states


class _Pair:
    """A residual block as a function of features and skip connection, which are joined if it does not take pairs."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def __call__(self, x: Tensor, temb: Tensor | None, skip: Tensor) -> Any:
        pairs = isinstance(self.block, ResnetBlock) and is_plain(self.block)
        return self.block(x, temb, skip=skip) if pairs else self.block(torch.cat((x, skip), 1), temb)
