"""The sampler of a network that is shown the observation: exact where that network is."""

import torch
from contracts import Gaussian, check_moments, check_sampler

from emfast.diffusion import Denoiser, VPSchedule
from emfast.operators import Identity
from emfast.samplers import Conditional, Prior, WarmStart

SIGMA, COUNT = 0.5, 4000


class Network(torch.nn.Module):
    """The mean given x_t and an observation y = x + n, or given x_t alone, of a Gaussian prior."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, given, time):
        prior, t, device = self.prior, time[:1].double(), given.device
        x, y, shown = (given[:, k].flatten(1) for k in range(3))
        alpha, sigma = prior.denoiser.schedule.alpha(t), prior.denoiser.schedule.sigma(t)
        means = []
        for weight in (0.0, SIGMA**-2):
            inverse, mean = torch.linalg.inv(prior.covariance).to(device), prior.mean.to(device)
            precision = inverse + (alpha**2 / sigma**2 + weight) * torch.eye(6, device=device)
            right = inverse @ mean + alpha / sigma**2 * x + weight * y
            means.append(torch.linalg.solve(precision, right.T).T)
        return torch.where(shown > 0, means[1], means[0]).reshape(len(x), *prior.shape)


def build():
    """The prior, and the conditional denoiser."""
    prior = Gaussian(VPSchedule.linear())
    return prior, Denoiser(Network(prior).double(), prior.denoiser.schedule, "x0", condition=2)


def test_it_samples_the_posterior():
    prior, denoiser = build()
    y = torch.tensor([0.3, -1.0, 0.8, 0.1, 0.0, 1.2], dtype=torch.float64).reshape(1, 1, 2, 3)
    x = Conditional(steps=50, clip=False)(denoiser, y.expand(COUNT, -1, -1, -1), Identity(), sigma=SIGMA)
    check_moments(x, *prior.posterior(y, Identity(), SIGMA), bias=0.05)


def test_without_an_observation_it_is_the_prior():
    prior, denoiser = build()
    ids = torch.arange(5)
    samples = [Prior(clip=False).sample(each, prior.shape, ids=ids) for each in (denoiser, prior.denoiser)]
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)


def test_contract(device):
    check_sampler(Conditional(steps=10), Identity(), SIGMA, device, build()[1].to(device))


def test_it_may_begin_warm():
    _, denoiser = build()
    y = torch.zeros(3, 1, 2, 3, dtype=torch.float64)
    warm = WarmStart(Conditional(steps=10), torch.zeros(2, 1, 2, 3), torch.arange(2), noise=1.0)
    assert warm.evaluations_when_warm(denoiser.schedule, SIGMA) < 10
    assert torch.equal(warm(denoiser, y, Identity())[2:], Conditional(steps=10)(denoiser, y, Identity())[2:])
