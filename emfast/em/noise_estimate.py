"""The noise level of observations of which nobody knows it, by EM itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emfast import random
from emfast.diffusion import Denoiser
from emfast.em.e_step import reconstruct
from emfast.em.observations import Observations
from emfast.samplers import Sampler

STEPS, CLOSE = 8, 0.01  # fixed-point steps at most, and the change of log sigma that ends them
FARTHEST = math.log(5)  # of one step
LEAST = 1e-3  # in data units: below it there is no noise


def estimate_sigma(
    sampler: Sampler,
    denoiser: Denoiser,
    observations: Observations,
    ids: Tensor,
    *,
    batch_size: int,
    seed: int,
) -> float:
    r"""Returns the standard deviation of the measurement noise at which samples of the posterior leave just that.

    The M-step for it: the mean of the squared residual over the posterior, the spread of the samples included. Its
    fixed point is a maximum of the likelihood under the prior that the model is.

    .. math:: \sigma^2 \leftarrow \frac 1 M \sum_i E_{x \sim p(x | y_i, \sigma)} |y_i - A_i x|^2

    EM moves slowly where the prior leaves little to the noise, so that secants of the logarithm take larger steps. All
    samples have the same noise, and depend on sigma smoothly.

    Arguments:
        sampler: The posterior sampler.
        denoiser: The prior, on the device to use.
        observations: The observations; the search begins at their sigma.
        ids: (N,) those to sample.
        batch_size: Observations sampled together.
        seed: The key of the samples.
    """
    places: list[float] = [math.log(max(observations.sigma, LEAST))]
    gains: list[float] = []
    for _ in range(STEPS):
        there = observations.assuming(math.exp(places[-1]))
        square, count = 0.0, 0.0
        for part in ids.split(batch_size):
            found = _residual(reconstruct(sampler, denoiser, there, part, seed=seed), there, part)
            square, count = square + found[0], count + found[1]
        gains.append(0.5 * math.log(max(square / count, LEAST**2)) - places[-1])
        step = _step(places, gains)
        places.append(max(places[-1] + step, math.log(LEAST)))
        if abs(places[-1] - places[-2]) < CLOSE:
            break
    return math.exp(places[-1])


def _residual(x: Tensor, observations: Observations, ids: Tensor) -> tuple[float, float]:
    """Returns the squared residual of samples, summed, and of how many numbers that the noise is in."""
    y, operator = observations.read(ids), observations.operator
    parameters = operator.parameters(ids, tuple(y.shape[1:]))
    square = operator.misfit(x, y, parameters)[1].double().sum()
    # The trace of the projection on what is observed, exact where that is a mask.
    signs = random.normal(tuple(y.shape[1:]), ids=ids, seed=0).sign().to(y)
    return float(square), float((signs * operator.project(signs, parameters)).sum(dtype=torch.float64))


def _step(places: list[float], gains: list[float]) -> float:
    """Returns the step from the last place towards that of no gain: EM's at first, then the secant's."""
    gain = step = gains[-1]
    if len(gains) > 1 and places[-1] != places[-2]:
        slope = (gains[-1] - gains[-2]) / (places[-1] - places[-2])
        if slope < 0:  # EM's own step is that of a slope of -1, and never too far
            step = -gain / max(-1.0, min(slope, -0.1))
    step = max(-FARTHEST, min(step, FARTHEST))
    if abs(step) < CLOSE:
        return step
    below = [p for p, g in zip(places, gains, strict=True) if g > 0]
    above = [p for p, g in zip(places, gains, strict=True) if g <= 0]
    if below and above:  # stays between the places of different sign
        low, high = max(below), min(above)
        if low < high and not low < places[-1] + step < high:
            step = 0.5 * (low + high) - places[-1]
    return step
