"""How em.py measures a model, whatever made it.

PSNR and SSIM are those of one sampler a task from pure noise, on the first observations, and FD is that of samples of
the model. New images, those that FD compares with, show how much of it is learned and how much remembered: their PSNR,
and of four posterior samples each the coverage (0.6 if they were exact) and the variance over the one that the error of
their mean asks for (1).
"""

from tempfile import TemporaryDirectory
from typing import Any

import torch
from rivals import Point

from emfast import random
from emfast.em import Observations
from emfast.em.e_step import reconstruct
from emfast.em.evaluation import Evaluator
from emfast.em.inputs import Inputs
from emfast.em.state import RunFolder
from emfast.evaluation import coverage, psnr, ssim
from emfast.samplers import MMPS, ReverseFromObservation, Sampler

# What measures the models of a task, whatever made them.
MEASURING: dict[str, Sampler] = {
    "mask-60": MMPS(steps=10, iterations=1, order=1),
    "mask-85": MMPS(steps=10, iterations=1, order=1),
    "noise": ReverseFromObservation(steps=20),
    "blur": MMPS(steps=14, iterations=1, order=1),
    "rgb-tiny": MMPS(steps=10, iterations=1, order=1),
    "rgb": MMPS(steps=10, iterations=1, order=1),
}
SPREADING = MMPS(steps=20, iterations=2)  # of second order: it keeps the posterior's variance, which those do not
MEASURED = 256  # observations
SPREAD, DRAWS = 64, 4  # new images whose posterior is looked at, and its samples


def measure(point: Point, task: str, run_seed: int, inputs: Inputs, evaluator: Evaluator) -> dict[str, Any]:
    """Returns the quality of a model."""
    sampler = MEASURING[task.removesuffix("-unaided")]
    spreading = SPREADING if isinstance(sampler, MMPS) else sampler
    old, new = inputs.observations, unseen(inputs)

    def drawn(sampler: Sampler, observations: Observations, count: int, *name: str | int) -> torch.Tensor:
        seed, ids = random.derive(run_seed, *name), torch.arange(min(count, len(observations)))
        return torch.cat([reconstruct(sampler, point.denoiser, observations, i, seed=seed) for i in ids.split(64)])

    x, again = (drawn(sampler, observations, MEASURED, "measure") for observations in (old, new))
    samples = torch.stack([drawn(spreading, new, SPREAD, "spread", draw) for draw in range(DRAWS)])
    clean, clean_new = truth(old, len(x)), truth(new, len(again))
    few = clean_new[: samples.shape[1]]
    with TemporaryDirectory() as folder:
        fd = evaluator.samples(point.denoiser, RunFolder(folder), 0, run_seed, lambda *_: None)[1]["fd"]
    own = None if point.own is None else float(psnr(point.own[: len(x)], clean).mean())
    return {
        "psnr": float(psnr(x, clean).mean()),
        "psnr_own": own,
        "ssim": float(ssim(x, clean).mean()),
        "fd": fd,
        "psnr_new": float(psnr(again, clean_new).mean()),
        "coverage": coverage(few, samples),
        "variance": variance(few, samples),
    }


def unseen(inputs: Inputs) -> Observations:
    """Returns observations of images that nothing was trained on, by the same operator."""
    if inputs.reference is None:
        raise ValueError("benchmarks/em_measure.py: expected data.reference to be given, got none.")
    old, images = inputs.observations, inputs.reference.subset(slice(MEASURED))
    return Observations(old.operator, sigma=old.sigma, images=images, seed=random.derive(old.seed, "new"))


def variance(truth: torch.Tensor, samples: torch.Tensor) -> float:
    """Returns the variance of K posterior samples (K, B, ...) over the one that the error of their mean asks for.

    The mean of K samples of the exact posterior misses the truth by 1 + 1 / K of their variance, on average.
    """
    error = (samples.mean(0) - truth).square().mean()
    return float((1 + 1 / len(samples)) * samples.var(0).mean() / error)


def truth(observations: Observations, count: int) -> torch.Tensor:
    """Returns the images behind the first observations."""
    images = observations.truth(torch.arange(count))
    if images is None:
        raise ValueError("benchmarks/em_measure.py: expected simulated observations, got none of known truth.")
    return images
