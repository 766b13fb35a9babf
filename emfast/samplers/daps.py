"""Decoupled annealing posterior sampling (DAPS)."""

from dataclasses import dataclass

from torch import Tensor

from emfast.random import Stream
from emfast.samplers.base import Sampler
from emfast.samplers.problem import Coefficients, Problem, clip_values


@dataclass(frozen=True)
class DAPS(Sampler):
    r"""At every noise level: estimate the clean image by a short probability flow, sample it given y, add noise anew.

    .. math::
        x_0 \sim p(x_0 | y) \propto \mathcal N(y; A x_0, \sigma^2 I) \, \mathcal N(x_0; \hat x_0(x_t), r_t^2 I),
        \quad r_t = \kappa \, \sigma_t / \alpha_t, \quad x_s = \alpha_s x_0 + \sigma_s z

    No backward pass through the network. The paper samples x_0 by Langevin dynamics; for a linear operator the
    distribution is Gaussian, and is sampled exactly (a sample of the prior term, corrected by the regularised inverse).
    Langevin dynamics as short as the paper's never reach the full width sigma_t / alpha_t, far wider than the
    denoiser's own uncertainty; here kappa says so. The samples are biased, and they vary too much: 1.8 times the
    variance of the posterior for a Gaussian prior, A = I, noise of 0.2 and 250 steps. It is for single restorations
    without gradients of the network; for EM, which learns the spread of its samples, take MMPS or
    ReverseFromObservation.

    Arguments:
        steps: The number of noise levels.
        flow: Network evaluations of the probability flow at each.
        width: The factor kappa of the width r_t.
        iterations: Conjugate-gradient iterations where the operator has no closed form.
        sigma_min: The least measurement noise the solver assumes.
        clip: Clips the estimates to [-1, 1], the range of images.

    References:
        | Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing (Zhang et al., 2024),
        | arXiv 2407.01521
    """

    steps: int = 50
    flow: int = 2
    width: float = 0.5
    iterations: int = 10
    sigma_min: float = 0.01
    clip: bool = True
    zeta = 1.0  # all noise is fresh

    @property
    def evaluations(self) -> int:
        """The forward passes of the flow at every level."""
        return self.flow * self.steps

    def estimate(self, problem: Problem, x_t: Tensor, k: Tensor) -> Tensor:
        """Returns a sample of x_0 given x_t and y."""
        c = problem.coefficients(k, x_t)
        x_0 = self.follow(problem, x_t, c)
        sigma, width = max(problem.sigma, self.sigma_min), self.width * c.sigma_t / c.alpha_t
        x = x_0 + width * problem.noise(Stream.PRIOR, k, x_0)
        z = problem.noise(Stream.MEASUREMENT, k, problem.y)
        residual = problem.residual(x) - sigma * problem.operator.noise(z, problem.parameters)
        return clip_values(x + problem.regularised_inverse(residual, (sigma / width) ** 2, self.iterations), self.clip)

    def follow(self, problem: Problem, x: Tensor, c: Coefficients) -> Tensor:
        """Returns where the probability flow from x at time t ends, in `flow` DDIM steps evenly spaced in time.

        Arguments:
            problem: What a step reads.
            x: (B, C, H, W) images at the time t.
            c: The coefficients of the step, t among them.
        """
        schedule, x_0 = problem.denoiser.schedule, x
        alpha, sigma = c.alpha_t, c.sigma_t
        for j in range(self.flow):
            here, there = c.t * (1 - j / self.flow), c.t * (1 - (j + 1) / self.flow)
            x_0 = clip_values(problem.denoise(x, c._replace(t=here, alpha_t=alpha, sigma_t=sigma)), self.clip)
            next_alpha, next_sigma = schedule.alpha(there).to(x), schedule.sigma(there).to(x)
            x = next_alpha * x_0 + next_sigma / sigma * (x - alpha * x_0)
            alpha, sigma = next_alpha, next_sigma
        return x_0
