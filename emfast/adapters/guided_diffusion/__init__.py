"""guided-diffusion's U-Net, and DPS's copy of it: which of their modules to swap. Neither is ever imported."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from emfast.adapters.guided_diffusion.blocks import AttentionBlock, Downsample, ResBlock, Upsample
from emfast.adapters.guided_diffusion.network import UNet
from emfast.adapters.layers import Convolution, Norm
from emfast.adapters.parts import original_class
from emfast.adapters.swap import Swapped

MODULE = "unet"  # guided_diffusion.unet, wherever the folder lies
NETWORKS = ("UNetModel", "SuperResModel")  # whose first and last layers are recognised too
BLOCKS: dict[str, type[Swapped]] = {
    "ResBlock": ResBlock,
    "AttentionBlock": AttentionBlock,
    "Upsample": Upsample,
    "Downsample": Downsample,
    "UNetModel": UNet,
}


def swaps(model: nn.Module) -> Iterator[tuple[nn.Module, type[Swapped], str]]:
    """Yields the modules of a network to swap, by what, and their place: "entry", "exit" or ""."""
    for module in model.modules():
        name = class_name(module)
        if name in BLOCKS:
            yield module, BLOCKS[name], "entry" if name == "UNetModel" else ""
        if name in NETWORKS:
            yield from _ends(module)


def covered(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the modules that are left alone on purpose: the embeddings of time and class, too small to matter."""
    for module in model.modules():
        if class_name(module) in NETWORKS:
            yield from (child for name, child in module.named_children() if name in ("time_embed", "label_emb"))


def class_name(module: nn.Module) -> str:
    """Returns the name of a class of guided-diffusion, and "" for any other."""
    kind = original_class(module)
    return kind.__name__ if kind.__module__.split(".")[-1] == MODULE else ""


def _ends(model: Any) -> Iterator[tuple[nn.Module, type[Swapped], str]]:
    """The layers before the first block and after the last."""
    first, (norm, _, last) = model.input_blocks[0][0], model.out
    if original_class(first) is nn.Conv2d and original_class(last) is nn.Conv2d:
        yield first, Convolution, "entry"
        yield last, Convolution, "exit"
    if original_class(norm).__name__ == "GroupNorm32":
        yield norm, Norm, ""
