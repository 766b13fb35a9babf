"""Single layers: convolution, upsampling, downsampling, and normalisation with the activation that follows it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emfast.nn.convolution import convolution
from emfast.nn.swap import Swapped, is_plain, precision
from emfast.ops import group_norm_silu


class Convolution(Swapped):
    """torch.nn.Conv2d with square strides and zero padding; the first and the last one of a network."""

    def forward(self: Any, x: Tensor) -> Tensor:
        settings = self.settings()
        dtype = precision(settings, x)
        keep = settings.entry or settings.dtype is None
        y = convolution(
            x,
            self.weight,
            self.bias,
            stride=self.stride[0],
            padding=self.padding[0],
            dtype=dtype,
            training=self.training,
        )
        if settings.exit:
            return y.to(self.weight.dtype if settings.dtype else dtype, memory_format=torch.contiguous_format)
        return y if keep else y.to(x.dtype)


class NormSiLU(Swapped):
    """torch.nn.GroupNorm with the SiLU that follows it; `Identity` takes the place of the SiLU."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, eps=self.eps)


class Identity(Swapped):
    """torch.nn.SiLU after a `NormSiLU`, which has applied it already."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return x


class Upsample(Swapped):
    """diffusers' Upsample2D: nearest neighbours and a 3 x 3 convolution, on the small image."""

    def forward(self: Any, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        conv: Any = getattr(self, "conv", None) or getattr(self, "Conv2d_0", None)
        if output_size is not None or args or kwargs or not is_plain(conv, nn.Conv2d):
            return super().forward(hidden_states, output_size, *args, **kwargs)  # type: ignore[misc]
        dtype = precision(self.settings(), hidden_states)
        y = convolution(
            hidden_states, conv.weight, conv.bias, padding=1, upsample=True, dtype=dtype, training=self.training
        )
        return y.to(hidden_states.dtype) if self.settings().dtype else y


class Downsample(Swapped):
    """diffusers' Downsample2D with a convolution of stride 2."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not is_plain(self.conv, nn.Conv2d):
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        dtype = precision(self.settings(), hidden_states)
        x = hidden_states if self.padding else F.pad(hidden_states, (0, 1, 0, 1))
        y = convolution(
            x, self.conv.weight, self.conv.bias, stride=2, padding=self.padding, dtype=dtype, training=self.training
        )
        return y.to(hidden_states.dtype) if self.settings().dtype else y
