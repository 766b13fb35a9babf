"""The denoiser around every kind of network that users bring."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from emfast.diffusion import Denoiser, EDMSchedule, FlowSchedule, VPSchedule

X_0 = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Oracle(nn.Module):
    """A network that knows the answer, in each parametrisation and each style of output."""

    def __init__(self, kind, style="tensor", schedule=None):
        super().__init__()
        self.kind, self.style, self.schedule = kind, style, schedule

    def forward(self, x, time):
        assert time.shape == (len(x),)
        t = time.double().reshape(-1, 1, 1, 1)
        if self.kind == "edm":
            sigma = torch.exp(4 * t)
            norm = (sigma**2 + 0.25).sqrt()
            output = (X_0 - (0.5 / norm) ** 2 * (x * norm)) * norm / (sigma * 0.5)
        else:
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            output = {"eps": NOISE, "x0": X_0, "v": alpha * NOISE - sigma * X_0, "flow": NOISE - X_0}[self.kind]
        if self.style == "learned variance":
            output = torch.cat((output, torch.full_like(output, 7.0)), 1)
        return {"diffusers": SimpleNamespace(sample=output), "tuple": (output,)}.get(self.style, output)


@pytest.mark.parametrize("style", ["tensor", "tuple", "diffusers", "learned variance"])
@pytest.mark.parametrize("schedule", [VPSchedule.linear(), FlowSchedule()])
@pytest.mark.parametrize("kind", ["eps", "v", "x0", "flow", "edm"])
def test_recovers_the_clean_image(kind, style, schedule):
    schedule = EDMSchedule() if kind == "edm" else schedule
    denoiser = Denoiser(Oracle(kind, style, schedule), schedule, kind)
    t = torch.tensor([0.01, 0.5, 3.0, 10.0]) if kind == "edm" else torch.tensor([0, 10, 500, 900])
    shaped = t.reshape(-1, 1, 1, 1)
    x_t = schedule.alpha(shaped) * X_0 + schedule.sigma(shaped) * NOISE
    # t reaches the network in float32; EDM amplifies its rounding by exp
    torch.testing.assert_close(denoiser(x_t, t), X_0, rtol=0, atol=1e-5 if kind == "edm" else 1e-9)
    assert denoiser.loss(X_0, t, NOISE).shape == (4,)
    assert float(denoiser.loss(X_0, t, NOISE).max()) < 1e-9


def test_one_time_for_all_images():
    denoiser = Denoiser(Oracle("eps", schedule=VPSchedule.linear()), VPSchedule.linear())
    for t in (500, 500.0, torch.tensor(500), torch.tensor([500])):
        assert torch.equal(denoiser(X_0, t), denoiser(X_0, torch.full((4,), 500)))


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")])
def test_prediction_of_a_diffusers_scheduler(theirs, ours):
    assert Denoiser(nn.Identity(), DDPMScheduler(prediction_type=theirs)).prediction == ours


def test_loss_is_the_error_of_the_noise():
    class Zero(nn.Module):
        def forward(self, x, time):
            return torch.zeros_like(x)

    loss = Denoiser(Zero(), VPSchedule.linear()).loss(X_0, torch.tensor([3, 4, 5, 6]), NOISE)
    torch.testing.assert_close(loss, NOISE.square().flatten(1).mean(1))


def test_half_precision_network_and_autocast():
    class Probe(nn.Conv2d):
        def forward(self, x, time):
            self.seen = super().forward(x).dtype
            return torch.zeros_like(x)

    x = torch.rand(1, 2, 4, 4)
    for network, dtype in ((Probe(2, 2, 1).bfloat16(), None), (Probe(2, 2, 1), torch.bfloat16)):
        denoiser = Denoiser(network, VPSchedule.linear(), dtype=dtype)
        assert denoiser(x, 5).dtype == torch.float32
        assert network.seen == torch.bfloat16


class Zero(nn.Module):
    """A network that predicts zero."""

    def forward(self, x, time):
        return 0 * x


@pytest.mark.parametrize("sigma_data", [0.25, 1.0])
def test_sigma_data_is_an_argument(sigma_data):
    """The raw network of data N(0, sigma_data^2) is zero: EDM's preconditioning alone is its posterior mean."""
    denoiser = Denoiser(Zero(), EDMSchedule(), "edm", sigma_data=sigma_data)
    sigma = torch.tensor([0.01, 0.5, 3.0, 10.0]).reshape(-1, 1, 1, 1)
    expected = sigma_data**2 / (sigma_data**2 + sigma**2) * X_0
    torch.testing.assert_close(denoiser(X_0, sigma.flatten()), expected)


def test_sentences():
    with pytest.raises(ValueError, match="prediction to be eps, v, x0, flow or edm"):
        Denoiser(nn.Identity(), VPSchedule.linear(), "noise")
    with pytest.raises(ValueError, match=r'got None\. Name it: "edm" for a raw network'):
        Denoiser(nn.Identity(), EDMSchedule())
    with pytest.raises(TypeError, match="schedule to be given"):
        Denoiser(nn.Identity())
    with pytest.raises(ValueError, match="sigma_data to be positive"):
        Denoiser(nn.Identity(), EDMSchedule(), "edm", sigma_data=0.0)
    preconditioned = nn.Identity()
    preconditioned.round_sigma = torch.as_tensor
    assert Denoiser(preconditioned, EDMSchedule()).prediction == "x0"
    with pytest.raises(ValueError, match="preconditioning of its own"):
        Denoiser(preconditioned, EDMSchedule(), "edm")

    class Wrong(nn.Module):
        def forward(self, x, time):
            return x[:, :1]

    with pytest.raises(ValueError, match="output to have 2 channels"):
        Denoiser(Wrong(), VPSchedule.linear())(X_0, 3)
