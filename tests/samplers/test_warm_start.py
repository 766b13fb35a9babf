"""Warm starts: the posterior again, in fewer steps, whatever the batch."""

import pytest
import torch
from contracts import Gaussian, check_moments

from emfast.diffusion import Denoiser, EDMSchedule, VPSchedule
from emfast.operators import GaussianBlur, Mask
from emfast.samplers import MMPS, ReverseFromObservation, WarmStart

COUNT = 2000


def test_from_samples_of_the_posterior_it_samples_the_posterior():
    prior, operator, sigma = Gaussian(EDMSchedule()), GaussianBlur(size=3, std=0.8), 0.3
    y = operator.observe(torch.linspace(-1, 1.5, 6, dtype=torch.float64).reshape(1, *Gaussian.shape), sigma)
    mean, covariance = prior.posterior(y, operator, sigma)
    many = y.expand(COUNT, *y.shape[1:])
    sampler = MMPS(steps=100, iterations=6, clip=False)
    before = sampler(prior.denoiser, many, operator, sigma=sigma, seed=1)
    warm = WarmStart(sampler, before, torch.arange(COUNT), noise=1.0)
    x = warm(prior.denoiser, many, operator, sigma=sigma, seed=2)
    check_moments(x, mean, covariance, bias=0.05)
    assert warm.evaluations_when_warm(prior.denoiser.schedule, sigma) < 0.7 * warm.evaluations
    assert not torch.allclose(x, before)


def test_samples_do_not_depend_on_the_batch():
    prior, operator = Gaussian(VPSchedule.linear()), Mask(missing=0.5)
    ids = torch.tensor([7, 3, 0, 12])
    y = operator.observe(torch.randn(4, *Gaussian.shape, dtype=torch.float64), ids=ids)
    earlier = torch.randn(3, *Gaussian.shape, dtype=torch.float64)
    sampler = MMPS(steps=10)
    warm = WarmStart(sampler, earlier, torch.tensor([12, 5, 3]), noise=0.7)
    assert warm.known(ids).tolist() == [False, True, False, True]
    calls = []
    whole = warm(prior.denoiser, y, operator, ids=ids, callback=lambda *c: calls.append(c))
    assert calls == [(k + 1, len(calls)) for k in range(len(calls))]
    for rows in ([0], [1, 2], [3, 0, 1]):
        part = warm(prior.denoiser, y[rows], operator, ids=ids[rows])
        torch.testing.assert_close(part, whole[rows], rtol=1e-9, atol=1e-9)
    cold = sampler(prior.denoiser, y, operator, ids=ids)
    torch.testing.assert_close(whole[[0, 2]], cold[[0, 2]], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(whole[[1, 3]], cold[[1, 3]])


def test_every_part_of_a_batch_has_its_own_labels():
    def network(x, t, labels):
        return 0.1 * labels.reshape(-1, 1, 1, 1) * (1 + 0 * x)

    y, ids = torch.zeros(4, 1, 4, 4), torch.arange(4)
    labels = torch.tensor([1, 2, 3, 4])
    denoiser = Denoiser(network, VPSchedule.linear(), "x0", labels=labels)
    for known in ([0, 2], [0, 1, 2, 3], []):
        warm = WarmStart(MMPS(steps=3), torch.zeros(len(known), 1, 4, 4), torch.tensor(known, dtype=torch.int64), 0.5)
        x = warm(denoiser, y, Mask(mask=torch.eye(4)), ids=ids, sigma=1e3)
        torch.testing.assert_close(x[:, 0, 0, 1], 0.1 * labels)
    with pytest.raises(ValueError, match="labels to be one for each of 3 images"):
        warm(denoiser, y[:3], Mask(missing=0.5))


def test_earlier_images_of_another_shape():
    warm = WarmStart(MMPS(steps=3), torch.zeros(2, 3, 4, 4), torch.arange(2), 0.5)
    denoiser = Denoiser(lambda x, t: x, VPSchedule.linear())
    with pytest.raises(ValueError, match=r"WarmStart: expected images to have shape \(1, 4, 4\), .* got \(3, 4, 4\)"):
        warm(denoiser, torch.zeros(2, 1, 4, 4), Mask(missing=0.5))


def test_sentences():
    with pytest.raises(ValueError, match="noise to be > 0"):
        WarmStart(MMPS(), torch.zeros(1, *Gaussian.shape), torch.tensor([0]), noise=0.0)
    with pytest.raises(ValueError, match="sampler to begin at pure noise"):
        WarmStart(ReverseFromObservation(), torch.zeros(1, *Gaussian.shape), torch.tensor([0]), noise=1.0)
    with pytest.raises(ValueError, match="ids to have shape"):
        WarmStart(MMPS(), torch.zeros(1, *Gaussian.shape), torch.tensor([0, 1]), noise=1.0)
