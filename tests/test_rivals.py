"""The rivals that are not EM in rounds: what their losses see, and that each runs to its end."""

import dataclasses
from pathlib import Path

import em
import pytest
import rivals
import tiny_run
import torch
import yaml
from em_measure import truth
from rivals import ambient, noise2self, sure_score

from emfast import Config
from emfast.diffusion import Denoiser, VPSchedule
from emfast.em.inputs import read_inputs
from emfast.evaluation import psnr


def tiny(folder, **changes):
    """The config of a tiny task."""
    file = folder / "tiny.yaml"
    settings = {**tiny_run.CONFIG, "data": {"size": 12, "limit": 24, "clean_count": 4}, "output": str(folder / "run")}
    file.write_text(yaml.safe_dump({**settings, "network": {**tiny_run.CONFIG["network"], "prediction": "v"}}))
    return dataclasses.replace(Config.from_yaml(file), **changes)


def noisy(folder):
    """A tiny denoising task."""
    config = em.config_of("noise", em.OURS, 0, folder)
    return tiny(folder, operator=config.operator, sigma=0.2, sampler=config.sampler)


@pytest.mark.parametrize("name", ["ambient", "noise2self", "sure_score", "raw"])
def test_a_rival_runs_to_its_end_and_is_gone_on_with(name, tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "STEPS", 3)
    config = tiny(tmp_path) if name in ("ambient", "raw") else noisy(tmp_path)
    inputs = read_inputs(config)
    (first,), (again,) = ([*em.points(name, config, inputs)] for _ in range(2))
    assert first.evaluations >= 3 * 8 * 3
    assert first.cpu_seconds > 0
    assert first.seconds > 0
    assert (again.seconds, again.cpu_seconds) == (first.seconds, first.cpu_seconds)
    x, t = torch.randn(5, 1, 12, 12), torch.tensor([300.0])
    torch.testing.assert_close(first.denoiser(x, t), again.denoiser(x, t))
    assert first.own is None or bool(psnr(first.own, truth(inputs.observations, 24)).isfinite().all())
    (Path(config.output) / "cost.json").unlink()  # as if an earlier process had been killed
    assert next(em.points(name, config, inputs)).cpu_seconds is None


def test_noise2self_restores_every_pixel_without_having_seen_it(tmp_path):
    config = noisy(tmp_path)
    denoiser = rivals.ready(rivals.build_model(config.network, (1, 12, 12), 0)[0], config)
    y = torch.randn(2, 1, 12, 12)
    restored, changed = noise2self.restore(denoiser, y), y.clone()
    changed[:, :, 5, 6] += 1.0
    other = noise2self.restore(denoiser, changed)
    assert torch.equal(other[:, :, 5, 6], restored[:, :, 5, 6])
    assert not torch.equal(other[:, :, 5, 7], restored[:, :, 5, 7])
    assert torch.equal(sum(noise2self.grid(k, y) for k in range(16)), torch.ones(12, 12))


def test_steins_estimate_is_the_error_of_a_denoiser_that_shrinks():
    schedule, sigma, gain = VPSchedule.linear(), 0.5, 0.7
    t = schedule.time_of(sigma)
    alpha = float(schedule.alpha(torch.tensor([t], dtype=torch.float64)))
    denoiser = Denoiser(lambda x, time: gain / alpha * x, schedule, "x0")
    clean, noise, direction = torch.randn(3, 20000, generator=torch.Generator().manual_seed(0)).double()
    x = clean.reshape(2, 1, 100, 100)
    y = x + sigma * noise.reshape(x.shape)
    denoised, risk = sure_score.sure(denoiser, y, sigma, direction.reshape(x.shape))
    truth = (denoised - x).square().flatten(1).mean(1)
    torch.testing.assert_close(denoised, gain * y)
    torch.testing.assert_close(risk, truth, atol=0.02, rtol=0)  # Monte Carlo of 10,000 pixels


def test_ambient_diffusion_never_sees_what_is_hidden(tmp_path):
    config = tiny(tmp_path)
    denoiser = ambient.build(config, (1, 12, 12), 0.36)
    x = torch.rand(6, 1, 12, 12) * 2 - 1
    mask = ambient.draw(0.4, x, torch.arange(6), 7)
    other = torch.where(mask == 1, x, 0.9)
    losses = [ambient.further_corrupted(denoiser, image, mask, config, 3) for image in (x, other)]
    assert torch.equal(*losses)
    t = torch.tensor([200.0])
    model = denoiser.network
    with torch.no_grad():
        hidden = (mask == 0).nonzero()[0]
        changed = x.clone()
        changed[tuple(hidden)] += 1.0
        assert torch.equal(model(x, t, mask), model(changed, t, mask))
    own = ambient.restore(denoiser, mask * x, mask)
    assert torch.equal(own * mask, x * mask)
