"""How good a model is on observations that it was not trained on, measured without the truth.

Each observation is taken apart into two whose noise is independent. Posterior samples are drawn of the one and compared
with the other: with pixels that were hidden from them, where the operator is a mask; else with the same measurement
under noise of its own. What the noise adds to that error on average is known, and subtracted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from emfast import random
from emfast._check import check
from emfast.diffusion import Denoiser
from emfast.em.observations import Observations
from emfast.em.observing_operator import shows_pixels
from emfast.operators import Given, Mask, Operator
from emfast.samplers import Sampler, default_sampler

DRAWS = 4  # posterior samples of each half
MEASURED = 32  # halves at least: fewer observations are taken apart in several ways
HIDDEN = 0.1  # of the observed pixels
TAU = 0.5  # share of the noise that is added to the one half; the other gets its inverse
NAMES = ("held_out_psnr", "held_out_variance")


class Halves(NamedTuple):
    """Observations taken apart: what is sampled, and what the samples are compared with; of all shapes (B, ...)."""

    y: Tensor  # of it and the next three samples are drawn
    operator: Operator
    sigma: float
    ids: Tensor  # (B,)
    other: Tensor  # what A x of the samples is compared with
    weight: Tensor  # 1 where it is, else 0
    energy: float  # what noise alone adds to the squared error, summed
    numbers: float  # how many that are compared


def check_held_out(observations: Observations, sigma: float) -> None:
    """Raises a ValueError if there is no taking the observations apart.

    Arguments:
        observations: The observations.
        sigma: Their noise level, or where its estimate begins.
    """
    operator = observations.operator
    good = not operator.is_simulated and (sigma > 0 or _masks(observations, torch.arange(1)) is not None)
    fix = "Set it to 0"
    check(good, "train", "data.held_out", "to be of a mask, or of noise that sigma tells", "neither", fix)


def measure_held_out(
    denoiser: Denoiser,
    observations: Observations,
    ids: Tensor,
    *,
    batch_size: int = 64,
    seed: int = 0,
    sampler: Sampler | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> dict[str, float | None]:
    r"""Returns the PSNR of a posterior sample, and the variance of samples over the one that their error asks for.

    Both are of A x, where the samples are compared: of pixels that are hidden from them if the operator is a mask,
    else of the whole measurement, under a noise of :math:`\sigma \sqrt{1 + \tau^2}`, 1.12 times what it has; there both
    rest on sigma. The variance is 1 for samples of the exact posterior and smaller for a model that is too sure: the
    mean of K samples misses the truth by 1 + 1 / K of their variance.

    .. math:: y_1 = y + \tau \sigma w, \quad y_2 = y - \sigma w / \tau, \quad
        E |A x - y_2|^2 = E |A x - A x^\ast|^2 + \sigma^2 (1 + 1 / \tau^2)

    Arguments:
        denoiser: The prior, on the device to use.
        observations: The observations; nothing is known of the truth.
        ids: (N,) those to measure, on which the model was not trained.
        batch_size: Observations sampled together.
        seed: The key of what is hidden or added, and of the samples.
        sampler: The posterior sampler; by default the one for the operator. One that is made for PSNR, whose samples
            vary too little, tells nothing of the model's variance.
        callback: Called as callback(batches sampled, in all).
    Returns:
        `held_out_psnr` in dB and `held_out_variance`; None where the noise drowns the error.
    References:
        | Unbiased Risk Estimation in the Normal Means Problem via Coupled Bootstrap Techniques (Oliveira et al., 2021),
          arXiv 2111.09447
    """
    sampler, device = sampler or usual_sampler(observations), next(denoiser.parameters()).device
    parts, splits = torch.arange(len(ids)).split(batch_size), splits_of(len(ids))
    one = mean = variance = numbers = 0.0
    steps = itertools.count(1)
    for split in range(splits):
        key = seed if split == 0 else random.derive(seed, "split", split)
        halves = _hidden(observations, ids, key) or _noised(observations, ids, key)
        for rows in parts:
            y, where = halves.y[rows].to(device), halves.ids[rows].to(device)
            parameters = observations.operator.parameters(ids[rows].to(device), observations.observed)
            draws = []
            for k in range(DRAWS):
                draw = random.derive(key, "held out", k)
                x = sampler(denoiser, y, halves.operator, sigma=halves.sigma, ids=where, seed=draw)
                draws.append(observations.operator.apply(x, parameters).double().cpu())
                if callback is not None:
                    callback(next(steps), splits * len(parts) * DRAWS)
            a, other, weight = torch.stack(draws), halves.other[rows], halves.weight[rows]
            one += float(((a - other).square() * weight).mean(0).sum())
            mean += float(((a.mean(0) - other).square() * weight).sum())
            variance += float((a.var(0) * weight).sum())
        one, mean, numbers = one - halves.energy, mean - halves.energy, numbers + halves.numbers
    return {
        "held_out_psnr": 10 * math.log10(4 * numbers / one) if one > 0 else None,
        "held_out_variance": (1 + 1 / DRAWS) * variance / mean if mean > 0 else None,
    }


def splits_of(count: int) -> int:
    """Returns how often each observation is taken apart: where they are few chance has a say in what is compared.

    Arguments:
        count: How many observations there are.
    """
    return max(1, -(-MEASURED // max(1, count)))


def usual_sampler(observations: Observations) -> Sampler:
    """Returns the sampler that observations are measured by: the one for their operator.

    Arguments:
        observations: The observations.
    """
    operator = observations.operator
    return default_sampler(type(operator.operator if isinstance(operator, Given) else operator))


def _masks(observations: Observations, ids: Tensor) -> Tensor | None:
    """Returns the masks of the ids, (B, 1, H, W), where they are all that the operator does; else None."""
    return observations.mask(ids) if shows_pixels(observations.operator) else None


def _hidden(observations: Observations, ids: Tensor, seed: int) -> Halves | None:
    """Returns observations of which a tenth of the pixels is hidden and compared; None where there are no masks."""
    masks = _masks(observations, ids)
    if masks is None:
        return None
    y, sigma = observations.read(ids), observations.sigma
    shown = random.uniform(tuple(masks.shape[1:]), ids=ids, seed=random.derive(seed, "hidden")) >= HIDDEN
    weight = (masks * ~shown).double().expand_as(y)
    count = float(weight.sum())
    operator, rows = Given(Mask(), {"mask": masks * shown}), torch.arange(len(ids))
    return Halves(y * shown, operator, sigma, rows, y.double(), weight, sigma**2 * count, count)


def _noised(observations: Observations, ids: Tensor, seed: int) -> Halves:
    """Returns observations with noise added, to be compared with those from which its inverse was subtracted."""
    y, operator, sigma = observations.read(ids), observations.operator, observations.sigma
    parameters = operator.parameters(ids, observations.observed)
    shape = tuple(y.shape[1:])
    z = random.normal(shape, ids=ids, seed=random.derive(seed, "added")).to(y)
    w = sigma * operator.project(operator.noise(z, parameters), parameters)
    # The trace of the projection on what is observed, exact where that is a mask.
    signs = z.sign()
    count = float((signs * operator.project(signs, parameters)).sum(dtype=torch.float64))
    energy = float((w / TAU).double().square().sum()) + sigma**2 * count
    other, weight = (y - w / TAU).double(), torch.ones_like(y, dtype=torch.float64)
    return Halves(y + TAU * w, operator, sigma * math.sqrt(1 + TAU**2), ids, other, weight, energy, count)
