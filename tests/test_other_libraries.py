"""Denoisers with the call signatures of azula and deepinv, and a diffusers pipeline, by the wrappers of the example."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from contracts import check_moments
from torch import nn

from emfast.em import load_model
from emfast.operators import Identity
from emfast.samplers import MMPS, ReverseFromObservation

PATH = Path(__file__).parent.parent / "examples" / "other_libraries.py"
VARIANCE = 0.3  # of the prior, an isotropic Gaussian of mean 0 in [-1, 1]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("other_libraries", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class AzulaDenoiser(nn.Module):
    """azula: denoiser(x_t, t), t of shape () or (B), returns an object with the posterior mean; schedule(t)."""

    @staticmethod
    def schedule(t):
        alpha = torch.exp(t**2 * torch.log(torch.tensor(1e-3)))
        return alpha, torch.sqrt(1 - alpha**2 + 1e-6)

    def forward(self, x_t, t, **kwargs):
        alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in self.schedule(t))
        return SimpleNamespace(mean=alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x_t)


class DeepinvDenoiser(nn.Module):
    """deepinv: denoiser(x, sigma) of images in [0, 1], sigma a number or of shape (B,), returns a tensor."""

    def forward(self, x, sigma, *args, **kwargs):
        sigma = torch.as_tensor(sigma).reshape(-1, 1, 1, 1)
        return 0.5 + VARIANCE / 4 / (VARIANCE / 4 + sigma**2) * (x - 0.5)


@pytest.fixture(params=["azula", "deepinv"])
def denoiser(request, example):
    return example.from_azula(AzulaDenoiser()) if request.param == "azula" else example.from_deepinv(DeepinvDenoiser())


@pytest.mark.parametrize("training", [False, True])
def test_estimate(denoiser, training):
    denoiser.train(training)
    t = torch.tensor([0.1, 0.5, 0.9]) if training else torch.tensor(0.4)
    x_t = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    alpha, sigma = denoiser.levels(t, x_t)
    torch.testing.assert_close(denoiser(x_t, t), alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x_t)


def test_times(denoiser):
    schedule = denoiser.schedule
    times = schedule.times(50)
    assert len(times) == 50
    assert (times.diff() < 0).all()
    t = torch.tensor(schedule.time_of(0.7), dtype=torch.float64)
    assert abs(float(schedule.sigma(t) / schedule.alpha(t)) - 0.7) < 1e-2


@pytest.mark.parametrize("sampler", [MMPS(steps=200, iterations=1, clip=False), ReverseFromObservation(steps=100)])
def test_posterior_in_closed_form(denoiser, sampler):
    y = torch.tensor([[0.4, -0.2], [0.0, 0.3]]).expand(4000, 1, 2, 2)
    samples = sampler(denoiser, y, Identity(), sigma=0.5)
    gain = VARIANCE / (VARIANCE + 0.25)
    check_moments(samples, gain * y[0].double().flatten(), 0.25 * gain * torch.eye(4, dtype=torch.float64), bias=0.05)


def test_pipeline_folder(example, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2, "norm_num_groups": 4}
    unet = UNet2DModel(8, 1, 1, up_block_types=("UpBlock2D",) * 2, layers_per_block=1, **blocks)
    DDPMPipeline(unet, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path)
    denoiser = example.from_pipeline(DDPMPipeline.from_pretrained(tmp_path))
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert denoiser.prediction == "v"
    assert torch.equal(denoiser(x_t, 500), load_model(tmp_path)[0](x_t, 500))
