"""U-Nets that are shown an observation beside the noisy image, as further channels of their first convolution.

Where these channels are zero the network is the one without them, the prior. It is kept as what it is, a model of
diffusers with its own number of channels; the weights of the further ones lie in a file beside it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emfast._check import check
from emfast._files import read_tensors, write_tensors

if TYPE_CHECKING:
    from emfast.diffusion.denoiser import Denoiser

FILE = "condition.safetensors"
NAME = "conv_in.weight"


def widened(network: Any, weight: Tensor) -> Any:
    """Returns the network, its first convolution with further input channels.

    Arguments:
        network: A UNet2DModel; it is changed.
        weight: (out, K, 3, 3) the weights of the K further channels.
    """
    first, count = network.conv_in, network.config.in_channels + weight.shape[1]
    wide = torch.cat((first.weight.detach(), weight.to(first.weight)), 1)
    first.weight, first.in_channels = nn.Parameter(wide), count
    network.register_to_config(in_channels=count)
    return network


def prior_config(network: Any, channels: int) -> dict[str, Any]:
    """Returns the config of a network without its last input channels.

    Arguments:
        network: A UNet2DModel, whatever its first convolution.
        channels: The number K of the further channels.
    """
    return {**network.config, "in_channels": network.config.in_channels - channels}


def parted(network: Any, channels: int) -> tuple[Any, Tensor]:
    """Returns a copy of a network without its last input channels, and their weights.

    Arguments:
        network: What `widened` returned, accelerated or not.
        channels: The number K of the further channels.
    """
    config = prior_config(network, channels)
    with torch.random.fork_rng(devices=[]):  # the weights that it begins with are random
        plain = type(network).from_config(config)
    state, kept = dict(network.state_dict()), config["in_channels"]
    first = state[NAME]
    plain.load_state_dict(state | {NAME: first[:, :kept]})
    return plain.train(network.training), first[:, kept:].detach().contiguous().cpu()


def conditioned(denoiser: Denoiser, channels: int) -> Denoiser:
    """Returns a denoiser whose network is shown observations, which change nothing before it is trained.

    Arguments:
        denoiser: One whose network is a UNet2DModel, not accelerated; it is changed.
        channels: The number K of channels that show an observation.
    Raises:
        ValueError: If its network is of another kind, or is shown observations of other channels.
    """
    if denoiser.condition == channels:
        return denoiser
    network: Any = denoiser.network
    kind, shown = type(network).__name__, denoiser.condition
    fix = "Other networks are no part of the sampler Conditional yet"
    check(kind == "UNet2DModel", "train", "the network", "to be a UNet2DModel, to be shown observations", kind, fix)
    check(shown == 0, "train", "the model", f"to be shown observations of {channels} channels", f"{shown} of them")
    first = network.conv_in
    denoiser.network = widened(network, torch.zeros(first.out_channels, channels, *first.kernel_size))
    denoiser.condition = channels
    return denoiser


def prior_of(denoiser: Denoiser, folder: str | os.PathLike[str]) -> Any:
    """Returns the network of a denoiser for images alone; the weights of further channels are written beside it.

    Arguments:
        denoiser: The denoiser, its network a UNet2DModel if it is shown observations.
        folder: The folder of the model.
    """
    if not denoiser.condition:
        return denoiser.network
    network, weight = parted(denoiser.network, denoiser.condition)
    write_tensors(Path(folder) / FILE, {NAME: weight})
    return network


def read_condition(folder: str | os.PathLike[str], network: Any) -> tuple[Any, int]:
    """Returns the network of a folder with the further channels that lie beside it, and how many these are.

    Arguments:
        folder: The folder of the model.
        network: Its network, which is changed.
    Raises:
        ValueError: If they do not fit.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return network, 0
    weight = read_tensors(path).get(NAME, torch.empty(0))
    own = tuple(network.conv_in.weight.shape)
    good = weight.ndim == 4 and (weight.shape[0], *weight.shape[2:]) == (own[0], *own[2:])
    check(good, "load_model", f"{NAME} of {path}", f"to fit a convolution {own}", tuple(weight.shape))
    return widened(network, weight).eval(), weight.shape[1]
