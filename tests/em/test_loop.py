"""Whole runs: what they leave behind, their plan, and what they refuse."""

import dataclasses
import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from tiny_run import snapshot, train

from emfast.config import Config, EStepConfig
from emfast.data import store
from emfast.em import load_model
from emfast.em.plan import next_phase


def rows(*rounds):
    first = {"phase": "initial", "scale": None}
    return [first, *({"phase": phase, "scale": scale} for phase, scale in rounds)]


CONFIG = Config(rounds=8, final_rounds=2, e_step=EStepConfig(scales=[1.0, 10.0, 20.0]))


@pytest.mark.parametrize(
    ("scales", "phase"),
    [
        ([], "warm"),
        ([20, 20, 20], "warm"),
        ([20, 20, 20, 20], "final"),  # has not fallen for 3 rounds
        ([20, 10, 20, 10], "warm"),
        ([20, 10, 20, 10, 10], "final"),
        ([20, 20, 20, 10], "warm"),
        ([20, 10, 1, 1], "warm"),
        ([20, 0.5], "final"),  # below 1
        ([70, 60, 50, 40, 30, 20, 10, 5], "final"),  # all warm rounds done
    ],
)
def test_the_switch_rule(scales, phase):
    assert next_phase(rows(*(("warm", s) for s in scales)), CONFIG) == phase


def test_the_plan_ends():
    done = rows(("warm", 0.5), ("final", 1), ("final", 1))
    assert next_phase(done, CONFIG) is None
    assert next_phase(done, dataclasses.replace(CONFIG, final_rounds=3)) == "final"
    stay = dataclasses.replace(CONFIG, switch=False)
    assert next_phase(rows(("warm", 0.5)), stay) == "warm"
    assert next_phase(rows(("warm", None)), dataclasses.replace(CONFIG, rounds=1, final_rounds=0)) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    flags = ("--e_step.scales", "[0.1, 1.0]", "--e_step.scale_images", "4", "--data.reference", "auto")
    assert train(folder, *flags) == 0
    return folder / "run"


def test_what_a_run_leaves(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["initial", "warm", "final"]
    assert [line["observations"] for line in lines] == [0, 16, 24]
    for line in lines[1:]:
        assert line["psnr"] > 0
        assert line["scale"] in (0.1, 1.0)
        assert 0 < line["network_evaluations"] <= 6
        assert line["features"] == "fashion-mnist"
    assert not list(run.rglob("training.safetensors"))
    assert not list(run.glob("rounds/*/samples"))
    assert not list(run.rglob(".tmp-*"))


def test_a_warm_started_run(tmp_path):
    flags = ("--e_step.warm_start", "1.0", "--e_step.batch_size", "auto", "--rounds", "2", "--sampler.steps", "9")
    assert train(tmp_path, *flags) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    cold, warm, final = (line["network_evaluations"] for line in lines[1:])
    assert cold == 18
    assert warm < 18  # those of the 16 that were in round 1
    assert final < 18
    assert json.loads((tmp_path / "run" / "batch_size.json").read_text())["batch_size"] == 16


def test_the_model_opens_with_diffusers(run):
    pipeline = DDPMPipeline.from_pretrained(run / "model")
    last = DDPMPipeline.from_pretrained(run / "rounds" / "002" / "model")
    ours = pipeline.unet.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in last.unet.state_dict().items())
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 12, 12, 1)
    denoiser, shape = load_model(run / "model")
    assert shape == (1, 12, 12)
    assert denoiser(torch.zeros(1, 1, 12, 12), 5).shape == (1, 1, 12, 12)


@pytest.mark.parametrize("left", [None, 0, 1])
def test_lost_metrics_are_written_again(run, left):
    path = run / "metrics.jsonl"
    expected = path.read_text()
    path.unlink()
    if left is not None:  # as a kill between the row of a round and this file leaves it
        path.write_text("".join(expected.splitlines(keepends=True)[:left]))
    assert train(run.parent, "--e_step.scales", "[0.1, 1.0]", "--e_step.scale_images", "4") == 0
    assert path.read_text() == expected


def test_a_shard_is_verified_once(tmp_path, monkeypatch):
    verified = store.verified
    seen = []
    monkeypatch.setattr(store, "verified", lambda path: seen.append(path) or verified(path))
    flags = ("--rounds", "2", "--final_rounds", "0", "--e_step.warm_start", "0.5", "--evaluation.samples", "0")
    assert train(tmp_path, "--sampler", "MMPS", "--sampler.steps", "2", "--switch", "false", *flags) == 0
    assert len(seen) == len(set(seen)) == 4


def test_the_same_command_again_changes_nothing(run):
    before = snapshot(run / "rounds")
    assert train(run.parent, "--e_step.scales", "[0.1, 1.0]", "--e_step.scale_images", "4") == 0
    after = snapshot(run / "rounds")
    assert {k: v[0] for k, v in before.items() if k.endswith((".safetensors", ".json"))} == {
        k: v[0] for k, v in after.items() if k.endswith((".safetensors", ".json"))
    }


@pytest.mark.parametrize("bare", [False, True])
def test_any_diffusers_unet_is_an_initial_model(tmp_path, bare):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=12,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    if bare:
        unet.save_pretrained(tmp_path / "model")
        DDPMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    else:
        DDPMPipeline(unet, DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(tmp_path / "model")
    assert train(tmp_path, "--model", str(tmp_path / "model"), "--final_rounds", "1") == 0
    start, _ = load_model(tmp_path / "run" / "rounds" / "000" / "model")
    assert all(torch.equal(value, start.network.state_dict()[name]) for name, value in unet.state_dict().items())
    schedule = load_model(tmp_path / "run" / "model")[0].schedule
    assert float(schedule.alphas_cumprod[500]) == pytest.approx(0.0782 if bare else 0.4938, abs=0.01)


def test_clean_images_are_not_among_the_observations(tmp_path):
    from emfast.config import DataConfig
    from emfast.em.inputs import read_inputs

    inputs = read_inputs(Config(data=DataConfig(clean_count=50, size=8)))
    assert len(inputs.observations) == 4950
    assert len(inputs.clean) == 50
    every = {image.numpy().tobytes() for image in inputs.observations.images}
    assert sum(image.numpy().tobytes() in every for image in inputs.clean) == 0
