"""Operators that can only be simulated, and what a conditional network is shown of observations."""

import pytest
import torch

from emfast import random
from emfast.em import Observations
from emfast.operators import Detector, Given, Identity, Linear, Mask, Operator, PoissonCounts
from emfast.samplers import MMPS, Conditional, default_sampler

X = torch.rand(5, 2, 6, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
IDS = torch.tensor([9, 4, 2**33, 0, 7])
SIMULATED = [PoissonCounts(8.0), PoissonCounts(2.0, dark=0.5), Detector(), Detector(high=0.3, levels=None)]


def distribution(k, mean):
    """P(X <= k) of a Poisson variable."""
    return torch.where(k < 0, 0.0, torch.special.gammaincc(k.clamp_min(0) + 1, mean))


@pytest.mark.parametrize("rate", [0.0, 1e-6, 0.01, 0.3, 1.0, 4.0, 37.5, 900.0, 1e5])
def test_counts_are_the_quantiles_of_their_numbers(rate, monkeypatch):
    ends = torch.arange(1000) * 2.0**-24
    numbers = torch.cat((ends, torch.rand(1000), 1 - 2.0**-24 - ends))[None]
    monkeypatch.setattr(random.Generator, "uniform", lambda self, shape: numbers)
    mean = torch.full((1, 3000), rate, dtype=torch.float64)
    k = random.Generator(torch.arange(1), 0).poisson(mean)
    u = numbers.double() + 2.0**-25
    assert ((distribution(k, mean) >= u) & (distribution(k - 1, mean) < u)).all()


def test_numbers_of_a_generator():
    generator = random.Generator(IDS, 3)
    first, second = generator.normal((4,)), generator.normal((4,))
    assert torch.equal(first, random.normal((4,), ids=IDS, seed=3))
    assert not torch.equal(first, second)
    assert torch.equal(second[2:3], [(g := random.Generator(IDS[2:3], 3)).normal((4,)), g.normal((4,))][1])


def test_moments_of_counts():
    x = torch.linspace(-1, 1, 5).expand(4000, 1, 1, 5)
    y = PoissonCounts(20.0, dark=1.0).observe(x)
    mean = 10.0 * (x[0] + 1) + 1
    assert ((y.mean(0) - mean).abs() < 5 * (mean / 4000) ** 0.5).all()
    assert ((y.var(0) / mean - 1).abs() < 0.15).all()
    image = PoissonCounts(20.0, dark=1.0).as_image(y, {})
    torch.testing.assert_close(image.mean(0), x[0], atol=0.06, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_of_images_of_half_precision(dtype):
    x = torch.full((1, 1, 2, 2), -0.5, dtype=dtype)
    y = PoissonCounts(1e5).observe(x)
    assert y.dtype == dtype
    assert torch.equal(y, PoissonCounts(1e5).observe(x.float()).to(dtype))
    assert y.isfinite().all()


def test_readings_of_a_detector():
    x = torch.tensor([-2.0, -1.0, -0.6, -0.4, 0.1, 0.49, 0.6, 1.0]).reshape(1, 1, 1, 8)
    y = Detector(high=0.5, low=-0.5, levels=3).observe(x)
    assert y.flatten().tolist() == [-0.5, -0.5, -0.5, -0.5, 0.0, 0.5, 0.5, 0.5]
    noisy = Detector(high=0.5, low=-0.5, levels=None).observe(torch.zeros(500, 1, 4, 4), sigma=0.1)
    assert abs(float(noisy.std()) - 0.1) < 0.01


@pytest.mark.parametrize("operator", SIMULATED)
def test_observations_belong_to_their_ids(operator):
    y = operator.observe(X, ids=IDS, seed=1)
    assert y.shape == X.shape
    assert torch.equal(y, torch.cat([operator.observe(X[k : k + 1], ids=IDS[k : k + 1], seed=1) for k in range(5)]))
    assert torch.equal(operator.observe(X[0], ids=IDS[0], seed=1), y[0])
    assert operator.observe(X.double(), ids=IDS).dtype == torch.float64
    assert operator.is_simulated
    assert isinstance(default_sampler(type(operator)), Conditional)
    Observations(operator, y=y)


def test_linear_operators_are_simulated_by_what_they_have():
    for operator in (Identity(), Mask(missing=0.5), Linear(lambda x: x[..., ::2], shape=(2, 6, 7))):
        assert not operator.is_simulated
        parameters = operator.parameters(IDS, (2, 6, 7))
        key = random.derive(5, "observe")
        y = operator.simulate(X, parameters, random.Generator(IDS, key), 0.3)
        assert torch.equal(y, operator.observe(X, 0.3, ids=IDS, seed=5))
    assert isinstance(default_sampler(Operator), MMPS)


def test_what_a_network_is_shown():
    masks = (torch.rand(16, 1, 6, 7) > 0.5).float()
    operator = Given(Mask(), {"mask": masks})
    ids = torch.tensor([3, 0])
    parameters = operator.parameters(ids, (2, 6, 7))
    shown = operator.condition(operator.observe(X[:2], ids=ids), parameters)
    assert torch.equal(shown, torch.cat((masks[ids] * X[:2], masks[ids], torch.ones(2, 1, 6, 7)), 1))
    columns = Linear(lambda x: x[..., ::2], shape=(2, 6, 7))
    assert columns.condition(columns.observe(X), {}).shape == (5, 3, 6, 7)
    counts = PoissonCounts(4.0)
    shown = counts.condition(torch.full((2, 1, 3, 3), 2.0), {"kernel": torch.ones(2, 1, 2, 2)})
    assert torch.equal(shown, torch.cat((torch.zeros(2, 1, 3, 3), torch.ones(2, 1, 3, 3)), 1))


class Own(Operator):
    """Of a user: draws from torch, and not from the generator."""

    observes_images = True

    def simulate(self, x, parameters, generator, sigma=0.0):
        return x + torch.randn_like(x)


class Endless(Own):
    def simulate(self, x, parameters, generator, sigma=0.0):
        return x / 0


class Mixing(Own):
    def simulate(self, x, parameters, generator, sigma=0.0):
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("operator", "sentence"),
    [
        (Own(), "Own: expected an observation to be the same alone and in a batch, got another one. Draw all random"),
        (Endless(), "Endless: expected its observations to be finite"),
        (Mixing(), "Mixing: expected an observation to be the same alone"),
    ],
)
def test_operators_that_simulate_something_else(operator, sentence):
    with pytest.raises(ValueError, match=sentence):
        Observations(operator, y=torch.zeros(4, 2, 6, 7))


def test_what_they_cannot_do_is_said():
    with pytest.raises(NotImplementedError, match=r"PoissonCounts: expected a method apply.*samplers\.Conditional"):
        PoissonCounts().apply(X, {})
    with pytest.raises(ValueError, match="PoissonCounts: expected sigma to be 0"):
        PoissonCounts().observe(X, sigma=0.1)
    with pytest.raises(ValueError, match="PoissonCounts: expected peak to be in"):
        PoissonCounts(peak=0)
    with pytest.raises(ValueError, match="Detector: expected low and high to be finite, low below high"):
        Detector(high=-2)
    with pytest.raises(ValueError, match="Detector: expected levels to be 2 or more"):
        Detector(levels=1)
