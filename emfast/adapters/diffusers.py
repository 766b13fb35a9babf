"""diffusers' U-Nets: which of their modules to swap. diffusers is never imported: its classes are known by name."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from emfast.adapters.structure import is_square
from emfast.nn.attention import Attention
from emfast.nn.layers import Convolution, Downsample, Identity, NormSiLU, Upsample
from emfast.nn.resnet import ResnetBlock, UpBlock
from emfast.nn.swap import Swapped, is_plain, original

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
        if name in BLOCKS and _fits(name, module):
            yield module, BLOCKS[name], ""
        if name in NETWORKS:
            yield from _ends(module)


def covered(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the modules that are left alone on purpose."""
    return (module for module in model.modules() if class_name(module) in KNOWN)


def class_name(module: nn.Module) -> str:
    """Returns the name of a class of diffusers, and "" for any other."""
    kind = original(module)
    return kind.__name__ if kind.__module__.startswith(PACKAGE) else ""


def _fits(name: str, module: Any) -> bool:
    if name == "ResnetBlock2D":
        convolutions = [conv for conv in (module.conv1, module.conv2, module.conv_shortcut) if conv is not None]
        return isinstance(module.nonlinearity, nn.SiLU) and all(is_plain(conv, nn.Conv2d) for conv in convolutions)
    if name == "Upsample2D":
        conv = getattr(module, "conv", None) or getattr(module, "Conv2d_0", None)
        return module.interpolate and module.norm is None and is_square(conv, 3, 1, 1)
    if name == "Downsample2D":
        return module.norm is None and is_square(module.conv, 3, 2, module.padding)
    return True


def _ends(model: Any) -> Iterator[tuple[nn.Module, type[Swapped], str]]:
    """The layers before the first block and after the last."""
    if is_square(model.conv_in, 3, 1, 1) and is_square(model.conv_out, 3, 1, 1):
        yield model.conv_in, Convolution, "entry"
        yield model.conv_out, Convolution, "exit"
    norm, activation = model.conv_norm_out, model.conv_act
    if isinstance(activation, nn.SiLU) and isinstance(norm, nn.GroupNorm):
        yield norm, NormSiLU, ""
        yield activation, Identity, ""
