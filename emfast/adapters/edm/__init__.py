"""EDM's U-Nets (NVlabs/edm, training.networks): which of their modules to swap. EDM is never imported."""

from collections.abc import Iterator

from torch import nn

from emfast.adapters.edm.blocks import Block, Convolution, Norm
from emfast.adapters.edm.networks import DhariwalUNet, SongUNet
from emfast.adapters.parts import original_class
from emfast.adapters.swap import Swapped

MODULES = ("networks", "_imported_module_")  # how the last part begins: as source, and as EDM's pickles bring it along
MIXINS: dict[str, type[Swapped]] = {
    "UNetBlock": Block,
    "Conv2d": Convolution,
    "GroupNorm": Norm,
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
}
NETWORKS = ("SongUNet", "DhariwalUNet")


def swaps(model: nn.Module) -> Iterator[tuple[nn.Module, type[Swapped], str]]:
    """Yields the modules of a network to swap, by what, and their place: "entry", "exit" or ""."""
    inside = {id(part) for block in model.modules() if class_name(block) == "UNetBlock" for part in block.modules()}
    for module in model.modules():
        name = class_name(module)
        if name in NETWORKS:
            yield module, MIXINS[name], "entry"
        elif name == "UNetBlock" or (name and id(module) not in inside):
            yield module, MIXINS[name], ""


def covered(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the modules that are left alone on purpose: the embeddings of noise and labels, too small to matter."""
    for module in model.modules():
        if class_name(module) in NETWORKS:
            yield from (child for name, child in module.named_children() if name.startswith("map_"))


def class_name(module: nn.Module) -> str:
    """Returns the name of a class of EDM, and "" for any other."""
    kind = original_class(module)
    known = kind.__module__.split(".")[-1].startswith(MODULES)
    return kind.__name__ if known and kind.__name__ in MIXINS else ""
