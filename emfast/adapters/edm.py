"""EDM's U-Nets (NVlabs/edm, training.networks): which of their modules to swap. EDM is never imported."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from emfast.adapters.structure import reads_only
from emfast.nn.edm import Block, Convolution, Norm
from emfast.nn.edm_networks import DhariwalUNet, SongUNet
from emfast.nn.swap import Swapped, original

MODULES = ("networks", "_imported_module_")  # how the last part begins: as source, and as EDM's pickles bring it along
MIXINS: dict[str, type[Swapped]] = {
    "UNetBlock": Block,
    "Conv2d": Convolution,
    "GroupNorm": Norm,
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
}
NETWORKS = ("SongUNet", "DhariwalUNet")
EMBEDDINGS = (
    "map_noise map_augment map_layer0 map_layer1 map_label silu training label_dropout rand enc dec items values"
    " UNetBlock in_channels"
)
NAMES = {  # that their forward reads
    "UNetBlock": "conv0 silu norm0 affine adaptive_scale addcmul norm1 add_ conv1 dropout training skip skip_scale"
    " num_heads qkv norm2 AttentionOp apply einsum proj",
    "Conv2d": "weight bias resample_filter fused_resample up down conv_transpose2d conv2d mul tile in_channels"
    " out_channels add_",
    "GroupNorm": "group_norm num_groups weight bias eps",
    "SongUNet": f"{EMBEDDINGS} flip sqrt in_features",
    "DhariwalUNet": f"{EMBEDDINGS} out_conv out_norm",
}


def swaps(model: nn.Module) -> Iterator[tuple[nn.Module, type[Swapped], str]]:
    """Yields the modules of a network to swap, by what, and their place: "entry", "exit" or ""."""
    for module in model.modules():
        name = class_name(module)
        if name in NETWORKS and _is_known(module):
            yield module, MIXINS[name], "entry"
    inside = {id(part) for block in model.modules() if class_name(block) == "UNetBlock" for part in block.modules()}
    for module in model.modules():
        name = class_name(module)
        if name == "UNetBlock" and _is_known(module) and _fits(module):
            yield module, Block, ""
        elif name in ("Conv2d", "GroupNorm") and id(module) not in inside and _is_known(module) and _resamples(module):
            yield module, MIXINS[name], ""


def covered(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the modules that are left alone on purpose: the embeddings of noise and labels, too small to matter."""
    for module in model.modules():
        if class_name(module) in NETWORKS:
            yield from (child for name, child in module.named_children() if name.startswith("map_"))


def class_name(module: nn.Module) -> str:
    """Returns the name of a class of EDM, and "" for any other."""
    kind = original(module)
    known = kind.__module__.split(".")[-1].startswith(MODULES)
    return kind.__name__ if known and kind.__name__ in MIXINS else ""


def _is_known(module: nn.Module) -> bool:
    return reads_only(original(module), "forward", NAMES[class_name(module)])


def _fits(block: Any) -> bool:
    convolutions = [block.conv0, block.conv1, *([] if block.skip is None else [block.skip])]
    parts = [block.norm0, block.norm1, *convolutions]
    if block.num_heads:
        parts += [block.norm2, block.qkv, block.proj]
    known = all(class_name(part) in ("Conv2d", "GroupNorm") and _is_known(part) for part in parts)
    return known and all(map(_resamples, convolutions))


def _resamples(module: Any) -> bool:
    """Returns whether a convolution resamples in a way that is known: a filter of two taps is a box, say."""
    if not (getattr(module, "up", False) or getattr(module, "down", False)):
        return True
    taps = module.resample_filter
    box = taps.shape[-1] != 2 or bool((taps == 0.25).all())
    return box and not (module.up and module.fused_resample and module.weight is not None)
