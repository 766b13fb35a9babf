"""The public face, as its contract has it: everything by `import emfast` alone."""

import json

import pytest
import torch
from torch import nn

import emfast


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x).tanh()


def blurred(x):
    return 0.5 * (x + x.roll(1, -1))


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def test_a_unet_is_accelerated_in_place(diffusers):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        layers_per_block=1,
    )
    names, x = list(unet.state_dict()), torch.randn(1, 1, 8, 8)
    before = unet(x, 5).sample
    assert emfast.accelerate(unet, dtype=torch.bfloat16) is unet
    assert type(unet).__name__ == "UNet2DModel"
    assert list(unet.state_dict()) == names
    assert emfast.report(unet)["swapped"]
    torch.testing.assert_close(unet(x, 5).sample, before, rtol=0.1, atol=0.1)
    assert emfast.restore(unet) is unet
    assert torch.equal(unet(x, 5).sample, before)
    with emfast.backend("reference"):
        torch.testing.assert_close(emfast.accelerate(unet)(x, 5).sample, before, rtol=1e-4, atol=1e-4)


OPERATORS = [
    emfast.operators.Mask(missing=0.6),
    emfast.operators.Mask(torch.eye(8)),
    emfast.operators.GaussianBlur(size=5, std=2.0),
    emfast.operators.MotionBlur(size=3),
    emfast.operators.Downsample(2),
    emfast.operators.Identity(),
    emfast.operators.Linear(blurred, shape=(1, 8, 8)),
    blurred,
]


@pytest.mark.parametrize("operator", OPERATORS)
def test_observations_and_their_samples(diffusers, operator):
    torch.manual_seed(0)
    x, ids = torch.rand(2, 1, 8, 8) * 2 - 1, torch.tensor([5, 3])
    y = blurred(x) if operator is blurred else operator.observe(x, sigma=0.0, ids=ids, seed=0)
    steps = []
    for schedule in (emfast.diffusion.VPSchedule.linear(), diffusers.DDPMScheduler(1000)):
        denoiser = emfast.diffusion.Denoiser(Network(), schedule)
        sampler = emfast.samplers.MMPS(steps=2)
        with emfast.graphs():
            x_hat = sampler(
                denoiser, y, operator, sigma=0.0, ids=ids, seed=0, callback=lambda done, of: steps.append((done, of))
            )
        assert x_hat.shape == x.shape
        assert bool(x_hat.isfinite().all())
    assert steps == 2 * [(1, 2), (2, 2)]


def test_the_whole_run(tmp_path, diffusers):
    config = emfast.Config(
        output=str(tmp_path / "run"),
        data=emfast.config.DataConfig(size=8, limit=8, clean_count=4, reference=None),
        operator=emfast.operators.Mask(missing=0.6),
        sampler=emfast.samplers.MMPS(steps=2),
        network=emfast.config.NetworkConfig(channels=[8], attention=[], head_dim=8, groups=4, layers=1),
        m_step=emfast.config.MStepConfig(initial_steps=1, steps=1, batch_size=4),
        evaluation=emfast.config.EvaluationConfig(samples=0, pictures=2),
        e_step=emfast.config.EStepConfig(batch_size=8),
        rounds=1,
        final_rounds=0,
    )
    events = []
    folder = emfast.train(config, callback=events.append)
    run = tmp_path / "run"
    assert folder == run / "model"
    assert type(diffusers.DDPMPipeline.from_pretrained(folder).unet).__name__ == "UNet2DModel"
    assert emfast.Config.from_yaml(run / "config.yaml").to_yaml() == config.to_yaml()
    row = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    times = {"seconds_e_step", "seconds_m_step"}
    assert {"round", "phase", "psnr", "ssim", "misfit", "fd", "network_evaluations"} | times <= set(row)
    assert (run / "rounds" / "001").is_dir()
    assert isinstance(events[-1], emfast.em.RoundFinished)
    count = len(events)
    assert emfast.train(config, callback=events.append) == folder  # finished: nothing is left to do
    assert len(events) == count
