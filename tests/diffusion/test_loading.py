"""Model folders: every form of weights that others write, and what is refused by name."""

import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import load_file, save_file
from tiny_run import one_sentence, train

from emfast.cli import main
from emfast.diffusion import Denoiser, EDMSchedule, FlowSchedule
from emfast.em import load_model
from emfast.em.model import load_pipeline, save_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def unet(**changes):
    """A U-Net with attention, as small as they get."""
    torch.manual_seed(0)
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "layers_per_block": 1}
    kinds = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
    return UNet2DModel(**{**size, **kinds, "attention_head_dim": 8, **changes}).eval()


@pytest.fixture
def folder(tmp_path):
    """The folder of a pipeline."""
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewritten(folder, change, name=WEIGHTS):
    """Writes the weights again, with other names or values."""
    path = folder / "unet" / WEIGHTS
    weights = change(load_file(path))
    path.unlink()
    save_file(weights, folder / "unet" / name)


def same(folder):
    """Whether the folder holds the U-Net of `unet`."""
    return torch.equal(load_model(folder)[0](X, 300), Denoiser(unet(), DDPMScheduler())(X, 300))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "base_model.model."])
def test_prefixes_of_wrappers_are_stripped(folder, prefix):
    rewritten(folder, lambda weights: {prefix + name: value for name, value in weights.items()})
    assert same(folder)


def test_names_inside_are_those_of_the_network(folder):
    """Compiled submodules, layers that an adapter stood around, and diffusers' names of attention before 2023."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def change(weights):
        for new, name in old.items():
            weights = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): v for key, v in weights.items()}
        weights["conv_in.base_layer.weight"] = weights.pop("conv_in.weight")
        weights["mid_block._orig_mod.resnets.0.conv1.weight"] = weights.pop("mid_block.resnets.0.conv1.weight")
        return weights

    rewritten(folder, change)
    assert any(".query." in name for name in load_file(folder / "unet" / WEIGHTS))
    assert same(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: {f"net.{name}": value for name, value in w.items()},
            ["missing", "(net.conv_in.bias, net.", "left over"],
        ),
        (lambda w: {name: v for name, v in w.items() if "conv_in" not in name}, ["2 (conv_in.bias, conv_in.weight) m"]),
        (lambda w: w | {"conv_in.lora_A.weight": torch.zeros(2)}, ["1 (conv_in.lora_A.weight) left over", "adapters"]),
        (lambda w: w | {"conv_in.bias": torch.zeros(3)}, ["conv_in.bias of", "shape (8,)", "got (3,)"]),
        (lambda w: w | {"module.conv_in.bias": torch.zeros(8)}, ["conv_in.bias once"]),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, words, tmp_path, capsys):
    rewritten(folder, change)
    assert main(["sample", str(folder), "--output", str(tmp_path / "images.npz")]) == 2
    assert one_sentence(capsys.readouterr().err, [*words, WEIGHTS])


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"max_shard_size": "20KB"}, {}])
def test_every_form_of_weights(tmp_path, options, safe):
    unet().save_pretrained(tmp_path, safe_serialization=safe, **options)
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    assert len(list(tmp_path.glob("*.index.json"))) == ("max_shard_size" in options)
    assert same(tmp_path)


def test_half_precision_becomes_float32(folder):
    rewritten(folder, lambda weights: {name: value.half() for name, value in weights.items()})
    assert {p.dtype for p in load_model(folder)[0].parameters()} == {torch.float32}


def test_files_that_are_missing_or_many_are_named(folder, tmp_path):
    for name in ("a", "b"):
        rewritten(folder, lambda weights: weights, f"diffusion_pytorch_model.{name}.safetensors")
        unet().save_pretrained(folder / "unet")
    (folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"one file of weights, got .*a\.safetensors, .*b\.safetensors"):
        load_model(folder)
    unet().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    DDPMScheduler().save_pretrained(tmp_path / "shards" / "scheduler")
    shard = sorted(tmp_path.glob("shards/*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} to be there"):
        load_model(tmp_path / "shards")
    for path in tmp_path.glob("shards/*model*"):
        path.unlink()
    with pytest.raises(ValueError, match=f"{WEIGHTS} to hold the weights, got no such file"):
        load_model(tmp_path / "shards")


def edited(path, **values):
    """Changes values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_not_understood_is_refused(folder, tmp_path, capsys):
    def refused(*words):
        assert main(["sample", str(folder), "--output", str(tmp_path / "images.npz")]) == 2
        assert one_sentence(capsys.readouterr().err, words)

    edited(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
    refused("model_index.json", "scheduler, unet, vqvae")
    (folder / "model_index.json").unlink()
    edited(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")
    refused("config.json", "UNet2DModel", "UNet2DConditionModel")
    edited(folder / "unet" / "config.json", _class_name="UNet2DModel")
    edited(folder / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler")
    refused("scheduler_config.json", "known scheduler", "LCMScheduler")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    refused("scheduler_config.json", "no such file", "DDPMScheduler(", "save_pretrained(")
    assert not (tmp_path / "images.npz").exists()


def test_a_unet_without_a_scheduler_needs_one(folder):
    """Beside it, in it, or given: nothing is guessed."""
    unet_folder = folder / "unet"
    assert load_model(unet_folder)[0].prediction == "eps"
    (folder / "scheduler").rename(unet_folder / "scheduler")
    assert load_model(unet_folder)[0].prediction == "eps"
    (unet_folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match="schedule and prediction, got no such file"):
        load_model(unet_folder)
    denoiser = Denoiser.from_pretrained(unet_folder, FlowSchedule())
    assert denoiser.prediction == "flow"
    assert not denoiser.training
    assert main(["info", "--model", str(unet_folder)]) == 0


def test_class_labels(folder, capsys):
    for name, changes in (("table", {"num_class_embeds": 3}), ("time", {"class_embed_type": "timestep"})):
        path = folder.parent / name
        DDPMPipeline(unet(**changes), DDPMScheduler()).save_pretrained(path)
        assert main(["sample", str(path)]) == 2
        assert one_sentence(capsys.readouterr().err, [name, "class labels", "from_pretrained"])
        denoiser = Denoiser.from_pretrained(path, labels=2)
        assert not torch.equal(denoiser(X, 300), denoiser.labelled(torch.tensor([1, 2]))(X, 300))


def test_a_pipeline_in_the_place_of_its_folder(folder):
    pipeline = DDPMPipeline.from_pretrained(folder)
    expected = load_model(folder)[0](X, 300)
    for denoiser in (Denoiser.from_pretrained(pipeline), Denoiser.from_pretrained(folder), Denoiser(pipeline)):
        assert torch.equal(denoiser(X, 300), expected)
    assert Denoiser(pipeline, EDMSchedule(), "x0").prediction == "x0"
    latent = LDMPipeline(VQModel(block_out_channels=(8,), norm_num_groups=4), unet(), DDIMScheduler())
    with pytest.raises(TypeError, match="LDMPipeline of scheduler, unet, vqvae"):
        Denoiser(latent)


def test_a_model_that_does_not_say_its_size(tmp_path, capsys):
    DDPMPipeline(unet(sample_size=None), DDPMScheduler()).save_pretrained(tmp_path / "model")
    argv = ["sample", str(tmp_path / "model"), "--count", "2", "--steps", "2", "--output", str(tmp_path / "x.npz")]
    assert main(argv) == 2
    assert one_sentence(capsys.readouterr().err, ["sample_size", "--size"])
    assert main([*argv, "--size", "12"]) == 0
    job = [
        "--operator.missing",
        "0.5",
        "--images",
        "sample:test",
        "--limit",
        "2",
        "--size",
        "8",
        "--sampler",
        "DPS",
        "--sampler.steps",
        "2",
    ]
    assert main(["restore", str(tmp_path / "model"), *job, "--output", str(tmp_path / "restored")]) == 0


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler(shift=2.0), EDMEulerScheduler(sigma_data=1.0)])
def test_a_run_from_any_schedule(scheduler, tmp_path):
    """Trained in its own parametrisation, and published as what it is."""
    DDPMPipeline(unet(), scheduler).save_pretrained(tmp_path / "model")
    flags = ("--data.size", "8", "--model", str(tmp_path / "model"), "--evaluation.samples", "0", "--data.limit", "8")
    assert train(tmp_path, *flags) == 0
    assert type(DDPMPipeline.from_pretrained(tmp_path / "run" / "model").scheduler) is type(scheduler)
    before, after = (load_pipeline(path / "model")[0] for path in (tmp_path, tmp_path / "run"))
    assert after.prediction == before.prediction
    assert vars(after.schedule).keys() == vars(before.schedule).keys()


def test_loading_takes_no_random_numbers(folder):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model(folder)
    assert torch.equal(torch.rand(1), expected)


def test_what_save_model_writes_is_read(tmp_path):
    network = unet(time_embedding_type="learned", num_train_timesteps=1000)
    denoiser = Denoiser(network, DDPMScheduler(prediction_type="v_prediction"))
    save_model(denoiser, DDPMScheduler(prediction_type="v_prediction"), tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model")[0](X, 299.7), denoiser(X, 299.7))
