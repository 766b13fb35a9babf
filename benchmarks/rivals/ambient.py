r"""Ambient Diffusion: trained on masked images alone, of which some more pixels are hidden, to be predicted.

Reference: Daras, Shah, Dagan, Gollakota, Dimakis, Klivans, "Ambient Diffusion: Learning Clean Distributions from
Corrupted Data", 2023, arXiv 2305.19256.

Faithful in the further corruption (a tenth of the pixels seen), in the loss, :math:`|A (h(\tilde A, \tilde A x_t, t) -
x_0)|^2`, in the mask as an input of the network, and in sampling with one mask for each image. Where it sees no pixel
the network predicts x_0, elsewhere v: under the publication's preconditioning it would have to give a hidden pixel over
sigma. The clean images, which the publication does not have, are observed whole and hidden like the others. Its own
restoration is, as in the publication, one pass: the mean of the image given the observation and its mask.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rivals
from emfast import Config, random
from emfast.diffusion import Denoiser, Schedule
from emfast.em.inputs import Inputs
from emfast.em.m_step import draws
from emfast.em.model import build_model, seeded
from emfast.em.noise_levels import training_times
from rivals import Point, fit, ready, timed

TASKS = ("mask-60", "mask-85")
SETTINGS: dict[str, Any] = {}
FURTHER = 0.1  # the share of the pixels seen that are hidden from the network
LEAST = 0.03  # the noise level of the own restoration: the last of the samplers


class Ambient(nn.Module):
    """The network as an estimate of x_0 from the pixels of x_t that a mask shows; called with a mask or with its own.

    Arguments:
        network: Takes 2 C channels, and gives C.
        schedule: The noise schedule.
        seen: The share of pixels that its own masks show, one for each place in a batch.
        seed: Their key.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, seen: float, seed: int) -> None:
        super().__init__()
        self.network, self.schedule, self.seen, self.seed = network, schedule, seen, seed

    def forward(self, x_t: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns x0-hat, (B, C, H, W)."""
        if mask is None:
            mask = draw(self.seen, x_t, torch.arange(len(x_t), device=x_t.device), self.seed)
        t = t.reshape(-1, 1, 1, 1)
        alpha, sigma = (level(t).to(x_t.dtype) for level in (self.schedule.alpha, self.schedule.sigma))
        output = self.raw(x_t, t, mask)
        return torch.where(mask == 1, alpha * x_t - sigma * output, output)

    def raw(self, x_t: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        """Returns v where the mask shows x_t, and x_0 elsewhere."""
        shown = torch.cat((mask * x_t, mask.expand_as(x_t)), 1)
        output: Tensor = self.network(shown, t.flatten().float().expand(len(x_t))).sample
        return output


def points(config: Config, inputs: Inputs) -> Iterator[Point]:
    """Yields the network at the end of its training."""
    observations, folder = inputs.observations, Path(config.output)
    ids = torch.arange(len(observations))
    y, masks = observations.read(ids), observations.mask(ids)
    if masks is None:
        raise ValueError("ambient: expected the observations to have masks, got none. Give a task with a Mask.")
    clean = y[:0] if inputs.clean is None else inputs.clean[:]
    denoiser = build(config, observations.shape, float(masks.mean()) * (1 - FURTHER))
    device = next(denoiser.parameters()).device
    images = torch.cat((y, clean)).to(device)
    seen = torch.cat((masks, torch.ones_like(clean[:, :1]))).to(device)

    def loss(ids: Tensor, step: int) -> Tensor:
        rows = ids.to(device)
        return further_corrupted(denoiser, images[rows], seen[rows], config, step)

    with timed(folder) as cost:
        fit(denoiser, len(images), loss, config=config, steps=rivals.STEPS, checkpoint=folder / "ambient.safetensors")
    own = restore(denoiser, y, masks)
    yield Point(0, 3 * config.m_step.batch_size * rivals.STEPS, **cost, denoiser=denoiser, own=own)


def build(config: Config, shape: tuple[int, int, int], seen: float) -> Denoiser:
    """Returns the untrained denoiser, its masks such as its training has them."""
    inner = build_model(config.network, (2 * shape[0], *shape[1:]), config.seed)[0]
    network: Any = inner.network
    with seeded(random.derive(config.seed, "weights")):
        network = type(network).from_config({**network.config, "out_channels": shape[0]})
    model = Ambient(network, inner.schedule, seen, random.derive(config.seed, "ambient"))
    return ready(Denoiser(model, inner.schedule, "x0"), config)


def further_corrupted(denoiser: Denoiser, x_0: Tensor, mask: Tensor, config: Config, step: int) -> Tensor:
    """Returns the loss of images x_0, of which only what the mask shows counts and some of it is seen."""
    model: Any = denoiser.network
    places = torch.arange(len(x_0), device=x_0.device)
    u, noise = draws(tuple(x_0.shape[1:]), places, config.seed, step)
    key = random.derive(config.seed, "further")
    few = mask.flatten(1).mean(1) < 1  # clean images, seen whole, are hidden from the network like the others
    share = torch.where(few, 1 - FURTHER, model.seen)[:, None, None, None]
    shown = mask * draw(share, x_0, places, key, step)
    t = training_times(denoiser.schedule, u[:, 0], config.m_step)
    alpha, sigma = denoiser.levels(t, x_0)
    target = torch.where(shown == 1, alpha * noise - sigma * x_0, x_0)
    error = model.raw(alpha * x_0 + sigma * noise, t, shown) - target
    return (mask * error.square()).sum() / mask.expand_as(error).sum()


def draw(share: float | Tensor, like: Tensor, places: Tensor, seed: int, step: int = 0) -> Tensor:
    """Returns masks that show a share of the pixels, (B, 1, H, W) of 0 and 1."""
    u = random.uniform((1, *like.shape[-2:]), ids=places, seed=seed, step=step)
    return (u < share).to(like.dtype)


@torch.no_grad()
def restore(denoiser: Denoiser, y: Tensor, masks: Tensor) -> Tensor:
    """Returns the mean of the image given each observation and its mask, (B, C, H, W) on the CPU."""
    model: Any = denoiser.network
    device = next(denoiser.parameters()).device
    t = torch.full((1,), denoiser.schedule.time_of(LEAST), device=device)
    parts = []
    for part, mask in zip(y.split(64), masks.split(64), strict=True):
        x, seen = part.to(device), mask.to(device)
        parts.append(torch.where(seen == 1, x, model(denoiser.levels(t, x)[0] * x, t, seen)).cpu())
    return torch.cat(parts).clamp(-1, 1)
