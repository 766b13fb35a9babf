"""guided-diffusion's U-Net as a whole: the skip connections go to the residual blocks as they are."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast.adapters.guided_diffusion.blocks import ResBlock
from emfast.adapters.parts import is_hooked, original_class, replaced_method
from emfast.adapters.swap import Swapped, features, is_plain


class UNet(Swapped):
    """guided-diffusion's UNetModel."""

    hands_on = True

    def example(self: Any) -> tuple[Any, ...]:
        """Images of the smallest size, times, and labels if there are classes."""
        self.dtype = torch.float32  # of the torso; an attribute of the original
        x = features(self.input_blocks[0][0].weight, self.in_channels, *_smallest(self))
        labels = () if self.num_classes is None else (torch.tensor([0, self.num_classes - 1]),)
        return x, torch.tensor([3.0, 700.0]), *labels

    def accelerated(self: Any, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Any:
        """As guided-diffusion's."""
        if (y is None) != (self.num_classes is None):
            return NotImplemented
        emb = self.time_embed(sinusoids(timesteps, self.model_channels))
        if y is not None:
            emb = emb + self.label_emb(y)
        settings = self.settings()
        keeps = settings.entry and settings.dtype is not None  # the layers at both ends cast, once
        h = x if keeps else x.type(self.dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            skip = skips.pop()
            h = block((h, skip) if _takes_pairs(block) else torch.cat((h, skip), 1), emb)
        return self.out(h if keeps else h.type(x.dtype))


def _smallest(network: Any) -> tuple[int, int]:
    """Returns the smallest size that can be halved as often as the network does."""
    halvings = sum(
        original_class(layer).__name__ == "Downsample" or bool(getattr(layer, "updown", False))
        for block in network.input_blocks
        for layer in block
    )
    return (2 << halvings,) * 2


def _takes_pairs(block: Any) -> bool:
    """Returns whether a TimestepEmbedSequential hands its input on, as it is, to an accelerated residual block."""
    if is_hooked(block) or replaced_method(block) or original_class(block).__name__ != "TimestepEmbedSequential":
        return False
    return isinstance(block[0], ResBlock) and is_plain(block[0])


def sinusoids(timesteps: Tensor, size: int, longest: float = 10000.0) -> Tensor:
    """Returns cosines, then sines, of the times at frequencies from 1 to nearly 1 / longest, (B, size), in float32.

    Arguments:
        timesteps: (B,) times.
        size: The size of the embedding; the last of an odd one is zero.
        longest: The longest wavelength, over 2 pi.
    """
    half = size // 2
    exponents = -math.log(longest) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * exponents.exp()
    return F.pad(torch.cat((angles.cos(), angles.sin()), 1), (0, size % 2))
