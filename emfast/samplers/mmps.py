"""Moment matching posterior sampling (MMPS)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from emfast.operators.conjugate_gradient import conjugate_gradient
from emfast.samplers.base import Sampler
from emfast.samplers.problem import Problem, clip_values


@dataclass(frozen=True)
class MMPS(Sampler):
    r"""The posterior mean of x_0 under a Gaussian whose covariance is the denoiser's own.

    By Tweedie's second formula the covariance of x_0 given x_t is a Jacobian of the denoiser, so that its products with
    vectors are backward passes that share one forward pass:

    .. math::
        V = \frac{\sigma_t^2}{\alpha_t} \nabla_{x_t}^\top \hat x_0, \quad
        E[x_0 | x_t, y] \approx \hat x_0 + V A^\top (\sigma^2 I + A V A^\top)^{-1} (y - A \hat x_0)

    The system is solved by a few conjugate-gradient iterations, each image with inner products of its own. Where the
    operator knows its singular vectors they are preconditioned by the system with sigma_t^2 / (alpha_t^2 + sigma_t^2) I
    in the place of V, which for a blur is worth many iterations. Exact for a Gaussian prior when the solver converges.

    Arguments:
        steps: The number of steps; each costs a forward and iterations + 1 backward passes.
        iterations: Conjugate-gradient iterations per step.
        sigma_min: The least measurement noise the solver assumes: with none at all the system may be singular.
        order: 2 extrapolates the estimate from the step before, 1 does not.
        clip: Clips the estimates to [-1, 1], the range of images.
        eta: 1 for ancestral steps, 0 for DDIM steps.

    References:
        | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024), arXiv 2405.13712
    """

    steps: int = 20
    iterations: int = 2
    sigma_min: float = 0.01
    order: int = 2
    clip: bool = True
    eta: float = 1.0

    @property
    def evaluations(self) -> int:
        """A forward and iterations + 1 backward passes per step."""
        return (self.iterations + 2) * self.steps

    def estimate(self, problem: Problem, x_t: Tensor, k: Tensor) -> Tensor:
        """Returns the estimate of x_0 given x_t and y."""
        c = problem.coefficients(k, x_t)
        leaf, x_0 = problem.denoise_leaf(x_t, c)

        def covariance(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(x_0, leaf, v, retain_graph=True)
            return c.sigma_t**2 / c.alpha_t * product

        variance = max(problem.sigma, self.sigma_min) ** 2

        def system(u: Tensor) -> Tensor:
            return variance * u + problem.apply(covariance(problem.adjoint(u)))

        def precondition(r: Tensor) -> Tensor:  # the system, were the covariance that of data of unit variance
            return problem.whiten(r, variance * (c.alpha_t**2 + c.sigma_t**2) / c.sigma_t**2)

        u = conjugate_gradient(system, problem.residual(x_0.detach()), self.iterations, precondition)
        return clip_values(x_0.detach() + covariance(problem.adjoint(u)), self.clip)
