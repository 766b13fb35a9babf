"""The M-step: what it trains, and that an interruption changes nothing."""

import warnings

import pytest
import torch
from contracts import Bare, OnDevice
from torch import nn

from emfast.config import MStepConfig
from emfast.diffusion import Denoiser, VPSchedule
from emfast.em.m_step import Batches, draws, m_step
from emfast.graph import Graphed

CONFIG = MStepConfig(batch_size=8, learning_rate=1e-2, warmup=5, ema=0.9, checkpoint=3)
IMAGES = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Network(nn.Module):
    """A network with dropout and a buffer, which a resumed training must bring back too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.SiLU(), nn.Dropout(0.2), nn.Conv2d(8, 1, 1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, time):
        if self.training:
            self.calls += 1
        level = (time / 1000).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.layers(torch.cat((x, level), 1))


def fresh():
    return Denoiser(Network(), VPSchedule.linear())


def run(denoiser, checkpoint, steps=10, seed=1, callback=None):
    m_step(denoiser, IMAGES, steps=steps, config=CONFIG, seed=seed, checkpoint=checkpoint, callback=callback)
    return denoiser.state_dict()


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment", [1, 3, 4, 9])
def test_resumed_training_is_bit_identical(tmp_path, moment):
    expected = run(fresh(), tmp_path / "none")

    def kill(done, total):
        if done == moment:
            raise Killed

    with pytest.raises(Killed):
        run(fresh(), tmp_path / "checkpoint", callback=kill)
    assert (tmp_path / "checkpoint").exists() == (moment >= 3)
    calls = []
    found = run(fresh(), tmp_path / "checkpoint", callback=lambda done, total: calls.append(done))
    assert calls[0] == moment // 3 * 3 + 1
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_training_in_a_graph_is_training_without(tmp_path, device, monkeypatch):
    if device.type != "cuda":
        pytest.skip("needs --device cuda: elsewhere nothing is captured")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Graphed")
        replayed = run(fresh().to(device), tmp_path / "graph")
    monkeypatch.setattr(Graphed, "__call__", lambda self, *tensors: self.function(*tensors))
    for name, value in run(fresh().to(device), tmp_path / "none").items():
        torch.testing.assert_close(replayed[name], value, rtol=1e-6, atol=1e-7)


def test_it_learns_and_ends_in_evaluation_mode(tmp_path):
    denoiser = fresh()
    t, noise = torch.full((20,), 500), torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(3))
    before = float(denoiser.eval().loss(IMAGES, t, noise).mean().detach())
    run(denoiser, tmp_path / "none", steps=100)
    assert not denoiser.network.training
    assert float(denoiser.loss(IMAGES, t, noise).mean().detach()) < 0.7 * before


def test_each_process_draws_its_part_of_the_batch():
    place = torch.arange(8)
    whole = draws((1, 4, 4), place, seed=3, k=2)
    for part in (slice(0, None, 2), slice(1, None, 2), slice(2, None, 3)):
        for ours, all_of_them in zip(draws((1, 4, 4), place[part], seed=3, k=2), whole, strict=True):
            assert torch.equal(ours, all_of_them[part])


def test_a_step_stays_on_the_device():
    place = torch.arange(4, device="meta")
    x_0, denoiser = torch.empty(4, 1, 4, 4, device="meta"), Bare(Network(), VPSchedule.linear()).to("meta")
    denoiser.loss(x_0, place, x_0)  # brings the tables of the schedule to the device
    with OnDevice():
        u, noise = draws((1, 4, 4), place, seed=1, k=2)
        denoiser.loss(x_0, denoiser.schedule.training_times(u[:, 0]), noise).mean().backward()
    assert all(p.grad.is_meta for p in denoiser.parameters())


def test_a_foreign_checkpoint_is_refused(tmp_path):
    run(fresh(), tmp_path / "checkpoint", steps=4)
    with pytest.raises(ValueError, match="to be a checkpoint of this training"):
        run(fresh(), tmp_path / "checkpoint", steps=4, seed=2)


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint"
    run(fresh(), path, steps=4)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="checkpoint"):
        run(fresh(), path, steps=4)


@pytest.mark.parametrize(("count", "size"), [(20, 8), (3, 8), (8, 8), (1, 2)])
def test_every_image_once_an_epoch(count, size):
    rows = torch.cat([Batches(count, size, seed=0).ids(k) for k in range(count)])
    assert all(torch.equal(epoch.sort().values, torch.arange(count)) for epoch in rows.split(count))
    batches = Batches(count, size, seed=0)
    assert torch.equal(rows, torch.cat([batches.ids(k) for k in range(count)]))
