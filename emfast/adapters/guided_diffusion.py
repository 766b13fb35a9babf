"""guided-diffusion's U-Net, and DPS's copy of it: which of their modules to swap. Neither is ever imported."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from emfast.adapters.structure import is_square, reads_only
from emfast.nn.guided_diffusion import AttentionBlock, Downsample, ResBlock, UNet, Upsample, sinusoids
from emfast.nn.layers import Convolution, Identity, NormSiLU
from emfast.nn.swap import Swapped, original

MODULE = "unet"  # guided_diffusion.unet, wherever the folder lies
NETWORKS = ("UNetModel", "SuperResModel")  # whose first and last layers are recognised too
BLOCKS: dict[str, type[Swapped]] = {
    "ResBlock": ResBlock,
    "AttentionBlock": AttentionBlock,
    "Upsample": Upsample,
    "Downsample": Downsample,
    "UNetModel": UNet,
}
# The names that their methods read. Assertions and messages may come and go.
METHODS = {
    "ResBlock": (
        "forward _forward",
        "checkpoint _forward parameters use_checkpoint updown in_layers h_upd x_upd emb_layers use_scale_shift_norm"
        " out_layers skip_connection",
    ),
    "AttentionBlock": ("forward _forward", "checkpoint _forward parameters use_checkpoint qkv norm attention proj_out"),
    "Upsample": ("forward", "channels dims interpolate use_conv conv AssertionError"),
    "Downsample": ("forward", "channels op AssertionError"),
    "UNetModel": (
        "forward",
        "num_classes time_embed timestep_embedding model_channels label_emb input_blocks middle_block output_blocks out"
        " AssertionError",
    ),
}
ATTENTION = "n_heads math sqrt einsum softmax AssertionError"


def swaps(model: nn.Module) -> Iterator[tuple[nn.Module, type[Swapped], str]]:
    """Yields the modules of a network to swap, by what, and their place: "entry", "exit" or ""."""
    for module in model.modules():
        name = class_name(module)
        if name in BLOCKS and reads_only(original(module), *METHODS[name]) and _fits(name, module):
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
    kind = original(module)
    return kind.__name__ if kind.__module__.split(".")[-1] == MODULE else ""


def _fits(name: str, module: Any) -> bool:
    if name == "ResBlock":
        return _fits_residual(module)
    if name == "AttentionBlock":
        kind = type(module.attention)
        layers = (module.qkv, module.proj_out)
        pointwise = all(isinstance(conv, nn.Conv1d) and conv.kernel_size == (1,) for conv in layers)
        known = kind.__name__ in ("QKVAttention", "QKVAttentionLegacy") and reads_only(kind, "forward", ATTENTION)
        return pointwise and known
    if name == "Upsample":
        return module.use_conv and is_square(module.conv, 3, 1, 1)
    if name == "Downsample":
        return is_square(module.op, 3, 2, 1)
    return _embeds(module)


def _fits_residual(module: Any) -> bool:
    layers, outs, skip = module.in_layers, module.out_layers, module.skip_connection
    if [type(part).__name__ for part in layers] != ["GroupNorm32", "SiLU", "Conv2d"]:
        return False
    if [type(part).__name__ for part in outs] != ["GroupNorm32", "SiLU", "Dropout", "Conv2d"]:
        return False
    plain = isinstance(skip, nn.Identity) or is_square(skip, 1, 1, 0) or is_square(skip, 3, 1, 1)
    resamples = [module.h_upd, module.x_upd] if module.updown else []
    kinds = {class_name(part) for part in resamples}
    same = len(kinds) < 2 and kinds <= {"Upsample", "Downsample"} and not any(part.use_conv for part in resamples)
    return plain and same and is_square(layers[2], 3, 1, 1) and is_square(outs[3], 3, 1, 1)


def _embeds(model: Any) -> bool:
    """Returns whether the embedding of time, a function of another file, is the known one."""
    embedding = getattr(original(model).forward, "__globals__", {}).get("timestep_embedding")  # type: ignore[attr-defined]
    times = torch.tensor([0.0, 7.0, 999.0])
    try:
        return embedding is not None and torch.allclose(embedding(times, 9), sinusoids(times, 9), atol=1e-4)
    except (TypeError, RuntimeError):  # it takes other arguments, or returns another shape
        return False


def _ends(model: Any) -> Iterator[tuple[nn.Module, type[Swapped], str]]:
    """The layers before the first block and after the last."""
    first, (norm, activation, last) = model.input_blocks[0][0], model.out
    if is_square(first, 3, 1, 1) and is_square(last, 3, 1, 1):
        yield first, Convolution, "entry"
        yield last, Convolution, "exit"
    if type(activation).__name__ == "SiLU" and original(norm).__name__ == "GroupNorm32":
        yield norm, NormSiLU, ""
        yield activation, Identity, ""
