"""The step size of a sampler, chosen by the data misfit."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from emfast._check import check
from emfast.diffusion import Denoiser
from emfast.operators import Operator, as_operator
from emfast.operators.base import default_ids
from emfast.operators.linear import Function
from emfast.samplers.base import Callback
from emfast.samplers.dps import DPS


def data_misfit(x: Tensor, y: Tensor, operator: Operator | Function, ids: Tensor | None = None) -> Tensor:
    """Returns ||y - A x||^2 per observed value of each image, (B,): the mean over the values of y.

    Arguments:
        x: (B, C, H, W) images.
        y: (B, ...) observations; what they hold outside the range of the operator is not counted.
        operator: The operator that made them.
        ids: (B,) their ids; 0 ... B-1 by default.
    """
    operator = as_operator(operator, y, "data_misfit")
    parameters = operator.parameters(default_ids(y, ids), tuple(y.shape[1:]))
    return (operator.project(y, parameters) - operator.apply(x, parameters)).square().flatten(1).mean(1)


def choose_scale(
    sampler: DPS,
    denoiser: Denoiser,
    y: Tensor,
    operator: Operator | Function,
    *,
    candidates: Sequence[float],
    ids: Tensor | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> tuple[float, list[float]]:
    """Returns the scale whose samples fit the observations best, and the mean misfit of every candidate.

    The paper's rule: a small subset of the observations is reconstructed with every candidate, the smallest
    ||y - A x||^2 wins. A candidate that diverges has an infinite misfit.

    Arguments:
        sampler: A sampler with a `scale`.
        denoiser: The prior.
        y: (B, ...) a subset of the observations.
        operator: The operator that made them.
        candidates: The scales to try, in order; the first wins a tie.
        ids: (B,) their ids; 0 ... B-1 by default.
        seed: The key of the sampler's noise.
        callback: Called as callback(steps done, steps in all).

    References:
        | An Expectation-Maximization Algorithm for Training Clean Diffusion Models from Corrupted Observations
        | (Bai et al., 2024), arXiv 2407.01014
    """
    check(len(candidates) > 0, "choose_scale", "candidates", "to hold at least one scale", list(candidates))
    misfits: list[float] = []

    def progress(done: int, steps: int) -> None:
        if callback is not None:
            callback(len(misfits) * steps + done, len(candidates) * steps)

    for scale in candidates:
        x = replace(sampler, scale=scale)(denoiser, y, operator, ids=ids, seed=seed, callback=progress)
        misfit = data_misfit(x, y, operator, ids).mean()
        misfits.append(float(torch.nan_to_num(misfit, nan=torch.inf, posinf=torch.inf)))
    best = min(range(len(candidates)), key=misfits.__getitem__)
    return float(candidates[best]), misfits
