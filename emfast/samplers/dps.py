"""Diffusion posterior sampling (DPS)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from emfast.diffusion import Schedule
from emfast.samplers.base import Sampler
from emfast.samplers.problem import Problem, clip_values


@dataclass(frozen=True)
class DPS(Sampler):
    r"""Ancestral steps, each followed by a step down the gradient of the data misfit of x0-hat.

    .. math:: x_s = c_x x_t + c_0 \hat x_0 + \mathrm{std} \, z - \zeta \, \nabla_{x_t} \| y - A \hat x_0(x_t) \|_2

    The norm is that of each image on its own: the published code takes it over the batch, so that its step size depends
    on the batch size. The samples are biased: even for a Gaussian prior no scale gives the posterior.

    Arguments:
        steps: The number of network evaluations; the paper's 1000, or fewer, evenly spaced.
        scale: The step size zeta. `choose_scale` finds it by the data misfit.
        clip: Clips x0-hat to [-1, 1], the range of images.
        eta: 1 for the paper's ancestral steps, 0 for DDIM steps.

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2022), arXiv 2209.14687
    """

    steps: int = 1000
    scale: float = 1.0
    clip: bool = True
    eta: float = 1.0

    @property
    def evaluations(self) -> int:
        """One forward and one backward per step."""
        return 2 * self.steps

    def times(self, schedule: Schedule, sigma: float) -> Tensor:
        """Returns evenly spaced times, as the paper has them."""
        return schedule.times(self.steps)

    def step(self, problem: Problem, x_t: Tensor, previous: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x_s and x0-hat."""
        c = problem.coefficients(k, x_t)
        leaf, x_0 = problem.denoise_leaf(x_t, c)
        with torch.enable_grad():
            x_0 = clip_values(x_0, self.clip)
        _, square, adjoint = problem.misfit(x_0.detach())
        norm = square.sqrt().clamp_min(torch.finfo(square.dtype).tiny).reshape(-1, 1, 1, 1)
        cotangent = (self.scale * adjoint / norm).to(x_t.dtype)
        (descent,) = torch.autograd.grad(x_0, leaf, cotangent)  # minus the gradient of the norm
        return problem.update(k, x_t, x_0.detach(), descent), x_0.detach()
