"""Class labels: how many classes a network knows, and its third argument for them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emfast._check import check

FIX = "Give labels: one for all images, or one for each"


def check_labels(network: nn.Module, labels: Any) -> Tensor | None:
    """Returns labels as a network takes them, (1, ...) for all images or (B, ...) for each; None for none.

    Arguments:
        network: diffusers' (`class_embedding`), guided-diffusion's (`num_classes`, `label_emb`), EDM's (`label_dim`,
            `map_label`), or any other, of which nothing is known.
        labels: A whole number, a tensor of them, or what the network takes.
    Raises:
        ValueError: If the network knows classes and there are no labels, or none of that number.
    """
    count, must = classes(network)
    if labels is None:
        check(not must, "Denoiser", "labels", "to be given for a network with class labels", None, FIX)
        return None
    value = torch.as_tensor(labels)
    value = value.reshape(1) if value.dim() == 0 else value
    if count is not None and not value.is_floating_point() and value.numel():
        inside = bool((value >= 0).all()) and bool((value < count).all())
        found = f"{int(value.min())} ... {int(value.max())}"
        check(inside, "Denoiser", "labels", f"to be in 0 ... {count - 1}, the classes of the network", found)
        if _one_hot(network) and value.dim() == 1:
            value = F.one_hot(value.long(), count).to(torch.float32)
    return value


def classes(network: Any) -> tuple[int | None, bool]:
    """Returns the number of classes that a network knows, None for unknown, and whether it cannot do without labels."""
    embedding = getattr(network, "class_embedding", None)
    if embedding is not None:
        return getattr(embedding, "num_embeddings", None), True
    count = getattr(network, "num_classes", None) if hasattr(network, "label_emb") else None
    if count is not None:
        return int(count), True
    return _one_hot(network) or None, False


def asks_for_labels(network: Any) -> bool:
    """Returns whether a network has a third argument without a default, as EDM's raw ones have."""
    parameters = list(inspect.signature(network.forward).parameters.values())[2:3]
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def label_arguments(
    network: Any, labels: Tensor | None, asked: bool, batch: int, device: torch.device, tiles: int = 1
) -> tuple[Any, ...]:
    """Returns the arguments of a network after image and time: its labels, those of no class if it asks, or ().

    Arguments:
        network: The network.
        labels: What `check_labels` returned, on the device to use.
        asked: Whether it asks for them: `asks_for_labels`.
        batch: The number of images.
        device: Where they are.
        tiles: How many tiles of each image there are among them: first one of every image, then the next.
    Raises:
        ValueError: If there is neither one label nor one for each image.
    """
    if labels is None:
        width = _one_hot(network)
        return (torch.zeros(batch, width, device=device) if width else None,) if asked else ()
    count = batch // tiles
    good = len(labels) in (1, count)
    check(good, "Denoiser", "labels", f"to be one for each of {count} images", tuple(labels.shape), FIX)
    labels = labels if len(labels) == 1 or tiles == 1 else torch.cat([labels] * tiles)
    return (labels.expand(batch, *labels.shape[1:]),)


def _one_hot(network: Any) -> int:
    """Returns the width of the one-hot vectors that a network of EDM takes for labels; no class is all zeros."""
    inner = getattr(network, "map_label", None)
    return int(getattr(network, "label_dim", 0) or getattr(inner, "in_features", 0))
