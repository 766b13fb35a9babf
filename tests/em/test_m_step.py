"""The M-step: what it trains, and that an interruption changes nothing."""

import dataclasses
import warnings

import pytest
import torch
from contracts import Bare, OnDevice
from torch import nn

from emfast.config import MStepConfig
from emfast.diffusion import Denoiser, VPSchedule
from emfast.em.batches import Batches, draws
from emfast.em.m_step import Trainer, _Batch, m_step
from emfast.em.muon import orthogonal
from emfast.em.processes import Processes
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


@pytest.mark.parametrize("world", [2, 3, 5])
def test_dropout_does_not_depend_on_the_processes(world):
    def gradients(rank, world):
        denoiser = fresh()
        denoiser.network.train()
        batch = _Batch(Trainer(denoiser.network, CONFIG, ""), denoiser, IMAGES, 1, Processes(rank, world))
        return [batch.gradients(*batch.inputs(k)) for k in range(2)]

    whole, parts = gradients(0, 1), [gradients(rank, world) for rank in range(world)]
    for k, expected in enumerate(whole):
        for index, value in enumerate(expected):
            mean = sum(part[k][index] for part in parts) / world
            torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("by_function", [False, True])
def test_the_context_of_dropout_is_left_where_nothing_is_dropped(p, by_function):
    class Functional(Network):
        def forward(self, x, time):
            return nn.functional.dropout(super().forward(x, time), p, self.training)

    network = Functional() if by_function else Network()
    network.layers[2].p = 0.0 if by_function else p
    network.train()
    batch = _Batch(Trainer(network, CONFIG, ""), Denoiser(network, VPSchedule.linear()), IMAGES, 1, Processes())
    first = batch.gradients(*batch.inputs(0))
    assert batch.drops == (p > 0)
    for one, other in zip(first, batch.gradients(*batch.inputs(0)), strict=True):
        assert torch.equal(one, other)


SETTINGS = {
    "usual": {},
    "log-normal": {"noise_levels": "log-normal", "schedule_share": 0.25},
    "targets": {"target_images": 5, "flip": True},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_stays_on_the_device(settings, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)  # torch fuses none on this device
    monkeypatch.setattr(torch.optim.SGD, "__init__", lambda self, p, **_: torch.optim.Optimizer.__init__(self, p, {}))
    config, denoiser = dataclasses.replace(CONFIG, **SETTINGS[settings]), Bare(Network(), VPSchedule.linear())
    trainer = Trainer(denoiser.to("meta").network, config, "")
    batch = _Batch(trainer, denoiser, IMAGES, 1, Processes())
    x_0, k = torch.empty(8, 1, 4, 4, device="meta"), torch.empty((), dtype=torch.int64, device="meta")
    others = [torch.empty(13, 1, 4, 4, device="meta")] * (config.target_images > 0)
    batch.gradients(x_0, k, *others)  # brings the tables of the schedule to the device
    with OnDevice():
        loss, levels, *gradients = batch.gradients(x_0, k, *others)
    assert all(tensor.is_meta for tensor in (loss, levels, *gradients))


def test_muon_stays_on_the_device():
    with OnDevice():
        found = orthogonal([torch.empty(2, 8, 20, device="meta"), torch.empty(1, 30, 8, device="meta")])
    assert [tuple(x.shape) for x in found] == [(2, 8, 20), (1, 30, 8)]


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


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_a_diverged_training_is_a_sentence_and_leaves_the_last_good_checkpoint(tmp_path, steps):
    path, config = tmp_path / "checkpoint", dataclasses.replace(CONFIG, learning_rate=1e38, clip_norm=1e30)
    with pytest.raises(RuntimeError, match=r"finite, got NaN or infinity at step [1-4]\. Lower m_step\.learning_rate"):
        m_step(fresh(), IMAGES, steps=steps, config=config, seed=1, checkpoint=path)
    assert not path.exists()


@pytest.mark.parametrize("moment", [4, 9])
def test_the_step_of_a_diverged_loss_is_named(tmp_path, moment):
    denoiser, path = fresh(), tmp_path / "checkpoint"

    def spoil(done, total):
        if done == moment:
            denoiser.network.layers[0].bias.data[0] = torch.nan

    with pytest.raises(RuntimeError, match=f"the loss to be finite, got NaN or infinity at step {moment + 1}"):
        run(denoiser, path, callback=spoil)
    expected = run(fresh(), tmp_path / "none")
    found = run(fresh(), path)  # goes on from the last checkpoint that was written before
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_nothing_else_of_a_checkpoint_may_be_infinite(tmp_path):
    trainer = Trainer(fresh().network, CONFIG, "one")
    trainer.look()
    trainer.average[1][0] = torch.inf
    with pytest.raises(RuntimeError, match="the weights to be finite"):
        trainer.look()
    trainer.save(tmp_path / "bad")
    with pytest.raises(ValueError, match="NaN or infinity in average/1"):
        Trainer(fresh().network, CONFIG, "one").load(tmp_path / "bad")


def test_most_steps_do_not_wait_for_the_device(tmp_path, monkeypatch):
    looks, look = [], Trainer.look
    monkeypatch.setattr(Trainer, "look", lambda self: looks.append(self.step) or look(self))
    monkeypatch.setattr("emfast.em.m_step.LOOK", 4)
    run(fresh(), tmp_path / "none")
    assert looks == [3, 4, 6, 8, 9, 10, 10]  # the last is that of finish()


@pytest.mark.parametrize(("count", "size"), [(20, 8), (3, 8), (8, 8), (1, 2)])
def test_every_image_once_an_epoch(count, size):
    rows = torch.cat([Batches(count, size, seed=0).ids(k) for k in range(count)])
    assert all(torch.equal(epoch.sort().values, torch.arange(count)) for epoch in rows.split(count))
    batches = Batches(count, size, seed=0)
    assert torch.equal(rows, torch.cat([batches.ids(k) for k in range(count)]))
