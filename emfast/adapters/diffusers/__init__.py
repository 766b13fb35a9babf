"""diffusers' U-Nets: which of their modules to swap. diffusers is never imported: its classes are known by name."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from emfast.adapters.diffusers.attention import Attention
from emfast.adapters.diffusers.blocks import Downsample, ResnetBlock, UpBlock, Upsample
from emfast.adapters.layers import Convolution, Norm
from emfast.adapters.parts import original_class
from emfast.adapters.swap import Swapped

PACKAGE = "diffusers.models."
NETWORKS = ("UNet2DModel",)  # whose first and last layers are recognised too
BLOCKS: dict[str, type[Swapped]] = {
    "ResnetBlock2D": ResnetBlock,
    "Attention": Attention,
    "Upsample2D": Upsample,
    "Downsample2D": Downsample,
    "UpBlock2D": UpBlock,
    "AttnUpBlock2D": UpBlock,
}
KNOWN = ("TimestepEmbedding", "GaussianFourierProjection")  # left as they are: too small to matter


def swaps(model: nn.Module) -> Iterator[tuple[nn.Module, type[Swapped], str]]:
    """Yields the modules of a network to swap, by what, and their place: "entry", "exit" or ""."""
    for module in model.modules():
        name = class_name(module)
        if name in BLOCKS:
            yield module, BLOCKS[name], ""
        if name in NETWORKS:
            yield from _ends(module)


def covered(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the modules that are left alone on purpose."""
    return (module for module in model.modules() if class_name(module) in KNOWN)


def class_name(module: nn.Module) -> str:
    """Returns the name of a class of diffusers, and "" for any other."""
    kind = original_class(module)
    return kind.__name__ if kind.__module__.startswith(PACKAGE) else ""


def _ends(model: Any) -> Iterator[tuple[nn.Module, type[Swapped], str]]:
    """The layers before the first block and after the last."""
    ends = {"entry": model.conv_in, "exit": model.conv_out}
    if all(original_class(conv) is nn.Conv2d for conv in ends.values()):
        yield from ((conv, Convolution, place) for place, conv in ends.items())
    if original_class(model.conv_norm_out) is nn.GroupNorm:
        yield model.conv_norm_out, Norm, ""
