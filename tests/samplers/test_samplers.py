"""Samplers against the closed form of a Gaussian prior."""

from contextlib import nullcontext

import pytest
import torch
from contracts import Gaussian, check_moments, check_sampler

from emfast.diffusion import Denoiser, EDMSchedule, VPSchedule
from emfast.operators import GaussianBlur, Given, Identity, Mask, Operator
from emfast.samplers import (
    DAPS,
    DPS,
    MMPS,
    DiffPIR,
    PiGDM,
    Prior,
    ReverseFromObservation,
    WarmStart,
    choose_scale,
    data_misfit,
    default_sampler,
)

COUNT = 2000
SCHEDULES = [VPSchedule.linear(), VPSchedule.cosine(), EDMSchedule()]
BLUR = GaussianBlur(size=3, std=0.8)
MASK = Mask(mask=torch.tensor([[1, 0, 1], [0, 1, 1]]))


class Dimmed(Identity):
    """A user's operator that is no identity, though its class inherits from one."""

    def apply(self, x, parameters):
        return 0.5 * x

    adjoint = apply


class Halved(Operator):
    """A user's operator, whose last row of pixels is dead."""

    def apply(self, x, parameters):
        return torch.cat((0.5 * x[..., :1, :], 0 * x[..., 1:, :]), -2)

    def adjoint(self, y, parameters):
        return self.apply(y, parameters)

    def project(self, y, parameters):
        return torch.cat((y[..., :1, :], torch.zeros_like(y[..., 1:, :])), -2)

    def noise(self, z, parameters):
        return self.project(z, parameters)


def observations(operator, sigma):
    """One observation, repeated: every sample is of the same posterior."""
    x = torch.linspace(-1, 1.5, 6, dtype=torch.float64).reshape(1, *Gaussian.shape)
    y = operator.observe(x, sigma)
    return y, y.expand(COUNT, *y.shape[1:])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reverse_from_observation_is_exact(schedule):
    prior, sigma = Gaussian(schedule), 0.5
    y, many = observations(Identity(), sigma)
    x = ReverseFromObservation(steps=100, clip=False)(prior.denoiser, many, Identity(), sigma=sigma)
    check_moments(x, *prior.posterior(y, Identity(), sigma), bias=0.03)


@pytest.mark.parametrize(("sigma", "share"), [(0.02, 0.6), (0.05, 0.9), (0.1, 0.9)])
def test_samples_given_a_faint_noise_vary_as_the_posterior_does(sigma, share):
    """At 0.02 what the schedule begins with, 0.01, is missing."""
    prior, ids = Gaussian(VPSchedule.linear()), torch.arange(COUNT)
    y = (torch.rand(1, *prior.shape) - 0.5).expand(COUNT, *prior.shape)
    x = ReverseFromObservation(clip=False)(prior.denoiser, y, Identity(), sigma=sigma, ids=ids)
    exact = torch.as_tensor(prior.posterior(y[:1], Identity(), sigma)[1]).diagonal().mean()
    assert share < float(x.var(0).mean() / exact) < 1.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_fainter_than_the_schedule_has_is_denoised_too(schedule):
    """A sigma of one grey level of 8 bits is 0.008 in data units, a linear schedule begins at 0.01."""
    prior = Gaussian(schedule)
    y = torch.rand(4, *prior.shape) - 0.5
    x = ReverseFromObservation(clip=False)(prior.denoiser, y, Identity(), sigma=1e-3)
    torch.testing.assert_close(x, y, atol=0.1, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_flow_from_observations_is_exact(schedule):
    """Without fresh noise, observations distributed as the prior's become images distributed as the prior.

    Of a Gaussian of covariance C the flow takes y to mean + sqrt(C / (C + sigma^2)) (y - mean).
    """
    prior, sigma = Gaussian(schedule), 0.5
    y = torch.randn(4, *prior.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler = ReverseFromObservation(steps=200, order=2, eta=0.0, clip=False)
    x = sampler(prior.denoiser, y, Identity(), sigma=sigma)
    values, vectors = prior.spectrum
    root = vectors * (values / (values + sigma**2)).sqrt() @ vectors.T
    expected = prior.mean + (y.flatten(1) - prior.mean) @ root
    torch.testing.assert_close(x.flatten(1), expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("schedule", "steps", "operator", "sigma"),
    [
        (EDMSchedule(), 100, BLUR, 0.3),
        (EDMSchedule(), 100, MASK, 0.1),
        (EDMSchedule(), 100, Identity(), 0.5),
        (VPSchedule.linear(), 400, BLUR, 0.3),  # evenly spaced indices resolve the low noise levels less well
    ],
)
def test_mmps_is_exact(schedule, steps, operator, sigma):
    prior = Gaussian(schedule)
    y, many = observations(operator, sigma)
    x = MMPS(steps=steps, iterations=6, clip=False)(prior.denoiser, many, operator, sigma=sigma)
    check_moments(x, *prior.posterior(y, operator, sigma), bias=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_prior(schedule):
    prior = Gaussian(schedule)
    x = Prior(steps=100, clip=False, eta=1.0).sample(prior.denoiser, Gaussian.shape, ids=torch.arange(COUNT))
    check_moments(x, prior.mean, prior.covariance, bias=0.05)


def test_dps_without_guidance_samples_the_prior():
    prior = Gaussian(VPSchedule.linear())
    _, many = observations(BLUR, 0.3)
    x = DPS(steps=100, scale=0.0, clip=False)(prior.denoiser, many, BLUR, sigma=0.3)
    check_moments(x, prior.mean, prior.covariance, bias=0.05)


def test_dps_bias_is_the_documented_one():
    """DPS is not a posterior sampler: at a scale that fits y as well as the posterior does, its spread is too small.

    The step of the norm's gradient ignores how uncertain x0-hat is, and no scale repairs mean and spread together.
    """
    prior, sigma = Gaussian(VPSchedule.linear()), 0.5
    y, many = observations(BLUR, sigma)
    mean, covariance = prior.posterior(y, BLUR, sigma)
    ratios, distances = [], []
    for scale in (0.1, 0.3, 1.0):
        x = DPS(steps=100, scale=scale, clip=False)(prior.denoiser, many, BLUR, sigma=sigma).flatten(1)
        ratios.append(float(torch.cov(x.T).trace() / covariance.trace()))
        distances.append(float(((x.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()))
    assert all(abs(ratio - 1) > 0.1 or distance > 0.1 for ratio, distance in zip(ratios, distances, strict=True))
    prior_distance = float(((prior.mean - mean) / covariance.diagonal().sqrt()).abs().max())
    assert min(distances) < 0.5 * prior_distance  # it does move towards the posterior


def test_dps_step_size_does_not_depend_on_the_batch(device):
    """The published code takes the norm over the batch: an image's step then shrinks with the images beside it."""
    check_sampler(DPS(steps=20, scale=1.0), Mask(missing=0.5), 0.1, device)


@pytest.mark.parametrize(
    ("sampler", "operator", "sigma"),
    [
        (DPS(steps=12, scale=0.5, eta=0.5, clip=False), BLUR, 0.0),
        (MMPS(steps=10, iterations=2), Mask(missing=0.5), 0.0),
        (PiGDM(steps=10), BLUR, 0.1),
        (DiffPIR(steps=10, zeta=0.5), Mask(missing=0.5), 0.0),
        (DAPS(steps=6, flow=2), BLUR, 0.1),
        (ReverseFromObservation(steps=10), Identity(), 0.4),
        (Prior(steps=10, eta=1.0), Identity(), 0.0),
    ],
)
def test_contract(sampler, operator, sigma, device):
    check_sampler(sampler, operator, sigma, device)


@pytest.mark.parametrize(("operator", "sigma"), [(BLUR, 0.3), (MASK, 0.2)])
def test_pigdm_is_exact_for_the_prior_it_assumes(operator, sigma):
    prior = Gaussian(EDMSchedule())
    prior.mean, prior.covariance = 0 * prior.mean, torch.eye(6, dtype=torch.float64)
    prior.spectrum = torch.linalg.eigh(prior.covariance)
    y, many = observations(operator, sigma)
    x = PiGDM(steps=100, clip=False)(prior.denoiser, many, operator, sigma=sigma)
    check_moments(x, *prior.posterior(y, operator, sigma), bias=0.05)


@pytest.mark.parametrize(
    ("sampler", "ratio"),
    [
        (PiGDM(steps=100, clip=False), 0.89),
        (DiffPIR(steps=100, clip=False), 0.46),  # no posterior sampler: EM with it loses variance
        (DAPS(steps=100, flow=3, clip=False), 1.06),
    ],
)
def test_the_bias_of_the_others_is_the_documented_one(sampler, ratio):
    """They draw near the posterior mean; their variance is this fraction of the posterior's, within 0.1."""
    prior, sigma = Gaussian(EDMSchedule()), 0.3
    y, many = observations(BLUR, sigma)
    mean, covariance = prior.posterior(y, BLUR, sigma)
    x = sampler(prior.denoiser, many, BLUR, sigma=sigma).flatten(1)
    assert float((x.mean(0) - mean).norm()) < 0.3 * float((prior.mean - mean).norm())
    assert float(torch.cov(x.T).trace() / covariance.trace()) == pytest.approx(ratio, abs=0.1)


def test_a_perfect_fit_is_no_nan():
    """Nothing observed of the first: the misfit is zero from the first step, and so is its norm."""
    y, mask = torch.zeros(2, *Gaussian.shape, dtype=torch.float64), torch.zeros(2, *Gaussian.shape)
    mask[1] = 1
    prior = Gaussian(VPSchedule.linear())
    x = DPS(steps=10)(prior.denoiser, y, Mask(mask=mask))
    assert x.isfinite().all()


EVERY = [DPS, MMPS, PiGDM, DiffPIR, DAPS]
PHYSICS = {"Mask": MASK, "Given": Given(Mask(), {"mask": MASK.mask.expand(4, 1, 2, 3)}), "own": Halved()}


@pytest.mark.parametrize("value", [-1.0, 1e30, torch.nan])
@pytest.mark.parametrize("operator", PHYSICS.values(), ids=PHYSICS)
@pytest.mark.parametrize("kind", [*EVERY, "warm"])
def test_unobserved_values_change_nothing(kind, operator, value):
    """What a file has where nothing is recorded is an accident: 0 counts, NaN."""
    prior = Gaussian(VPSchedule.linear())
    x = torch.randn(3, *Gaussian.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler = WarmStart(MMPS(steps=4), x[:2], torch.arange(2), noise=1.0) if kind == "warm" else kind(steps=4)
    y = operator.observe(x, 0.1)
    recorded = operator.apply(torch.ones_like(x), operator.parameters(torch.arange(3), Gaussian.shape)) != 0
    marked = torch.where(recorded, y, value)
    assert not torch.equal(y, marked)
    samples = [sampler(prior.denoiser, part, operator, sigma=0.1, seed=1) for part in (y, marked)]
    assert torch.equal(*samples)
    assert torch.equal(data_misfit(x, y, operator), data_misfit(x, marked, operator))


def test_choose_scale_takes_the_smallest_misfit():
    prior = Gaussian(VPSchedule.linear())
    y = BLUR.observe(torch.randn(8, *Gaussian.shape, dtype=torch.float64), 0.01)
    candidates = [0.0, 0.3, 1e6]
    sampler = DPS(steps=50, clip=False)
    scale, misfits = choose_scale(sampler, prior.denoiser, y, BLUR, candidates=candidates)
    assert scale == 0.3
    assert misfits[1] == min(misfits)
    x = DPS(steps=50, scale=0.3, clip=False)(prior.denoiser, y, BLUR)
    assert misfits[1] == pytest.approx(float(data_misfit(x, y, BLUR).mean()))


def test_sentences():
    denoiser = Gaussian(VPSchedule.linear()).denoiser
    y = torch.zeros(2, *Gaussian.shape)
    with pytest.raises(ValueError, match="sigma to be > 0"):
        ReverseFromObservation()(denoiser, y, Identity())
    with pytest.raises(ValueError, match="operator to be Identity"):
        ReverseFromObservation()(denoiser, y, Mask(missing=0.5), sigma=0.1)
    with pytest.raises(ValueError, match="operator to be Identity, got Dimmed"):
        ReverseFromObservation()(denoiser, y, Dimmed(), sigma=0.1)
    assert isinstance(default_sampler(Dimmed), MMPS)
    with pytest.raises(TypeError, match="operator to be an emfast Operator"):
        DPS(steps=2)(denoiser, y, "mask")
    with pytest.raises(TypeError, match="y to be a floating-point tensor"):
        DPS(steps=2)(denoiser, y.long(), Identity())
    with pytest.raises(ValueError, match="at least one scale"):
        choose_scale(DPS(steps=2), denoiser, y, Identity(), candidates=[])


class Saving(torch.nn.Module):
    """A network whose layers keep their input for the gradient of the weight, if one is wanted."""

    def __init__(self):
        super().__init__()
        self.layer, self.fixed = torch.nn.Linear(4, 4), torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.kept = []

    def forward(self, x, t):
        with torch.autograd.graph.saved_tensors_hooks(lambda kept: self.kept.append(kept.shape) or kept, lambda x: x):
            return self.layer(x) * self.fixed


@pytest.mark.parametrize("fails", [False, True])
def test_sampling_keeps_nothing_for_gradients_of_weights(fails):
    network, y = Saving(), torch.zeros(2, 1, 4, 4)
    wanted = {name: p.requires_grad for name, p in network.named_parameters()}

    def stop(done, steps):
        if fails:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        DPS(steps=2)(Denoiser(network, VPSchedule.linear()), y, Identity(), callback=stop)
    assert network.kept
    assert (8, 4) not in network.kept  # the input of the layer, as a matrix
    assert {name: p.requires_grad for name, p in network.named_parameters()} == wanted


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm2d(1, momentum=0.5)])
def test_a_network_in_training_mode_gives_the_same_samples(layer):
    network = torch.nn.Sequential(layer, torch.nn.Identity()).train()
    network[1].eval()
    denoiser = Denoiser(lambda x, t: 0.3 * network(x), VPSchedule.linear())
    denoiser.inner = network
    y, sampler = torch.randn(3, 1, 4, 4), MMPS(steps=3)
    whole = sampler(denoiser, y, Mask(missing=0.5))
    assert torch.equal(sampler(denoiser, y, Mask(missing=0.5)), whole)
    torch.testing.assert_close(sampler(denoiser, y[:1], Mask(missing=0.5)), whole[:1])
    assert [module.training for module in (denoiser, network, layer, network[1])] == [True, True, True, False]
