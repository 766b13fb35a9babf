"""Plug-and-play restoration with a diffusion denoiser (DiffPIR)."""

from dataclasses import dataclass

from torch import Tensor

from emfast.samplers.base import Sampler
from emfast.samplers.problem import Problem, clip_values


@dataclass(frozen=True)
class DiffPIR(Sampler):
    r"""Denoise, step to the data, add noise again: no backward pass through the network.

    .. math::
        \tilde x_0 = \arg\min_x \|y - A x\|^2 + \rho_t \|x - \hat x_0\|^2, \quad
        \rho_t = \lambda \sigma^2 \alpha_t^2 / \sigma_t^2

        x_s = \alpha_s \tilde x_0 + \sigma_s \Big(\sqrt{1 - \zeta} \, \frac{x_t - \alpha_t \tilde x_0}{\sigma_t}
        + \sqrt{\zeta} \, z\Big)

    The data step is the exact minimiser, in closed form where the operator has one. The samples are biased: the
    data step takes x0-hat for certain within the noise level, and with zeta = 1 they have about half the variance
    of the posterior (measured on a Gaussian prior), which EM would inherit.

    Arguments:
        steps: The number of steps; each costs a forward pass.
        weight: The weight lambda of the prior in the data step.
        zeta: The share of fresh noise.
        iterations: Conjugate-gradient iterations where the operator has no closed form.
        sigma_min: The least measurement noise the data step assumes.
        clip: Clips the estimates to [-1, 1], the range of images.

    References:
        | Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023), arXiv 2305.08995
    """

    steps: int = 100
    weight: float = 1.0
    zeta: float = 1.0
    iterations: int = 10
    sigma_min: float = 0.01
    clip: bool = True

    def estimate(self, problem: Problem, x_t: Tensor, k: Tensor) -> Tensor:
        """Returns the estimate of x_0 given x_t and y."""
        c = problem.coefficients(k, x_t)
        x_0 = clip_values(problem.denoise(x_t, c), self.clip)
        rho = self.weight * max(problem.sigma, self.sigma_min) ** 2 * (c.alpha_t / c.sigma_t) ** 2
        x_0 = x_0 + problem.regularised_inverse(problem.residual(x_0), rho, self.iterations)
        return clip_values(x_0, self.clip)
