"""Single layers that all families of networks have: the ends of a network."""

from typing import Any

import torch
from torch import Tensor

from emfast.adapters.parts import Part, itself, square_attributes
from emfast.adapters.swap import Swapped, features, precision
from emfast.nn.convolution import convolution
from emfast.ops import group_norm_silu


class Convolution(Swapped):
    """torch.nn.Conv2d with 3 x 3 kernels; the first and the last one of a network."""

    def parts(self: Any) -> list[Part]:
        """Itself."""
        return [itself(self, **square_attributes(3))]

    def example(self: Any) -> tuple[Any, ...]:
        """An image."""
        return (features(self.weight, self.in_channels, 8, 8),)

    def accelerated(self: Any, input: Tensor) -> Tensor:
        """As torch's."""
        settings = self.settings()
        dtype = precision(settings, input)
        keep = settings.entry or settings.dtype is None
        y = convolution(input, self.weight, self.bias, padding=1, dtype=dtype, training=self.training)
        if settings.exit:
            return y.to(self.weight.dtype if settings.dtype else dtype, memory_format=torch.contiguous_format)
        return y if keep else y.to(input.dtype)


class Norm(Swapped):
    """torch.nn.GroupNorm, or GroupNorm32, before the last convolution."""

    def parts(self: Any) -> list[Part]:
        """Itself."""
        return [itself(self, affine=True)]

    def example(self: Any) -> tuple[Any, ...]:
        """An image."""
        return (features(self.weight, self.num_channels, 8, 8),)

    def accelerated(self: Any, input: Tensor) -> Tensor:
        """As torch's."""
        return group_norm_silu(input, self.num_groups, self.weight, self.bias, eps=self.eps, silu=False)
