"""Samples of the prior itself, without observations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from emfast import random
from emfast._check import check_ids, check_seed
from emfast.diffusion import Denoiser, Schedule
from emfast.operators import Identity
from emfast.samplers.base import Callback, Sampler
from emfast.samplers.problem import Problem, clip_values

NOTHING = Identity()  # one for all calls, which share their graphs


@dataclass(frozen=True)
class Prior(Sampler):
    """Unconditional DDIM or ancestral sampling: how the images of a model look.

    Arguments:
        steps: The number of network evaluations.
        order: 2 extrapolates the estimate from the step before, 1 does not.
        clip: Clips x0-hat to [-1, 1], the range of images.
        eta: 0 for deterministic (DDIM) steps, 1 for ancestral (DDPM) steps.

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2020), arXiv 2010.02502
    """

    steps: int = 50
    order: int = 1
    clip: bool = True
    eta: float = 0.0

    def times(self, schedule: Schedule, sigma: float) -> Tensor:
        """Returns evenly spaced times, as the paper has them."""
        return schedule.times(self.steps)

    def estimate(self, problem: Problem, x_t: Tensor, k: Tensor) -> Tensor:
        """Returns x0-hat."""
        return clip_values(problem.denoise(x_t, problem.coefficients(k, x_t)), self.clip)

    def sample(
        self,
        denoiser: Denoiser,
        shape: tuple[int, int, int],
        *,
        ids: Tensor,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> Tensor:
        """Returns one image for every id, (B, C, H, W) float32.

        Arguments:
            denoiser: The model.
            shape: (C, H, W) of one image.
            ids: (B,) ids of the images, on the device to use: the same (seed, id) gives the same image.
            seed: The key of the noise.
            callback: Called as callback(steps done, steps in all).
        """
        check_ids(ids, "sample")
        key = random.derive(check_seed(seed, "sample"), "prior")
        nothing = torch.zeros(len(ids), *shape, device=ids.device)
        return self(denoiser, nothing, NOTHING, ids=ids, seed=key, callback=callback)
