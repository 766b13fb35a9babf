"""What a sampler's call takes, and its sentences about what it does not."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

import emfast
from emfast.diffusion import Denoiser, VPSchedule
from emfast.operators import Downsample, GaussianBlur, Given, Identity, Linear, Mask, MotionBlur
from emfast.samplers import DAPS, DPS, MMPS, DiffPIR, PiGDM, Prior, ReverseFromObservation, Sampler, WarmStart


class Tiny(nn.Module):
    """Takes images of every size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x).tanh()


def denoiser(network=None):
    torch.manual_seed(0)
    return Denoiser(network or Tiny(), VPSchedule.linear())


def unet(levels):
    torch.manual_seed(0)
    return UNet2DModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,) * levels,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=4,
        layers_per_block=1,
    )


OPERATORS = [
    Mask(missing=0.5),
    Mask(torch.eye(8)),
    Mask(np.eye(8)),
    Mask(box=3),
    Given(Mask(), {"mask": torch.eye(8).expand(9, 8, 8)}),
    GaussianBlur(size=3, std=1.0),
    MotionBlur(size=3),
    Downsample(2),
    Identity(),
    Linear(lambda x: x.flatten(2)[..., ::3], shape=(1, 8, 8)),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)
@pytest.mark.parametrize("ids", [None, torch.tensor(7), torch.tensor([7])])
def test_one_observation_without_a_batch_is_one_image(operator, ids):
    x = torch.rand(1, 8, 8) * 2 - 1
    batch = ids if ids is None else ids.reshape(1)
    y = operator.observe(x, 0.1, ids=ids)
    assert torch.equal(y, operator.observe(x[None], 0.1, ids=batch)[0])
    sampler = DPS(steps=2)
    alone = sampler(denoiser(), y, operator, sigma=0.1, ids=ids)
    assert torch.equal(alone, sampler(denoiser(), y[None], operator, sigma=0.1, ids=batch)[0])
    assert alone.shape == (1, 8, 8)


def test_a_warm_start_of_one_image():
    y, before = torch.zeros(1, 8, 8), torch.zeros(1, 1, 8, 8)
    x = WarmStart(MMPS(steps=3), before, torch.tensor([0]), noise=1.0)(denoiser(), y, Identity(), sigma=0.1)
    assert x.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("y", "operator", "words"),
    [
        (torch.zeros(8, 8), Identity(), ["to be images (B, C, H, W), or one (C, H, W)", "got (8, 8)"]),
        (torch.zeros(2, 1, 1, 8, 8), Mask(missing=0.5), ["to be images", "(2, 1, 1, 8, 8)"]),
        (torch.zeros(2, 1, 8, 8), Linear(lambda x: x[..., ::2], (1, 8, 8)), ["<lambda>", "(1, 8, 4)", "got (1, 8, 8)"]),
        ([[0.0]], Identity(), ["y", "a floating-point tensor"]),
        (torch.zeros(2, 1, 8, 8), "Identity", ["operator", "an emfast Operator, or a function of images"]),
    ],
)
def test_observations_that_do_not_fit(y, operator, words):
    with pytest.raises((TypeError, ValueError)) as error:
        DPS(steps=2)(denoiser(), y, operator)
    assert all(word in str(error.value) for word in words), error.value


def test_a_bare_network():
    with pytest.raises(TypeError, match=r"DPS: expected denoiser to be an emfast Denoiser, got Tiny. Give Denoiser\("):
        DPS()(Tiny(), torch.zeros(2, 1, 8, 8), Identity())


SAMPLERS = [DPS(steps=2), MMPS(steps=2), PiGDM(steps=2), DiffPIR(steps=2), DAPS(steps=2), Prior(steps=2)]


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize(("sides", "levels", "multiple"), [((31, 31), 3, 4), ((45, 37), 2, 2), ((24, 20), 4, 8)])
def test_sides_that_the_network_cannot_halve(sides, levels, multiple, accelerated):
    network = emfast.accelerate(unet(levels)) if accelerated else unet(levels)
    with pytest.raises(ValueError, match="images to have sides") as error:
        DPS(steps=2)(denoiser(network), torch.zeros(2, 1, *sides), Mask(missing=0.5))
    text = f"DPS: expected images to have sides that are multiples of {multiple}, for the network halves its images"
    assert str(error.value).startswith(f"{text}, got {sides[0]} x {sides[1]}. ")


@pytest.mark.parametrize("sampler", [*SAMPLERS, ReverseFromObservation(steps=2)], ids=lambda s: type(s).__name__)
def test_every_sampler_says_so(sampler):
    name = type(sampler).__name__
    with pytest.raises(ValueError, match=f"{name}: expected images to have sides that are multiples of 2, .* 9 x 9"):
        sampler(denoiser(unet(2)), torch.zeros(2, 1, 9, 9), Identity(), sigma=0.1)


class Failing(nn.Module):
    def forward(self, x, t):
        raise RuntimeError("of another kind")


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match=r"^of another kind$"):
        DPS(steps=2)(denoiser(Failing()), torch.zeros(2, 1, 9, 9), Identity())
    with pytest.raises(ValueError, match=r"^of the operator$"):
        DPS(steps=2)(denoiser(unet(2)), torch.zeros(2, 1, 8, 8), Raising())


class Raising(Identity):
    def misfit(self, x, y, parameters):
        raise ValueError("of the operator")


def test_a_mask_as_the_first_argument():
    mask = torch.eye(8)
    given = Mask(mask, seed=1)
    assert torch.equal(given.mask, Mask(mask=mask).mask)
    assert given.missing is None
    assert torch.equal(Mask(mask.bool()).mask, given.mask)
    with pytest.raises(ValueError, match="expected one of missing, box and mask to be given, got box and mask"):
        Mask(mask, box=3)


class Returns(Sampler):
    steps = 2
    value = None

    def estimate(self, problem, x_t, k):
        return self.value


ODD = {
    "float ids": (lambda **options: MMPS(steps=2)(ids=torch.rand(2), **options), "ids to be .* one id per image"),
    "list of ids": (lambda **options: MMPS(steps=2)(ids=[0, 1], **options), "ids to be a tensor"),
    "infinite sigma": (lambda **options: MMPS(steps=2)(sigma=float("inf"), **options), "sigma to be <= 1000"),
    "no observation": (lambda y, **options: MMPS(steps=2)(y=y[:0], **options), "at least one observation"),
    "other channels": (lambda y, **options: MMPS(steps=2)(y=y.repeat(1, 3, 1, 1), **options), "images to have 1 chann"),
    "estimate": (lambda **options: Returns()(**options), "Returns: expected estimate to return a tensor, got None"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_makes_no_sense_is_said_in_the_call(name):
    call, words = ODD[name]
    with pytest.raises((TypeError, ValueError), match=words):
        call(denoiser=denoiser(unet(2)), y=torch.zeros(2, 1, 8, 8), operator=Mask(missing=0.5))


@pytest.mark.parametrize("value", [None, {"sample": 1}, torch.zeros(2, 1, 8, 4), torch.zeros(1, 1, 8, 8)])
def test_what_a_network_may_return(value):
    with pytest.raises((TypeError, ValueError), match="Denoiser: expected the network's output to"):
        DPS(steps=2)(denoiser(lambda x, t: value), torch.zeros(2, 1, 8, 8), Mask(missing=0.5))


@pytest.mark.parametrize("sampler", [MMPS(steps=3), DPS(steps=3), PiGDM(steps=3), DiffPIR(steps=3), DAPS(steps=3)])
def test_an_observed_value_that_is_not_finite_spoils_the_image(sampler):
    """It is not to pass for an observation that says nothing: the E-step names such an image in the end."""
    y = torch.zeros(2, 1, 4, 4)
    y[0, 0, 1, 1] = torch.nan
    x = sampler(Denoiser(lambda x, t: 0.3 * x, VPSchedule.linear()), y, Identity(), sigma=0.1)
    assert not x[0].isfinite().all()
    assert x[1].isfinite().all()


@pytest.mark.parametrize("sampler", [MMPS(steps=2), DPS(steps=2), PiGDM(steps=2)])
def test_inference_mode_leaves_no_gradients_to_take(sampler):
    denoiser = Denoiser(lambda x, t: 0.3 * x, VPSchedule.linear())
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        sampler(denoiser, torch.zeros(1, 1, 4, 4), Identity(), sigma=0.1)
