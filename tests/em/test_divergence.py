"""A model that diverged is neither published nor read."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from tiny_run import one_sentence, train

from emfast.cli import main
from emfast.em import load_model
from emfast.em.model import load_pipeline, save_model
from emfast.evaluation.feature_spaces import read_weights

FIRST = ("--rounds", "0", "--final_rounds", "0", "--evaluation.samples", "0")


def test_a_diverged_run_publishes_nothing(tmp_path, capsys):
    assert train(tmp_path, *FIRST, "--m_step.learning_rate", "1e38") == 2
    assert one_sentence(capsys.readouterr().err, ["the loss to be finite", "at step", "Lower m_step.learning_rate"])
    assert not [p for p in (tmp_path / "run").rglob("*") if p.name == "model" or p.suffix == ".safetensors"]


def spoilt(folder, value, name="conv_in.bias"):
    """A model folder with one weight that is not finite."""
    torch.manual_seed(0)
    levels = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    size = {"sample_size": 12, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}
    unet = UNet2DModel(**levels, **size, layers_per_block=1, attention_head_dim=8)
    unet.get_parameter(name).data.view(-1)[1] = value
    unet.save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_model_that_is_not_finite_is_refused(value, tmp_path, capsys):
    folder = spoilt(tmp_path / "bad", value)
    assert train(tmp_path, *FIRST, "--model", str(folder)) == 2
    words = ["diffusion_pytorch_model.safetensors", "finite", "conv_in.bias"]
    assert one_sentence(capsys.readouterr().err, words)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"bad.*conv_in\.bias"):
        load_model(folder)
    assert main(["sample", str(folder), "--output", str(tmp_path / "images.npz")]) == 2
    assert one_sentence(capsys.readouterr().err, words)
    assert not (tmp_path / "images.npz").exists()


def test_a_model_that_is_not_finite_is_not_written(tmp_path):
    denoiser, scheduler, _ = load_pipeline(spoilt(tmp_path / "good", 0.0))
    save_model(denoiser, scheduler, tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    denoiser.network.conv_out.weight.data.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in conv_out\.weight"):
        save_model(denoiser, scheduler, tmp_path / "model")
    assert sorted(tmp_path.rglob("*")) == before
    load_model(tmp_path / "model")


def test_features_that_are_not_finite_are_refused(tmp_path):
    torch.save(
        {"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan]), "n": torch.ones(1, dtype=torch.long)},
        tmp_path / "w.pth",
    )
    with pytest.raises(ValueError, match=r"w\.pth to hold finite numbers, got NaN or infinity in b"):
        read_weights("f", tmp_path / "w.pth")
