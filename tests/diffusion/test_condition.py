"""Networks that are shown observations: the prior in them is a model of diffusers as ever."""

import copy

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from emfast.diffusion import Denoiser, TiledDenoiser
from emfast.diffusion.condition import FILE, conditioned, parted
from emfast.em import load_model, prepare
from emfast.em.model import reinitialise, save_model

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SHOWN = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def build():
    """A denoiser and its scheduler."""
    scheduler = DDPMScheduler(num_train_timesteps=100)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
        )
    return Denoiser(network, scheduler, multiple=2).eval(), scheduler


def trained():
    """A conditional denoiser whose further weights are not zero, and its scheduler."""
    denoiser, scheduler = build()
    conditioned(denoiser, 3)
    with torch.no_grad():
        denoiser.network.conv_in.weight[:, 1:] = 0.3
    return denoiser, scheduler


def test_it_begins_as_the_network_without():
    plain, wide = build()[0], conditioned(build()[0], 3)
    assert wide.condition == 3
    assert conditioned(wide, 3) is wide
    torch.testing.assert_close(wide(X, 5.0), plain(X, 5.0))
    torch.testing.assert_close(wide(X, 5.0, condition=SHOWN), plain(X, 5.0))


def test_the_network_without_is_in_it():
    denoiser, _ = trained()
    network, weight = parted(denoiser.network, 3)
    assert network.config.in_channels == 1
    assert torch.equal(weight, torch.full_like(weight, 0.3))
    torch.testing.assert_close(Denoiser(network, denoiser.schedule)(X, 5.0), denoiser(X, 5.0))
    assert not torch.allclose(denoiser(X, 5.0, condition=SHOWN), denoiser(X, 5.0))


@pytest.mark.parametrize("fast", [False, True])
def test_its_folder_is_a_model_of_diffusers(fast, tmp_path):
    denoiser, scheduler = trained()
    expected = denoiser(X, 5.0), denoiser(X, 5.0, condition=SHOWN)
    save_model(prepare(denoiser, torch.device("cpu"), "float32", fast=fast), scheduler, tmp_path / "model")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(Denoiser(pipeline)(X, 5.0), expected[0])
    for again in (load_model(tmp_path / "model")[0], Denoiser.from_pretrained(tmp_path / "model")):
        torch.testing.assert_close(again(X, 5.0), expected[0])
        torch.testing.assert_close(again(X, 5.0, condition=SHOWN), expected[1])
    assert load_model(tmp_path / "model")[1] == (1, 8, 8)
    (tmp_path / "model" / FILE).write_bytes(b"no")
    with pytest.raises(ValueError, match=FILE):
        load_model(tmp_path / "model")


def test_new_weights_begin_without():
    denoiser, scheduler = trained()
    renewed = reinitialise(denoiser, scheduler, 1)
    assert renewed.condition == 3
    assert not renewed.network.conv_in.weight[:, 1:].any()
    assert not torch.equal(renewed.network.conv_in.weight[:, :1], denoiser.network.conv_in.weight[:, :1])


def test_tiles_see_their_part_of_the_observation():
    denoiser, _ = trained()
    torch.testing.assert_close(TiledDenoiser(denoiser, 8)(X, 5.0, condition=SHOWN), denoiser(X, 5.0, condition=SHOWN))
    x, shown = X.repeat(1, 1, 2, 1), SHOWN.repeat(1, 1, 2, 1)
    leaf = x.clone().requires_grad_()
    tiled = TiledDenoiser(denoiser, 8, overlap=0)(leaf, 5.0, condition=shown)
    torch.testing.assert_close(tiled[:, :, 8:], denoiser(X, 5.0, condition=SHOWN))
    (gradient,) = torch.autograd.grad(tiled.sum(), leaf)
    assert gradient.shape == x.shape


def test_what_does_not_fit_is_said():
    denoiser, _ = trained()
    with pytest.raises(ValueError, match="expected the network to be shown 2 channels, got 3"):
        denoiser(X, 5.0, condition=SHOWN[:, :2])
    with pytest.raises(ValueError, match="expected the network to be shown 3 channels, got 0"):
        build()[0](X, 5.0, condition=SHOWN)
    with pytest.raises(ValueError, match="expected the model to be shown observations of 2 channels, got 3 of them"):
        conditioned(copy.deepcopy(denoiser), 2)
    with pytest.raises(ValueError, match="expected the network to be a UNet2DModel"):
        conditioned(Denoiser(torch.nn.Conv2d(1, 1, 1), denoiser.schedule), 3)
