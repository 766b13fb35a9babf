"""Pseudoinverse-guided diffusion (PiGDM)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from emfast.samplers.base import Sampler
from emfast.samplers.problem import Problem, clip_values


@dataclass(frozen=True)
class PiGDM(Sampler):
    r"""The posterior mean of x_0 under a Gaussian of one variance, which is that of data of unit variance.

    .. math::
        r_t^2 = \frac{\sigma_t^2}{\alpha_t^2 + \sigma_t^2}, \quad
        E[x_0 | x_t, y] \approx \hat x_0 + \frac{\sigma_t^2}{\alpha_t} \nabla_{x_t}^\top \hat x_0 \,
        A^\top (r_t^2 A A^\top + \sigma^2 I)^{-1} (y - A \hat x_0)

    Exact for the prior N(0, I), which is what the variance assumes.

    Arguments:
        steps: The number of steps; each costs a forward and a backward pass.
        iterations: Conjugate-gradient iterations where the operator has no closed form.
        sigma_min: The least measurement noise the solver assumes: with none at all the system may be singular.
        clip: Clips the estimates to [-1, 1], the range of images.
        eta: 1 for ancestral steps, 0 for DDIM steps.

    References:
        | Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023)
    """

    steps: int = 100
    iterations: int = 10
    sigma_min: float = 0.01
    clip: bool = True
    eta: float = 1.0

    @property
    def evaluations(self) -> int:
        """One forward and one backward per step."""
        return 2 * self.steps

    def estimate(self, problem: Problem, x_t: Tensor, k: Tensor) -> Tensor:
        """Returns the estimate of x_0 given x_t and y."""
        c = problem.coefficients(k, x_t)
        leaf, x_0 = problem.denoise_leaf(x_t, c)
        variance = c.sigma_t**2 / (c.alpha_t**2 + c.sigma_t**2)
        weight = max(problem.sigma, self.sigma_min) ** 2 / variance
        cotangent = problem.regularised_inverse(problem.residual(x_0.detach()), weight, self.iterations) / variance
        (guidance,) = torch.autograd.grad(x_0, leaf, cotangent)
        return clip_values(x_0.detach() + c.sigma_t**2 / c.alpha_t * guidance, self.clip)
