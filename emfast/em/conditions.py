"""What a conditional network is shown while it is trained: a fresh observation of every image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emfast import random
from emfast._check import check
from emfast.diffusion import Denoiser
from emfast.diffusion.condition import conditioned
from emfast.em.observations import Observations
from emfast.samplers import Conditional

if TYPE_CHECKING:
    from emfast.config import Config


def conditions_of(config: Config, denoiser: Denoiser, observations: Observations) -> Conditions | None:
    """Returns what the network of a run is shown, if its sampler needs that; the network is given channels for it.

    Arguments:
        config: The run.
        denoiser: The initial denoiser, not accelerated; it is changed.
        observations: The observations.
    Raises:
        ValueError: If the network takes none, or is a model that was trained without.
    """
    if not isinstance(config.sampler, Conditional):
        return None
    fix = "Leave it out, or give the model of a run with this sampler"
    good = config.model is None or denoiser.condition > 0
    check(good, "train", "model", "to be shown observations, for the sampler Conditional", "a prior alone", fix)
    conditioned(denoiser, observations.channels)
    return Conditions(observations, config.m_step.prior_share)


class Conditions:
    """Simulates an observation of each training image by the operator of the run, but for a share of them.

    An image is observed with the parameters (the mask) of some observation of the run, drawn in every step. Images that
    are shown without an observation teach the network the prior.

    Arguments:
        observations: The observations of the run.
        share: The share of images without an observation.
    """

    def __init__(self, observations: Observations, share: float) -> None:
        self.observations, self.share = observations, share
        self.names: list[str] = []

    def parameters(self, count: int, part: slice, seed: int, k: int, device: torch.device) -> list[Tensor]:
        """Returns the values of the operator's parameters for a part of the batch of step k, on the device.

        Arguments:
            count: The images of the batch.
            part: The part of it.
            seed: The key of the training.
            k: The step.
            device: The device to use.
        """
        generator = torch.Generator().manual_seed(random.derive(seed, "observed", k) % 2**63)
        rows = torch.randint(len(self.observations), (count,), generator=generator)[part]
        ids = self.observations.ids[rows]
        found = self.observations.operator.parameters(ids.to(device), self.observations.observed)
        self.names = list(found)
        return list(found.values())

    def show(self, x_0: Tensor, values: list[Tensor], place: Tensor, seed: int, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the network is shown of images, (B, K, H, W), and of which of them an observation, (B, 1, 1, 1).

        Arguments:
            x_0: (B, C, H, W) the images.
            values: What `parameters` returned.
            place: (B,) the images' places in the batch.
            seed: The key of the training.
            k: The step, a 0-dimensional tensor on the device of place.
        """
        operator, parameters = self.observations.operator, dict(zip(self.names, values, strict=True))
        generator = random.Generator(place, random.derive(seed, "simulate"), k)
        y = operator.simulate(x_0, parameters, generator, self.observations.sigma)
        condition = operator.condition(operator.project(y, parameters), parameters)
        u = random.uniform((1, 1, 1), ids=place, seed=random.derive(seed, "without"), step=k)
        shown = u >= self.share
        return torch.where(shown, condition, 0.0), shown
