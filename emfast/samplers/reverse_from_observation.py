"""Denoising without a likelihood gradient: the reverse process started from y."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from emfast._check import check
from emfast.diffusion import Schedule
from emfast.diffusion.schedule import CLEANEST
from emfast.operators.identity import is_identity
from emfast.samplers.base import Sampler
from emfast.samplers.problem import Problem, clip_values


@dataclass(frozen=True)
class ReverseFromObservation(Sampler):
    r"""The reverse process from the time whose noise level is that of the observation; for denoising (A = I).

    A noisy image is a point of the forward process: at the time t* with sigma_t / alpha_t = sigma, the vector alpha_t y
    is distributed as x_t. Running the ancestral sampler from there draws from the posterior of the current prior,
    exactly but for the discretisation, with neither a gradient nor a parameter to tune.

    With eta = 0 it follows the probability flow, which is no posterior sampler: one image for each observation,
    distributed as the prior's where the observations are as the prior says. That is all an E-step needs, and EM gets
    there sooner (`docs/concepts.md`).

    Arguments:
        steps: The number of network evaluations from t* down.
        order: 2 extrapolates the estimate from the step before, 1 does not.
        clip: Clips x0-hat to [-1, 1], the range of images.
        eta: 1 for posterior samples; 0 follows the probability flow, for the E-step.

    References:
        | Stochastic Forward-Backward Deconvolution (Lu et al., 2025), arXiv 2502.05446
    """

    begins_at_noise: ClassVar[bool] = False
    steps: int = 20
    order: int = 2
    clip: bool = True
    eta: float = 1.0

    def times(self, schedule: Schedule, sigma: float) -> Tensor:
        """Returns evenly spaced times from t* (a fraction, the noise levels match exactly) down to `CLEANEST`.

        Or to a fifth of sigma, if that is less: the noise of the last time is no more in the samples, whose variance it
        would miss.
        """
        check(sigma > 0, "ReverseFromObservation", "sigma", "to be > 0: it starts at the noise level of y", sigma)
        end = schedule.times(2)[-1]
        least = float(schedule.sigma(end) / schedule.alpha(end))
        # Noise fainter than the schedule has is taken for the faintest that it has: a network knows no other, and the
        # search for an unknown level may pass there.
        start, last = (schedule.time_of(s) if s > least else float(end) for s in (sigma, min(CLEANEST, sigma / 5)))
        return torch.linspace(start, last, self.steps, dtype=torch.float64)

    def initial(self, problem: Problem) -> Tensor:
        """Returns alpha_t y."""
        kind = type(problem.operator)
        check(is_identity(kind), "ReverseFromObservation", "operator", "to be Identity", kind)
        return problem.table[0, 1].to(problem.y.dtype) * problem.y

    def estimate(self, problem: Problem, x_t: Tensor, k: Tensor) -> Tensor:
        """Returns x0-hat."""
        return clip_values(problem.denoise(x_t, problem.coefficients(k, x_t)), self.clip)
