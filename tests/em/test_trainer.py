"""Learning rate, average, noise levels and optimizer of the M-step."""

import pytest
import torch
from contracts import OnDevice
from torch import nn

from emfast.config import MStepConfig
from emfast.diffusion import Denoiser, EDMSchedule, FlowSchedule, VPSchedule
from emfast.em.m_step import _Batch
from emfast.em.muon import Muon, orthogonal
from emfast.em.noise_levels import training_times
from emfast.em.processes import Processes
from emfast.em.targets import stable_targets
from emfast.em.trainer import Trainer, averaging, learning_rate

SCHEDULES = [VPSchedule.linear(), VPSchedule.cosine(), EDMSchedule(), FlowSchedule()]
U = (torch.arange(4000) + 0.5) / 4000


def log_ratio(schedule, t):
    return (schedule.sigma(t) / schedule.alpha(t)).log()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_log_normal_noise_levels(schedule):
    config = MStepConfig(noise_levels="log-normal", noise_mean=-0.5, noise_std=0.8)
    found = log_ratio(schedule, training_times(schedule, U, config))
    assert float(found.mean()) == pytest.approx(-0.5, abs=0.01)
    assert float(found.std()) == pytest.approx(0.8, abs=0.01)
    assert bool((found.diff() >= 0).all())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_share_of_the_noise_levels_is_that_of_the_schedule(schedule):
    plain, mixed = MStepConfig(), MStepConfig(noise_levels="log-normal", schedule_share=0.25)
    assert torch.equal(training_times(schedule, U, plain), schedule.training_times(U))
    found = training_times(schedule, U, mixed)
    torch.testing.assert_close(found[:1000], schedule.training_times(U[:1000] * 4).to(found), rtol=1e-5, atol=1)
    assert float(log_ratio(schedule, found[1000:]).mean()) == pytest.approx(-1.2, abs=0.02)


def test_noise_levels_beyond_the_schedule_are_its_ends():
    schedule = VPSchedule.linear()
    ends = schedule.times_of(torch.tensor([-50.0, 50.0]))
    assert ends.tolist() == [0, 999]
    for ratio in (0.02, 0.5, 3.0, 100.0):
        t = schedule.times_of(torch.tensor(ratio, dtype=torch.float64).log())
        assert float(t) == pytest.approx(schedule.time_of(ratio), abs=1e-9)


def test_noise_levels_stay_on_the_device():
    config = MStepConfig(noise_levels="log-normal", schedule_share=0.2)
    schedule, u = VPSchedule.linear(), torch.empty(4, device="meta")
    training_times(schedule, u, config)  # brings the table there
    with OnDevice():
        assert training_times(schedule, u, config).is_meta


def test_the_learning_rate_falls_over_the_last_share():
    config = MStepConfig(learning_rate=2.0, warmup=4, decay=0.5)
    rates = [learning_rate(config, k, 20) for k in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:11] == [2.0] * 7
    assert rates[15] == pytest.approx(1.0)
    assert rates[19] == pytest.approx(0.2)
    assert learning_rate(MStepConfig(learning_rate=2.0), 10**6, 1) == 2.0


def test_a_power_function_average_is_a_share_of_the_steps():
    config = MStepConfig(ema_power=8.0)
    for steps in (100, 1000):
        average = 0.0
        for k in range(steps):
            average += (1 - averaging(config, k)) * (k - average)
        assert average / steps == pytest.approx(9 / 10, abs=0.02)  # of the density k^8 over 0 ... 1


def test_orthogonal_matrices():
    x = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    other, tall, flat = orthogonal([torch.ones(2, 16, 20), x.mT, x])  # of one height, they go together
    assert other.shape == (2, 16, 20)
    for y in (tall.mT, flat):
        values = torch.linalg.svdvals(y)
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
        cosine = (x * y).sum((1, 2)) / (x.norm(dim=(1, 2)) * y.norm(dim=(1, 2)))
        assert float(cosine.min()) > 0.9
    deficient = torch.cat((x[:, :8], x[:, :8]), 1)  # of half the rank
    assert torch.linalg.svdvals(orthogonal([deficient])[0])[:, 8:].max() < 1e-2
    assert torch.equal(orthogonal([torch.zeros(1, 16, 40)])[0], torch.zeros(1, 16, 40))


def test_muon_leaves_narrow_layers_to_adamw():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 1, 1))
    config = MStepConfig(optimizer="muon", learning_rate=0.01, warmup=0, weight_decay=0.0, clip_norm=1e9)
    trainer, plain = (Trainer(network, config, ""), torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0))
    assert isinstance(trainer.optimizer, Muon)
    before = [p.detach().clone() for p in network.parameters()]
    gradients = [torch.randn(p.shape) for p in before]
    trainer.update(torch.zeros(()), [g.clone() for g in gradients])
    moved = [p.detach() - old for p, old in zip(network.parameters(), before, strict=True)]
    with torch.no_grad():
        for p, old, gradient in zip(network.parameters(), before, gradients, strict=True):
            p.copy_(old)
            p.grad = gradient
    plain.step()
    for index, (p, old) in enumerate(zip(network.parameters(), before, strict=True)):
        same = torch.allclose(p.detach() - old, moved[index], atol=1e-6)
        assert same == (index != 2)
    step = 0.01 * 0.2
    assert 0.7 * step < float(moved[2].square().mean().sqrt()) < 1.2 * step  # as large as AdamW's
    names = trainer.tensors().keys()
    assert "optimizer/2/momentum" in names
    assert "optimizer/2/exp_avg" not in names


def test_the_averaged_weights_are_lent():
    network = nn.Conv2d(1, 1, 1)
    trainer = Trainer(network, MStepConfig(), "")
    trainer.average[0] += 1
    before = network.weight.detach().clone()
    network.train()

    def failed_e_step():
        with trainer.averaged():
            assert torch.equal(network.weight, before + 1)
            assert not network.training
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        failed_e_step()
    assert torch.equal(network.weight, before)
    assert network.training


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stable_targets_are_posterior_means(schedule):
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(12, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    for ratio in (0.05, 1.0, 3.0, 30.0):
        t = schedule.times_of(torch.tensor(ratio).log()).expand(12)
        alpha, sigma = schedule.alpha(t[:1]), schedule.sigma(t[:1])
        x_t = alpha * images + sigma * noise
        mean, left = stable_targets(schedule, images, t, noise, images)
        distance = (x_t[:, None] - alpha * images[None]).square().sum((2, 3, 4))
        weights = torch.softmax(-distance / (2 * sigma**2), 1)
        torch.testing.assert_close(mean, torch.einsum("bn,nchw->bchw", weights, images))
        torch.testing.assert_close(alpha * mean + sigma * left, x_t)
        if ratio < 0.1:
            torch.testing.assert_close(mean, images)


@pytest.mark.parametrize("count", [3, 100])
@pytest.mark.parametrize("flip", [False, True])
def test_targets_do_not_depend_on_the_processes(count, flip):
    config = MStepConfig(batch_size=4, target_images=count, flip=flip, noise_levels="log-normal", noise_mean=1.5)
    images = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def gradients(rank, world):
        torch.manual_seed(0)
        denoiser = Denoiser(Plain(), VPSchedule.linear(), "v")
        batch = _Batch(Trainer(denoiser.network, config, ""), denoiser, images, 1, Processes(rank, world))
        found = batch.inputs(3)
        assert len(found[2]) == (10 if count == 100 else 7)
        return batch.gradients(*found)

    whole, parts = gradients(0, 1), [gradients(rank, 2) for rank in range(2)]
    for index, value in enumerate(whole):
        torch.testing.assert_close(sum(part[index] for part in parts) / 2, value, rtol=1e-5, atol=1e-6)


class Plain(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 1, 3, padding=1)

    def forward(self, x, time):
        return super().forward(x)
