r"""SURE-Score: one network denoises noisy images, by Stein's unbiased risk estimate, and learns from what it denoised.

Reference: Aali, Arvinte, Kumar, Tamir, "Solving Inverse Problems with Score-Based Generative Priors learned from Noisy
Data", 2023, arXiv 2305.01166.

Faithful in the one network, which Tweedie's formula makes the denoiser at the noise level of the data, in the loss,
the risk estimate there plus denoising score matching at all levels on its output, and in the divergence by one random
direction. The risk is divided by sigma^2, so that both terms are of one size; the output that score matching takes is
held fixed; the network is the task's, and score matching has its noise levels. The clean images, which the publication
does not have, take part in score matching as they are.

Tuned: the risk is fitted to the noise of few images in the end, so that a training as long as the others' ends at
20.9 dB and an FD of 16.5 (with Muon, the task's optimizer, 19.6 and 24.8); it stops after a third, with AdamW.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rivals
from emfast import Config, random
from emfast.diffusion import Denoiser
from emfast.em.inputs import Inputs
from emfast.em.m_step import draws
from emfast.em.model import build_model
from emfast.em.noise_levels import training_times
from rivals import Point, fit, ready, timed

TASKS = ("noise",)
SETTINGS: dict[str, Any] = {"m_step": {"optimizer": "adamw", "learning_rate": 3e-4}}
SHIFT = 1e-2  # along which the divergence is measured, in data units
COST = 9  # evaluations a step and image: three passes there and back


def points(config: Config, inputs: Inputs) -> Iterator[Point]:
    """Yields the network at the end of its training."""
    observations, folder = inputs.observations, Path(config.output)
    y = observations.read(torch.arange(len(observations)))
    clean = y[:0] if inputs.clean is None else inputs.clean[:]
    denoiser = ready(build_model(config.network, observations.shape, config.seed)[0], config)
    steps = rivals.STEPS // 3
    device, sigma = next(denoiser.parameters()).device, observations.sigma
    images = torch.cat((y, clean)).to(device)

    def loss(ids: Tensor, step: int) -> Tensor:
        x, noisy = images[ids.to(device)], (ids < len(y)).to(device)[:, None, None, None]
        places = torch.arange(len(ids), device=device)
        u, noise = draws(tuple(x.shape[1:]), places, config.seed, step)
        direction = random.normal(tuple(x.shape[1:]), ids=places, seed=random.derive(config.seed, "sure"), step=step)
        denoised, risk = sure(denoiser, x, sigma, direction)
        target = torch.where(noisy, denoised.detach().clamp(-1, 1), x)
        matching = denoiser.loss(target, training_times(denoiser.schedule, u[:, 0], config.m_step), noise)
        return (matching + noisy.flatten() * risk / sigma**2).mean()

    with timed(folder) as cost:
        fit(denoiser, len(images), loss, config=config, steps=steps, checkpoint=folder / "sure.safetensors")
    yield Point(0, COST * config.m_step.batch_size * steps, **cost, denoiser=denoiser)


def sure(denoiser: Denoiser, y: Tensor, sigma: float, direction: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns noisy images denoised, and Stein's estimate of the mean squared error of each, (B,).

    .. math:: \frac 1 n |D(y) - y|^2 - \sigma^2 + \frac{2 \sigma^2}{n h} b^\top (D(y + h b) - D(y))

    Arguments:
        denoiser: D, at the time whose noise level is sigma.
        y: (B, C, H, W) noisy images.
        sigma: The standard deviation of their noise.
        direction: b, (B, C, H, W) standard normal.
    """
    t = denoiser.schedule.time_of(sigma)
    alpha = denoiser.levels(torch.as_tensor(t, device=y.device), y)[0]
    denoised, shifted = (denoiser(alpha * x, t) for x in (y, y + SHIFT * direction))
    divergence = (direction * (shifted - denoised) / SHIFT).flatten(1).mean(1)
    return denoised, (denoised - y).square().flatten(1).mean(1) - sigma**2 + 2 * sigma**2 * divergence
