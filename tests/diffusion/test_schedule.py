"""Noise schedules against diffusers' tables and their own definitions."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from emfast.diffusion import EDMSchedule, FlowSchedule, VPSchedule
from emfast.diffusion.schedulers import read_scheduler

SCHEDULES = [VPSchedule.linear(), VPSchedule.cosine(), EDMSchedule(), FlowSchedule(), FlowSchedule(1, shift=3.0)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(VPSchedule.linear(), "linear"), (VPSchedule.cosine(), "squaredcos_cap_v2")],
)
def test_tables_are_those_of_diffusers(ours, theirs):
    scheduler = DDPMScheduler(beta_schedule=theirs)
    torch.testing.assert_close(ours.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=2e-5, atol=1e-9)
    adopted = read_scheduler(DDIMScheduler(beta_schedule=theirs)).schedule
    t = torch.arange(1000)
    torch.testing.assert_close(adopted.alpha(t) ** 2, scheduler.alphas_cumprod.double(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(adopted.alpha(t) ** 2 + adopted.sigma(t) ** 2, torch.ones(1000, dtype=torch.float64))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_of_inverts_the_noise_level(schedule):
    for ratio in (0.02, 0.2, 1.0, 10.0):
        t = torch.tensor(schedule.time_of(ratio), dtype=torch.float64)
        assert float(schedule.sigma(t) / schedule.alpha(t)) == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_times_decrease(schedule, steps):
    times = schedule.times(steps)
    assert times.shape == (steps,)
    assert (times[1:] < times[:-1]).all()


@pytest.mark.parametrize("shift", [0.1, 0.3, 0.7, 3.0, 7.7])
def test_a_shift_leaves_the_ends_of_a_flow_where_they_are(shift):
    schedule = FlowSchedule(shift=shift)
    assert float(schedule.times(20)[0]) == pytest.approx(1000)
    assert (schedule.alpha(schedule.times(20)) >= 0).all()
    assert (schedule.times_by_noise(20).diff() < 0).all()


def test_training_times():
    u = torch.rand(10000)
    t = VPSchedule.linear().training_times(u)
    assert t.min() == 0
    assert t.max() == 999
    sigma = EDMSchedule().training_times(u)
    assert float(sigma.log().mean()) == pytest.approx(-1.2, abs=0.1)
    flow = FlowSchedule(shift=3.0)
    assert float(flow.sigma(flow.training_times(u)).median()) == pytest.approx(0.75, abs=0.02)


def test_zero_terminal_snr_has_finite_values():
    schedule = read_scheduler(DDPMScheduler(rescale_betas_zero_snr=True)).schedule
    assert schedule.alpha(torch.tensor([999])).isfinite().all()


@pytest.mark.parametrize(
    "table",
    [
        [1.0, 1.0, 0.9, 0.5, 0.0, 0.0],  # betas below the rounding of float32, and a product that vanishes
        [1 + 6e-8, 0.9, 0.9, 0.5, -1e-9],
        [0.99, 0.99 + 6e-8, 0.5, 1e-9],
    ],
)
def test_a_table_that_ends_in_rounding(table):
    schedule = VPSchedule(torch.tensor(table))
    times = torch.linspace(len(table) - 1, 0, 100, dtype=torch.float64)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    assert (alpha > 0).all()
    assert (sigma > 0).all()
    assert ((sigma / alpha).diff() <= 0).all()
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(100, dtype=torch.float64))
    for t in schedule.times_by_noise(20).tolist():
        assert 0 <= t <= len(table) - 1
    torch.testing.assert_close(
        schedule.alpha(torch.arange(len(table))), torch.tensor(table).clamp(0, 1).sqrt().double(), rtol=1e-6, atol=2e-6
    )


def test_sentences():
    with pytest.raises(ValueError, match="alphas_cumprod to decrease"):
        VPSchedule(torch.tensor([0.1, 0.5]))
    for table in ([1.1, 0.5], [0.9, -0.1], [0.5, 0.5], [0.9, torch.nan]):
        with pytest.raises(ValueError, match="alphas_cumprod to decrease"):
            VPSchedule(torch.tensor(table))
    with pytest.raises(ValueError, match=r"steps to be in 1 \.\.\. 1000"):
        VPSchedule.linear().times(1001)
    with pytest.raises(ValueError, match="the noise levels of the schedule"):
        VPSchedule.linear().time_of(1e-9)
