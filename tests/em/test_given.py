"""A run of what is given in Python: tensors, datasets, pipelines, and networks that only the user can build."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.utils.data import TensorDataset

import emfast
from emfast.cli import main
from emfast.config import Config, EStepConfig, EvaluationConfig, GaussianConfig, MStepConfig, NetworkConfig
from emfast.data import save_observations
from emfast.diffusion import Denoiser, EDMSchedule, VPSchedule
from emfast.em import Observations, RoundFinished, load_network
from emfast.operators import Identity, Linear, Mask, MotionBlur, Operator
from emfast.samplers import MMPS, Conditional

IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


class Network(nn.Module):
    """An engineer's own network."""

    def __init__(self, channels=1):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels + 1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, channels, 1))

    def forward(self, x, t):
        level = (t / 1000).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.layers(torch.cat((x, level), 1))


def small(folder, **changes):
    steps = MStepConfig(initial_steps=2, steps=2, final_steps=2, batch_size=4)
    settings = {
        "output": str(folder),
        "sampler": MMPS(steps=2, iterations=1),
        "network": NetworkConfig(channels=[8], attention=[], head_dim=8, groups=4, layers=1),
        "gaussian": GaussianConfig(rank=2, rounds=1),
        "e_step": EStepConfig(batch_size=8),
        "m_step": steps,
        "evaluation": EvaluationConfig(samples=2, steps=2, pictures=2),
        "rounds": 1,
        "final_rounds": 0,
        "accelerate": False,
    }
    return Config(**{**settings, **changes})


def rows_of(config, **given):
    events = []
    folder = emfast.train(config, events.append, **given)
    return folder, [event.row for event in events if isinstance(event, RoundFinished)]


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index], 3


@pytest.mark.parametrize("images", [IMAGES, TensorDataset(IMAGES), Pictures(), emfast.data.Images(IMAGES)])
def test_images(tmp_path, images):
    folder, rows = rows_of(small(tmp_path, rounds=0), images=images)
    assert rows[0]["psnr"] is not None
    assert rows[0]["observations"] == 12
    assert "images: (given in Python)" in (tmp_path / "config.yaml").read_text()
    assert Denoiser.from_pretrained(folder)


def test_clean_images_are_taken_out(tmp_path):
    _, rows = rows_of(small(tmp_path), images=IMAGES, clean=IMAGES[:4])
    assert rows[0]["observations"] == 0
    assert rows[1]["observations"] == 8
    with pytest.raises(ValueError, match=r"the observations .* something else"):
        emfast.train(small(tmp_path), images=IMAGES * 0.9, clean=IMAGES[:4])


def test_observations_with_their_masks(tmp_path):
    mask = (torch.rand(12, 1, 8, 8) > 0.5).float()
    y = torch.where(mask != 0, IMAGES, torch.nan)
    _, rows = rows_of(small(tmp_path), observations={"y": y, "mask": mask})
    assert rows[1]["psnr"] is None
    assert rows[1]["misfit"] < 1
    with pytest.raises(ValueError, match="to bring mask, which Mask would draw at random, got y only"):
        emfast.train(small(tmp_path / "none", rounds=0), observations=IMAGES)


def blurred(x):
    return 0.5 * (x + x.roll(1, -1))


def test_own_network_tensors_and_function(tmp_path):
    """What a PyTorch engineer has: a U-Net, tensors, and a function A."""
    torch.manual_seed(0)
    network = Network()
    before = [p.clone() for p in network.parameters()]
    config = small(tmp_path, operator=Linear(blurred, shape=(1, 8, 8)), sigma=0.05, final_rounds=1)
    folder, rows = rows_of(config, observations=blurred(IMAGES), network=network)
    assert len(rows) == 3
    assert all(torch.equal(p, q) for p, q in zip(before, network.parameters(), strict=True))
    denoiser = load_network(config.output, network)  # the run, or the model that it returns
    found = list(denoiser.network.parameters())
    assert not any(torch.equal(p, q) for p, q in zip(before, found, strict=True))
    assert torch.equal(found[0], next(load_network(folder, network).parameters()))
    x = config.sampler(denoiser, blurred(IMAGES), config.operator, sigma=0.05)
    assert x.shape == IMAGES.shape
    again, rows = rows_of(config, observations=blurred(IMAGES), network=Network())
    assert again == folder
    assert rows == []
    with pytest.raises(ValueError, match=r"layers\.0\.bias of .* to fit the network|layers\.0\.weight of "):
        load_network(folder, Network(channels=2))
    with pytest.raises(ValueError, match=r"a network of your own: emfast\.em\.load_network"):
        Denoiser.from_pretrained(folder)


class ToldSigma(Network):
    """A network of EDM that applies its preconditioning itself."""

    def forward(self, x, sigma):
        return super().forward(x, sigma.log() / 4)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Network, r"network to be a network, got the class Network"),
        (
            Network(channels=3),
            r"network\(x_t, t\) to take x_t of shape \(2, 1, 8, 8\) .* RuntimeError: Given",
        ),
        (
            ToldSigma(),
            r"t = 0 to be finite, got NaN .* told sigma rather than t\? Give Denoiser\(network, E",
        ),
    ],
)
def test_a_network_that_is_called_otherwise_is_told_at_once(tmp_path, network, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        emfast.train(small(tmp_path), images=IMAGES, network=network)
    assert not (tmp_path / "config.yaml").exists()


def test_a_network_of_edm(tmp_path):
    model = Denoiser(ToldSigma(), EDMSchedule(), "x0")
    folder, rows = rows_of(small(tmp_path, operator=Identity(), sigma=0.1), images=IMAGES, network=model)
    assert rows[0]["loss"] > 0
    assert isinstance(load_network(folder, model).schedule, EDMSchedule)


def test_masks_of_another_name_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"parameters that it reads, got masks\. Name them mask"):
        emfast.train(small(tmp_path, operator=Mask()), observations={"y": IMAGES, "masks": IMAGES}, network=Network())


def test_a_trained_model_is_where_the_run_begins(tmp_path):
    model = Denoiser(Network(), VPSchedule.linear())
    folder, rows = rows_of(small(tmp_path, operator=Identity(), sigma=0.1), images=IMAGES, model=model)
    assert rows[0]["loss"] is None
    assert rows[1]["loss"] > 0
    found = load_network(folder, model)
    assert isinstance(found.schedule, VPSchedule)
    with pytest.raises(ValueError, match=r"to be a Denoiser, for the folder has no scheduler, got Network. Give"):
        load_network(folder, model.network)
    with pytest.raises(FileNotFoundError, match=r"^load_network: expected .*nowhere to be a model folder"):
        load_network(tmp_path / "nowhere", model)


def test_a_pipeline(tmp_path):
    from diffusers import DDPMPipeline

    first = emfast.train(small(tmp_path / "first", rounds=0), images=IMAGES)
    pipeline = DDPMPipeline.from_pretrained(first)
    folder = emfast.train(small(tmp_path / "second", operator=Mask(missing=0.3)), images=IMAGES, model=pipeline)
    weight = next(Denoiser.from_pretrained(folder).parameters())
    assert torch.equal(next(Denoiser.from_pretrained(folder.parent).parameters()), weight)  # the run, as the commands
    with pytest.raises(ValueError, match=r"got none. Denoiser.from_pretrained loads one of diffusers."):
        load_network(folder, pipeline.unet)
    assert DDPMPipeline.from_pretrained(folder).unet.state_dict().keys() == pipeline.unet.state_dict().keys()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"images": IMAGES * 255}, "images to be in .* uint8"),
        ({"images": [1, 2]}, "tensors as items"),
        ({"images": 7}, "a tensor or a dataset"),
        ({"images": IMAGES, "observations": IMAGES}, "Leave one of them out"),
        ({"images": IMAGES, "model": "a folder"}, "to be a model"),
        ({"observations": [IMAGES]}, "tensors by name"),
        ({"images": [IMAGES[0], IMAGES[1, :, :4]]}, "images of one shape"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, given, words):
    with pytest.raises((TypeError, ValueError), match=words):
        emfast.train(small(tmp_path / "run"), **given)
    assert not (tmp_path / "config.yaml").exists()


def test_the_config_of_the_caller_stays(tmp_path):
    config = small(tmp_path, rounds=0)
    before = dataclasses.replace(config)
    emfast.train(config, images=IMAGES)
    assert config == before


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"images": IMAGES}, "data.images"),
        ({"observations": IMAGES}, "data.observations"),
        ({"images": IMAGES, "clean": IMAGES[:2] * 0.5}, "data.images"),
        ({"images": IMAGES, "model": Denoiser(Network(), VPSchedule.linear())}, "data.images"),
    ],
)
def test_the_config_of_a_run_in_python_is_not_enough(tmp_path, capsys, given, name):
    config = small(tmp_path / "run", operator=Identity(), sigma=0.1, rounds=0)
    emfast.train(config, **given)
    assert main(["train", "--config", str(tmp_path / "run" / "config.yaml")]) == 2
    sentence = f"{name} to be a file or a folder, got (given in Python). Run the program that this config is from again"
    assert sentence in capsys.readouterr().err
    file = str(tmp_path / "images.npy")
    np.save(file, IMAGES.numpy())
    others = ["--data.images", file] if "images" in given else ["--data.observations", file]
    if len(given) == 2:
        assert main(["train", "--config", str(tmp_path / "run" / "config.yaml"), *others]) == 2
        assert "(given in Python)" in capsys.readouterr().err


def test_a_function_of_a_program_is_told(tmp_path, capsys):
    text = "operator: {class_path: Linear, init_args: {function: __main__.A, shape: [1, 8, 8]}}"
    (tmp_path / "run.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "It is from a program: run that again" in capsys.readouterr().err


class Coils(Operator):
    """Images seen through complex coils, real and imaginary parts as channels."""

    def parameters(self, ids, shape):
        return {}

    def apply(self, x, parameters):
        assert parameters["coils"].is_complex()
        seen = x * parameters["coils"]
        return torch.cat((seen.real, seen.imag), 1)

    def adjoint(self, y, parameters):
        return (torch.complex(y[:, :1], y[:, 1:]) * parameters["coils"].conj()).real

    def as_image(self, y, parameters):
        return self.adjoint(y, parameters)


def test_complex_parameters_stay_complex(tmp_path):
    coils = torch.polar(torch.ones(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
    y = torch.cat(((IMAGES * coils).real, (IMAGES * coils).imag), 1)
    changes = {"operator": Coils(), "rounds": 1, "final_rounds": 0}
    emfast.train(small(tmp_path / "run", **changes), observations={"y": y, "coils": coils})
    with pytest.raises(TypeError, match="real and imaginary parts as channels"):
        emfast.train(small(tmp_path / "other", operator=Identity(), sigma=0.1), observations=IMAGES * coils)


def test_gradients_may_be_off_where_a_run_is_begun(tmp_path):
    with torch.no_grad():
        emfast.train(small(tmp_path / "off", rounds=1, final_rounds=0), images=IMAGES)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode to be off"):
        emfast.train(small(tmp_path / "other"), images=IMAGES)
    with pytest.raises(ValueError, match=r"layers\.0\.weight frozen"):
        emfast.train(small(tmp_path / "frozen"), images=IMAGES, network=Network().requires_grad_(False))


def test_an_operator_that_draws_is_none_for_observations_that_are_given(tmp_path):
    with pytest.raises(ValueError, match="to bring mask, which Mask would draw at random, got y only"):
        emfast.train(small(tmp_path / "run", operator=Mask(missing=0.5)), observations=IMAGES)


def test_an_operator_that_draws_is_none_for_a_file_of_observations(tmp_path):
    """Masks of a seed are not those that made somebody's file: reconstructions would be wrong without a word."""
    path, mask = tmp_path / "y.npz", (torch.rand(12, 1, 8, 8) > 0.5).float()
    save_observations(path, IMAGES * mask)
    for operator in (Mask(missing=0.5), MotionBlur(5)):
        with pytest.raises(ValueError, match=r"y\.npz to bring .*, which .* would draw at random, got y only"):
            Observations.from_file(path, operator)
    save_observations(path, IMAGES * mask, {"mask": mask})
    assert torch.equal(Observations.from_file(path, Mask(missing=0.5)).mask(torch.arange(12)), mask)


def test_a_run_of_another_operator_or_other_masks_is_not_gone_on_with(tmp_path):
    """Code that was mended since, and masks in the middle of a file: nothing in the config tells of either."""

    def linear(shift):
        return Linear(lambda x: 0.5 * (x + x.roll(shift, -1)), shape=(1, 8, 8))

    mask = (torch.rand(12, 1, 8, 8) > 0.5).float()
    given, other = {"y": IMAGES * mask, "mask": mask}, torch.cat((mask[:5], 1 - mask[5:6], mask[6:]))
    for name, known, changed in (
        ("a", (linear(1), IMAGES), (linear(2), IMAGES)),
        ("b", (Mask(), given), (Mask(), {**given, "mask": other})),
    ):
        for operator, observations in (known, known):
            emfast.train(small(tmp_path / name, operator=operator), observations=observations)
        with pytest.raises(ValueError, match=r"the operator of .* to be as when it began, got something else"):
            emfast.train(small(tmp_path / name, operator=changed[0]), observations=changed[1])


def test_another_model_is_not_gone_on_with(tmp_path):
    model, other = Denoiser(Network(), VPSchedule.linear()), Denoiser(Network(), VPSchedule.linear())
    for _ in range(2):
        emfast.train(small(tmp_path), images=IMAGES, model=model)
    with pytest.raises(ValueError, match=r"the initial model of .* to be as when it began, got something else"):
        emfast.train(small(tmp_path), images=IMAGES, model=other)


def test_images_in_other_units_are_refused(tmp_path):
    for images in ((IMAGES + 1) / 2, 255 * IMAGES):
        with pytest.raises(ValueError, match=r"images to be in \[-1, 1\], got values from .* Scale them"):
            emfast.train(small(tmp_path), images=images)


def test_a_unet_with_a_schedule_of_its_own_is_shown_observations(tmp_path):
    """Further channels are made for that, in training, after every round, and when it is loaded again."""
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    sizes = {"sample_size": 8, "block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
    unet = UNet2DModel(in_channels=1, out_channels=1, add_attention=False, **kinds, **sizes)
    own = Denoiser(unet, VPSchedule.linear())
    config = small(tmp_path, sampler=Conditional(steps=2), operator=Mask(missing=0.5), final_rounds=1)
    folder = emfast.train(config, images=IMAGES, network=own)
    assert own.condition == 0
    assert load_network(folder, own).condition > 0


@pytest.mark.parametrize("block", [torch.autocast("cpu", torch.bfloat16), torch.device("meta")])
def test_what_the_caller_has_set_changes_nothing(block, tmp_path):
    plain = emfast.train(small(tmp_path / "plain"), images=IMAGES)
    with block:
        folder = emfast.train(small(tmp_path / "inside"), images=IMAGES)
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (folder / file).read_bytes() == (plain / file).read_bytes()
