"""Noise schedules against diffusers' tables and their own definitions."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from emfast.diffusion import EDMSchedule, VPSchedule


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(VPSchedule.linear(), "linear"), (VPSchedule.cosine(), "squaredcos_cap_v2")],
)
def test_tables_are_those_of_diffusers(ours, theirs):
    scheduler = DDPMScheduler(beta_schedule=theirs)
    torch.testing.assert_close(ours.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=2e-5, atol=1e-9)
    adopted = VPSchedule.from_diffusers(DDIMScheduler(beta_schedule=theirs))
    t = torch.arange(1000)
    torch.testing.assert_close(adopted.alpha(t) ** 2, scheduler.alphas_cumprod.double(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(adopted.alpha(t) ** 2 + adopted.sigma(t) ** 2, torch.ones(1000, dtype=torch.float64))


@pytest.mark.parametrize("schedule", [VPSchedule.linear(), VPSchedule.cosine(), EDMSchedule()])
def test_time_of_inverts_the_noise_level(schedule):
    for ratio in (0.02, 0.2, 1.0, 10.0):
        t = torch.tensor(schedule.time_of(ratio), dtype=torch.float64)
        assert float(schedule.sigma(t) / schedule.alpha(t)) == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("schedule", [VPSchedule.linear(), VPSchedule.cosine(), EDMSchedule()])
@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_times_decrease(schedule, steps):
    times = schedule.times(steps)
    assert times.shape == (steps,)
    assert (times[1:] < times[:-1]).all()


def test_training_times():
    u = torch.rand(10000)
    t = VPSchedule.linear().training_times(u)
    assert t.min() == 0
    assert t.max() == 999
    sigma = EDMSchedule().training_times(u)
    assert float(sigma.log().mean()) == pytest.approx(-1.2, abs=0.1)


def test_zero_terminal_snr_has_finite_values():
    schedule = VPSchedule.from_diffusers(DDPMScheduler(rescale_betas_zero_snr=True))
    assert schedule.alpha(torch.tensor([999])).isfinite().all()


def test_sentences():
    with pytest.raises(ValueError, match="alphas_cumprod to decrease"):
        VPSchedule(torch.tensor([0.1, 0.5]))
    with pytest.raises(TypeError, match="scheduler to have alphas_cumprod"):
        VPSchedule.from_diffusers(object())
    with pytest.raises(ValueError, match=r"steps to be in 1 \.\.\. 1000"):
        VPSchedule.linear().times(1001)
    with pytest.raises(ValueError, match="the noise levels of the schedule"):
        VPSchedule.linear().time_of(1e-9)
