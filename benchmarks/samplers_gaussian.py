"""The spread of a sampler's samples against the exact posterior of a Gaussian prior."""

from dataclasses import replace

import torch

from emfast.diffusion import Denoiser, VPSchedule
from emfast.operators import Mask

FLOOR = 1e-3  # added to the variances: pixels that are black in every image have none
COUNT = 64


class Affine(torch.nn.Module):
    """The posterior mean of x_0 given x_t under a Gaussian, an affine map at every time."""

    def __init__(self, mean, values, basis, schedule):
        super().__init__()
        self.mean, self.values, self.basis, self.schedule = mean, values, basis, schedule

    def forward(self, x, time):
        alpha, sigma = self.schedule.alpha(time[:1]).to(x), self.schedule.sigma(time[:1]).to(x)
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        centred = (x.flatten(1) - alpha * self.mean) @ self.basis
        return (self.mean + (gain * centred) @ self.basis.T).reshape(x.shape)


def variance_ratio(sampler, images, operator, sigma):
    """Returns the total variance of samples given one observation, over that of the exact posterior.

    Arguments:
        sampler: The sampler; its clipping is switched off, as a Gaussian has no range.
        images: (N, C, H, W) what the Gaussian has its mean and covariance of.
        operator: The operator.
        sigma: The noise of the observation; at least the 0.01 that samplers assume.
    """
    sigma = max(sigma, 0.01)
    flat = images.flatten(1).double()
    mean = flat.mean(0)
    covariance = torch.cov(flat.T) + FLOOR * torch.eye(len(mean), dtype=torch.float64, device=flat.device)
    values, basis = torch.linalg.eigh(covariance)
    schedule = VPSchedule.linear()
    network = Affine(mean.float(), values.float(), basis.float(), schedule)
    shape = tuple(images.shape[1:])
    if isinstance(operator, Mask):  # one observation, drawn again and again
        operator = Mask(mask=operator.parameters(torch.zeros(1, dtype=torch.int64), shape)["mask"][0])
    z = torch.randn(len(mean), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(flat)
    truth = (mean + basis @ (values.sqrt() * z)).reshape(1, *shape).float()
    y = operator.observe(truth, sigma)
    denoiser, y = Denoiser(network, schedule, "x0"), y.expand(COUNT, *y.shape[1:])
    samples = replace(sampler, clip=False)(denoiser, y, operator, sigma=sigma)
    return float(samples.flatten(1).double().var(0).sum() / posterior_variance(covariance, operator, shape, sigma))


def posterior_variance(covariance, operator, shape, sigma):
    """Returns the trace of the posterior covariance."""
    identity = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    parameters = operator.parameters(torch.zeros(1, dtype=torch.int64, device=covariance.device), shape)
    matrix = operator.apply(identity.reshape(-1, *shape), parameters).flatten(1).T  # (values of y, pixels)
    total = matrix @ covariance @ matrix.T
    total += sigma**2 * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    gain = torch.linalg.solve(total, matrix @ covariance).T
    return (covariance - gain @ matrix @ covariance).trace()
