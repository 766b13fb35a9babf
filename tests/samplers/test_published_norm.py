"""What the published DPS code's norm over the whole batch does to its results, and ours does not."""

from dataclasses import dataclass

import pytest
import torch
from contracts import Gaussian

from emfast.diffusion import VPSchedule
from emfast.operators import GaussianBlur
from emfast.samplers import DPS, data_misfit

BLUR = GaussianBlur(size=3, std=0.8)


@dataclass(frozen=True)
class Published(DPS):
    """DPS as published: one norm for all images, so that each one's gradient is divided by that of all."""

    def step(self, problem, x_t, previous, k):
        c = problem.coefficients(k, x_t)
        leaf, x_0 = problem.denoise_leaf(x_t, c)
        with torch.enable_grad():
            norm = torch.linalg.norm(problem.residual(x_0))
        (gradient,) = torch.autograd.grad(norm, leaf)
        return problem.update(k, x_t, x_0.detach(), -self.scale * gradient), x_0.detach()


def misfits(sampler, batch):
    """The misfit of the same 16 observations, reconstructed so many at a time."""
    prior, ids = Gaussian(VPSchedule.linear()), torch.arange(16)
    x = torch.randn(16, *Gaussian.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = BLUR.observe(x, 0.1, ids=ids)
    parts = [sampler(prior.denoiser, y[rows], BLUR, sigma=0.1, ids=ids[rows]) for rows in ids.split(batch)]
    return float(data_misfit(torch.cat(parts), y, BLUR, ids).mean())


def test_the_published_norm_weakens_the_guidance_of_a_batch():
    ours, published = (kind(steps=30, scale=0.2, clip=False) for kind in (DPS, Published))
    alone = misfits(published, 1)
    assert misfits(ours, 16) == pytest.approx(alone, rel=1e-6)  # one image at a time they are the same sampler
    together = misfits(published, 16)
    assert together > 2 * alone
    # An image among 16 alike takes a quarter of the step: our scale of 0.05 is the published scale of 0.2.
    assert together == pytest.approx(misfits(DPS(steps=30, scale=0.05, clip=False), 16), rel=0.2)
