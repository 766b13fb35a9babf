"""EDM's U-Nets as a whole: the skip connections go to the blocks as they are."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast.adapters.edm.blocks import Block, Norm
from emfast.adapters.swap import Swapped, features, is_plain, precision
from emfast.nn.layout import cast
from emfast.nn.normalisation import normalised


class _Network(Swapped):
    """What both networks have."""

    hands_on = True

    def example(self: Any) -> tuple[Any, ...]:
        """Images of the smallest size that can be halved as often as the network does, and what goes with them."""
        first = next(iter(self.enc.values()))
        halvings = len({name.split("_")[0] for name in self.enc})
        x = features(first.weight, first.in_channels, *(1 << halvings,) * 2)
        labels = None if self.map_label is None else features(first.weight, self.map_label.in_features)
        augmentation = None if self.map_augment is None else features(first.weight, self.map_augment.in_features)
        return x, torch.tensor([-1.0, 0.5]), labels, augmentation


class SongUNet(_Network):
    """EDM's SongUNet: DDPM++ and NCSN++, with standard, skip and residual encoders, standard and skip decoders."""

    def accelerated(
        self: Any, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """As EDM's."""
        emb = self.map_noise(noise_labels)
        emb = emb.reshape(len(emb), 2, -1).flip(1).reshape(emb.shape)  # sines first
        if self.map_label is not None:
            labels = _dropped(self, class_labels, len(x))
            emb = emb + self.map_label(labels * math.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        h = aux = _entered(self, x)
        skips: list[Tensor] = []
        for name, block in self.enc.items():
            if "aux_down" in name:
                aux = block(aux)
            elif "aux_skip" in name:
                h = skips[-1] = h + block(aux)
            elif "aux_residual" in name:
                h = skips[-1] = aux = (h + block(aux)) / math.sqrt(2)
            else:
                h = block(h, emb) if hasattr(block, "affine") else block(h)
                skips.append(h)
        return _left(self, _decoded(self.dec, h, emb, skips), x)


def _decoded(blocks: Any, h: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
    """Returns the image, a sum over resolutions with the skip decoder."""
    image: Any = None
    activated = h
    for name, block in blocks.items():
        if "aux_up" in name:
            image = block(image)
        elif "aux_norm" in name:
            activated = _activated(block, h)
        elif "aux_conv" in name:
            image = block(activated) if image is None else block(activated) + image
        else:
            h = _decode(block, h, emb, skips)
    result: Tensor = image
    return result


class DhariwalUNet(_Network):
    """EDM's DhariwalUNet (ADM)."""

    def accelerated(
        self: Any, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """As EDM's."""
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(_dropped(self, class_labels, len(x)))
        emb = F.silu(emb)
        h, skips = _entered(self, x), []
        for block in self.enc.values():
            h = block(h, emb) if hasattr(block, "affine") else block(h)
            skips.append(h)
        for block in self.dec.values():
            h = _decode(block, h, emb, skips)
        return _left(self, self.out_conv(_activated(self.out_norm, h)), x)


def _decode(block: Any, h: Tensor, emb: Tensor, skips: list[Tensor]) -> Any:
    if h.shape[1] == block.in_channels:
        return block(h, emb)
    pair = h, skips.pop()
    return block(pair if isinstance(block, Block) and is_plain(block) else torch.cat(pair, 1), emb)


def _activated(norm: Any, h: Tensor) -> Tensor:
    if isinstance(norm, Norm) and is_plain(norm):
        return normalised(norm, h)
    return F.silu(norm(h))


def _dropped(network: Any, labels: Any, batch: int) -> Tensor:
    """Returns class labels, in training some of them zero (for guidance without a classifier)."""
    if network.training and network.label_dropout:
        kept = torch.rand([batch, 1], device=labels.device) >= network.label_dropout
        labels = labels * kept.to(labels.dtype)
    result: Tensor = labels
    return result


def _entered(network: Any, x: Tensor) -> Tensor:
    """Returns the input, in the compute precision if all modules inside keep it."""
    return cast(x, precision(network.settings(), x)) if network.settings().entry else x


def _left(network: Any, y: Tensor, x: Tensor) -> Tensor:
    """Returns the output, in the dtype of the input if a compute precision was asked for."""
    dtype = x.dtype if network.settings().dtype else y.dtype
    return y.to(dtype=dtype, memory_format=torch.contiguous_format)
