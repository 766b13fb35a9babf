"""Noise2Self: a denoiser learned from noisy images alone, each pixel from others; then a prior of what it restores.

Reference: Batson and Royer, "Noise2Self: Blind Denoising by Self-Supervision", 2019, arXiv 1901.11365.

Faithful in the grids of 4 x 4 pixels, of which one in sixteen is hidden at a time behind the mean of its neighbours,
the loss on hidden pixels, and the restoration that puts sixteen passes together. Its network is the task's U-Net, in
the place of the publication's, at one fixed time; borders are mirrored. The prior of the restored images, which the
publication does not have, is trained as the bounds are; the clean images are among its images.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rivals
from emfast import Config
from emfast.diffusion import Denoiser
from emfast.em.inputs import Inputs
from emfast.em.model import build_model
from rivals import Point, fit, prior, ready, timed

TASKS = ("noise",)
SETTINGS: dict[str, Any] = {}
WIDTH = 4  # of a grid
NEIGHBOURS = torch.tensor([[0.5, 1.0, 0.5], [1.0, 0.0, 1.0], [0.5, 1.0, 0.5]]) / 6


def points(config: Config, inputs: Inputs) -> Iterator[Point]:
    """Yields the prior of what the denoiser restores."""
    observations, folder = inputs.observations, Path(config.output)
    y = observations.read(torch.arange(len(observations)))
    with timed(folder) as cost:
        restored = restore(denoiser_of(y, config, folder), y).clamp(-1, 1)
        clean = y[:0] if inputs.clean is None else inputs.clean[:]
        denoiser = prior(config, torch.cat((restored, clean)), folder)
    spent = 2 * 3 * config.m_step.batch_size * rivals.STEPS + WIDTH**2 * len(y)
    yield Point(0, spent, **cost, denoiser=denoiser, own=restored)


def denoiser_of(y: Tensor, config: Config, folder: Path) -> Denoiser:
    """Returns the network trained on noisy images y, as a denoiser of which `raw` is used."""
    denoiser = ready(build_model(config.network, tuple(y.shape[1:]), config.seed)[0], config)

    def loss(ids: Tensor, step: int) -> Tensor:
        x = y[ids].to(next(denoiser.parameters()).device)
        hidden = grid(step, x)
        error = denoiser.raw(without(x, hidden), x.new_zeros(1)) - x
        return (hidden * error.square()).sum() / (hidden.sum() * x.shape[0] * x.shape[1])

    return fit(denoiser, len(y), loss, config=config, steps=rivals.STEPS, checkpoint=folder / "noise2self.safetensors")


@torch.no_grad()
def restore(denoiser: Denoiser, y: Tensor) -> Tensor:
    """Returns noisy images restored, (B, C, H, W) on the CPU: every pixel by the pass that did not see it."""
    device, parts = next(denoiser.parameters()).device, []
    for part in y.split(64):
        x = part.to(device)
        grids = [grid(k, x) for k in range(WIDTH**2)]
        parts.append(sum(hidden * denoiser.raw(without(x, hidden), x.new_zeros(1)) for hidden in grids).cpu())
    return torch.cat(parts)


def grid(phase: int, x: Tensor) -> Tensor:
    """Returns 1 where the pixels of images are hidden in a phase, one of every grid, (H, W)."""
    row, column = divmod(phase % WIDTH**2, WIDTH)
    hidden = x.new_zeros(x.shape[-2:])
    hidden[row::WIDTH, column::WIDTH] = 1
    return hidden


def without(x: Tensor, hidden: Tensor) -> Tensor:
    """Returns images with the mean of its neighbours in the place of every hidden pixel."""
    kernel = NEIGHBOURS.to(x).expand(x.shape[1], 1, 3, 3)
    around = nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), "reflect"), kernel, groups=x.shape[1])
    return torch.where(hidden == 1, around, x)
