"""Runs with the sampler Conditional: what their network is shown, and that nothing but the seed matters."""

import shutil

import pytest
import torch
from contracts import OnDevice
from diffusers import DDPMPipeline
from tiny_run import CONFIG, write_config

from emfast import Config
from emfast._files import read_tensors
from emfast.config import DataConfig, MStepConfig, NetworkConfig
from emfast.diffusion.condition import conditioned
from emfast.em import Observations, train
from emfast.em.conditions import Conditions
from emfast.em.m_step import _Batch
from emfast.em.model import build_model
from emfast.em.processes import Processes
from emfast.em.state import RunFolder
from emfast.em.trainer import Trainer
from emfast.operators import Detector, GaussianBlur, Mask, PoissonCounts
from emfast.samplers import MMPS, Conditional

SHAPE = (1, 12, 12)
IMAGES = torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
COUNTS = {"class_path": "PoissonCounts", "init_args": {"peak": 8.0}}
CONTINUOUS = {
    "schedule": "continuous",
    "final_rounds": 0,
    "operator": COUNTS,
    "sampler": {"class_path": "Conditional", "init_args": {"steps": 2}},
    "gaussian": {"always": True},
    "e_step": {"batch_size": 8, "shard_size": 8, "parts": 2},
    "evaluation": {"samples": 0, "pictures": 4},
    "accelerate": False,
}


def run(folder, **changes):
    """Trains a tiny run; returns its config."""
    folder.mkdir(exist_ok=True)
    config = Config.from_yaml(write_config(folder, **{**CONTINUOUS, **changes}))
    train(config)
    return config


def weights(folder):
    """The weights of the model of a run."""
    model = folder / "run" / "model"
    return {path.name: read_tensors(path) for path in (*model.glob("*.safetensors"), *model.glob("unet/*.safetensors"))}


def equal(one, two):
    """Whether two runs have the same models, bit for bit."""
    first, second = weights(one), weights(two)
    return len(first) == 2 and all(
        torch.equal(value, second[file][name]) for file, values in first.items() for name, value in values.items()
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_what_a_run_leaves(whole):
    rows = RunFolder(whole / "run").rows()
    assert [row["phase"] for row in rows] == ["initial", "warm"]
    assert all(row["psnr"] > 0 and row["misfit"] is None for row in rows)
    assert rows[0]["network_evaluations"] == 0
    assert DDPMPipeline.from_pretrained(whole / "run" / "model").unet.config.in_channels == 1
    assert weights(whole)["condition.safetensors"]["conv_in.weight"].any()  # it has learned to look
    preview = read_tensors(whole / "run" / "rounds" / "001" / "preview.safetensors")
    assert preview["observation"].min() == -1  # no photons, in data units
    assert preview["observation"].max() <= 4


def test_interruptions_change_nothing(whole, tmp_path, monkeypatch):
    left, update = [0], Trainer.update

    def counted(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        update(self, *arguments)

    monkeypatch.setattr(Trainer, "update", counted)
    for moment in (3, 6):
        left[0] = moment
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    run(tmp_path)
    assert equal(whole, tmp_path)


def test_rounds_go_on_with_the_model_before(tmp_path):
    small = {"schedule": "rounds", "final_rounds": 1, "data": {**CONFIG["data"], "clean": None}}
    config = run(tmp_path, **small)
    rows = RunFolder(config.output).rows()
    assert [row["phase"] for row in rows] == ["initial", "warm", "final"]
    assert rows[0]["observations"] == 24  # without clean images it begins with what the counts show
    shutil.rmtree(tmp_path / "run" / "rounds" / "002")
    before = weights(tmp_path)
    shutil.rmtree(tmp_path / "run" / "model")
    train(config)
    for file, values in weights(tmp_path).items():
        assert all(torch.equal(value, before[file][name]) for name, value in values.items())


def test_a_run_may_begin_with_such_a_model(whole, tmp_path):
    config = run(tmp_path, model=str(whole / "run" / "model"), gaussian={})
    assert RunFolder(config.output).rows()[1]["psnr"] > 0
    (whole / "run" / "model" / "condition.safetensors").rename(tmp_path / "away")
    try:
        with pytest.raises(ValueError, match=r"expected model to be shown observations, .* got a prior alone"):
            run(tmp_path / "other", model=str(whole / "run" / "model"))
    finally:
        (tmp_path / "away").rename(whole / "run" / "model" / "condition.safetensors")


def conditions(operator=None, share=0.5):
    """What is shown of images."""
    return Conditions(Observations(operator or Mask(missing=0.5), y=torch.zeros(6, *SHAPE), sigma=0.1), share)


def test_a_share_is_shown_without_an_observation():
    count, k = 400, torch.tensor(3)
    made = conditions(share=0.25)
    values = made.parameters(count, slice(None), 7, 3, torch.device("cpu"))
    x = torch.rand(count, *SHAPE)
    condition, shown = made.show(x, values, torch.arange(count), 7, k)
    assert condition.shape == (count, 3, 12, 12)
    assert abs(float(shown.double().mean()) - 0.75) < 0.08
    assert not condition[~shown.flatten()].any()
    image, mask, ones = (condition[shown.flatten()][:, channel] for channel in range(3))
    assert (ones == 1).all()
    assert abs(float(mask.mean()) - 0.5) < 0.1
    noise = (image - mask * x[shown.flatten()][:, 0])[mask == 1]
    assert abs(float(noise.std()) - 0.1) < 0.005
    masks = made.observations.operator.parameters(torch.arange(6), SHAPE)["mask"][:, 0]
    assert all(any(torch.equal(row, one) for one in masks) for row in mask[:20])


@pytest.mark.parametrize("operator", [Mask(missing=0.5), PoissonCounts(4.0), Detector()])
@pytest.mark.parametrize("world", [2, 3])
def test_steps_do_not_depend_on_the_processes(operator, world):
    settings = NetworkConfig(channels=[8], layers=1, attention=[], head_dim=8, groups=4, prediction="v")

    def gradients(rank, world):
        made = Conditions(Observations(operator, y=torch.zeros(6, *SHAPE)), 0.5)
        denoiser = conditioned(build_model(settings, SHAPE, 0)[0], made.observations.channels)
        denoiser.network.train()
        trainer = Trainer(denoiser.network, MStepConfig(batch_size=10, target_images=4), "")
        batch = _Batch(trainer, denoiser, IMAGES, 1, Processes(rank, world), made)
        return [batch.gradients(*batch.inputs(k)) for k in range(2)]

    whole, parts = gradients(0, 1), [gradients(rank, world) for rank in range(world)]
    for k, expected in enumerate(whole):
        for index, value in enumerate(expected):
            mean = sum(part[k][index] for part in parts) / world
            torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operator", [Mask(missing=0.5), GaussianBlur(size=3), PoissonCounts(4.0), Detector()])
def test_what_is_shown_stays_on_the_device(operator):
    made = Conditions(Observations(operator, y=torch.zeros(6, *SHAPE)), 0.5)
    values = [value.to("meta") for value in made.parameters(4, slice(None), 0, 3, torch.device("cpu"))]
    place = torch.arange(4, device="meta")
    with OnDevice():
        condition, _ = made.show(torch.zeros(4, *SHAPE, device="meta"), values, place, 1, place[0])
    assert condition.shape == (4, made.observations.channels, 12, 12)
    assert made.observations.channels == (3 if isinstance(operator, Mask) else 2)


def test_what_asks_for_more_than_a_simulation_is_refused():
    for changes, sentence in (
        ({"sampler": MMPS()}, "sampler to be Conditional for Detector, which can only be simulated"),
        ({"sigma": "auto", "data": DataConfig(sigma=0.1)}, "sigma to be given for Detector"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Config(operator=Detector(), **changes)
    assert isinstance(Config(operator=Detector()).sampler, Conditional)
