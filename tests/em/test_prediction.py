"""What a run says before it begins, and that saying it changes nothing; the presets of its sizes."""

from pathlib import Path

import pytest
import torch
from tiny_run import train as run_command
from tiny_run import write_config

import emfast
from emfast._files import read_tensors
from emfast.cli import main
from emfast.commands.parser import parse
from emfast.config import Config, DataConfig
from emfast.diffusion import Denoiser
from emfast.em import Predicted, train
from emfast.em.model import build_model
from emfast.em.prediction import predict, rate
from emfast.presets import NAMES, preset, shape_of

SMALL = ("--final_rounds", "0", "--accelerate", "false", "--evaluation.samples", "0", "--network.dropout", "0.2")


def run(folder, callback=None):
    folder.mkdir()
    return train(parse("train", Config, ["--config", str(write_config(folder)), *SMALL])[0], callback)


def test_the_prediction_comes_first_and_changes_nothing(tmp_path):
    events = []
    torch.manual_seed(0)
    told = run(tmp_path / "told", events.append)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    silent = run(tmp_path / "silent")
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (read_tensors(path / "unet/diffusion_pytorch_model.safetensors") for path in (told, silent))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    found = events[0]
    assert isinstance(found, Predicted)
    assert found.parameters == sum(value.numel() for value in first.values())
    assert found.rounds == 1
    assert sum(found.seconds.values()) > 0
    assert found.total > sum(found.seconds.values())
    assert sum(isinstance(event, Predicted) for event in events) == 1
    again = []
    run_again = parse("train", Config, ["--config", str(tmp_path / "told/config.yaml"), *SMALL])[0]
    train(run_again, again.append)
    assert again == []


@pytest.mark.parametrize(("schedule", "held_out"), [("rounds", 0), ("continuous", 0), ("continuous", 16)])
def test_it_predicts_what_the_run_takes(tmp_path, monkeypatch, schedule, held_out):
    """On a clock that only the network moves: a call takes a tenth of a second, each image a tenth of that."""
    now, raw, marks = [0.0], Denoiser.raw, []

    def slow(self, x, time, condition=None):
        now[0] += 0.1 + len(x) / 100
        return raw(self, x, time, condition)

    def clock():
        return now[0]

    def follow(event):
        marks.append((event, now[0]))

    monkeypatch.setattr(Denoiser, "raw", slow)
    monkeypatch.setattr("emfast.em.loop.predict", lambda run: predict(run, clock))
    monkeypatch.setattr("emfast.em.held_out.MEASURED", 1)  # in one way, which takes least
    data = {"size": 12, "limit": 96 + held_out, "held_out": held_out, "clean_count": 16, "reference": None}
    steps = {"initial_steps": 3, "steps": 8, "final_steps": 4, "batch_size": 32, "checkpoint": 100}
    changes = {"data": data, "m_step": steps, "schedule": schedule, "rounds": 2, "final_rounds": 0}
    changes |= {"e_step": {"batch_size": 48, "shard_size": 48, "parts": 2, "warm_start": 1.0}}
    changes |= {"evaluation": {"samples": 32, "steps": 4, "pictures": 4}}
    changes["sampler"] = {"class_path": "MMPS", "init_args": {"steps": 8, "iterations": 1}}
    train(parse("train", Config, ["--config", str(write_config(tmp_path, **changes))])[0], follow)
    (told, begin), *_ = marks
    taken, pieces = now[0] - begin, sum(told.seconds.values())
    assert told.total == pytest.approx(taken, rel=0.07)
    assert pieces == pytest.approx(taken / 2, rel=0.4)


def test_a_batch_that_takes_too_long_is_not_timed():
    asked = []

    def seconds(size):
        asked.append(size)
        return size * each

    for each, sizes in ((0.01, [16, 64]), (0.1, [16])):
        asked.clear()
        found = rate(seconds, 64)
        assert asked == sizes
        assert found == (each, sizes[-1])


def test_a_batch_for_which_there_is_no_memory_is_halved():
    def seconds(size):
        if size > 20:
            raise torch.OutOfMemoryError
        return size * 0.01

    assert rate(seconds, 64, 64) == (0.01, 16)
    with pytest.raises(torch.OutOfMemoryError):
        rate(lambda size: seconds(size + 20), 64, 64)


def test_the_line_says_what_to_lower():
    seconds = {"e-step": 7200.0, "m-step": 120.0, "evaluation": 0.3}
    text = str(Predicted(35_700_000, 2_300_000_000, "cpu", seconds, 8, 90000.0, "sampler.steps"))
    assert text == (
        "35.7 million parameters, 2.3 GB of memory, about 2.0 h a round (e-step 2.0 h, m-step 2.0 min, evaluation "
        "under 1 s), 25.0 h in all on cpu. If that is too long, lower sampler.steps, or try --preset tiny."
    )


def test_the_command_prints_it(tmp_path, capsys):
    assert run_command(tmp_path, *SMALL, "--rounds", "0") == 0
    assert capsys.readouterr().out.startswith("0.0 million parameters, ")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 45, 37)])
def test_presets_fit_the_images(shape):
    config = Config.with_preset("tiny", shape, output="x")
    denoiser, _ = build_model(config.network, shape, 0)
    assert denoiser(torch.zeros(1, *shape), torch.zeros(1)).shape == (1, *shape)
    for name in NAMES:
        channels = Config.with_preset(name, shape).network.channels
        assert min(-(-side // 2 ** (len(channels) - 1)) for side in shape[1:]) >= 3
        assert all(width % 32 == 0 for width in channels)


def test_the_preset_paper_is_the_config_of_the_paper():
    paper = Config.from_yaml(Path(__file__).parents[2] / "examples/cifar10_inpainting.yaml")
    found = Config.with_preset("paper", (3, 32, 32))
    assert found.network == paper.network
    assert found.m_step == paper.m_step


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_presets_but_for_that_of_the_paper_are_em_without_rounds(name):
    demo = Config.from_yaml(Path(__file__).parents[2] / "examples/demo.yaml")
    found = Config.with_preset(name, (3, 32, 32))
    assert (found.schedule, found.final_rounds, found.gaussian.always) == ("continuous", 0, "auto")
    assert found.network.prediction == demo.network.prediction
    assert found.e_step.warm_start == demo.e_step.warm_start
    same = ("optimizer", "decay", "noise_levels", "noise_mean", "noise_std", "schedule_share", "target_images")
    assert [getattr(found.m_step, key) for key in same] == [getattr(demo.m_step, key) for key in same]


def test_what_is_given_goes_before_a_preset(tmp_path):
    words = ["--preset", "tiny", "--data.size", "16", "--m_step.steps", "7", "--network.channels", "[8, 8]"]
    config, text = parse("train", Config, words)
    assert (config.m_step.steps, config.network.channels, config.preset) == (7, [8, 8], None)
    assert config.m_step.optimizer == "muon"
    (tmp_path / "config.yaml").write_text(text)
    assert Config.from_yaml(tmp_path / "config.yaml").to_yaml() == text
    (tmp_path / "short.yaml").write_text("preset: tiny\ndata: {size: 16}\nm_step: {steps: 7}\n")
    assert Config.from_yaml(tmp_path / "short.yaml").m_step == config.m_step


@pytest.mark.parametrize(
    ("name", "widths", "others"),
    [
        ("small", [16, 16], (4, [0], 16)),
        ("small", [48, 96, 144], (12, [0], 16)),
        ("small", [64, 128], (32, [0], 64)),  # what fits stays as it is
        ("tiny", [12], (3, [0], 4)),
        ("tiny", [30, 64], (2, [1], 32)),
    ],
)
def test_a_preset_follows_the_widths_that_are_given(name, widths, others):
    words = ["--preset", name, "--data.size", "16", "--network.channels", str(widths)]
    network = parse("train", Config, words)[0].network
    assert network.channels == widths
    assert (network.groups, network.attention, network.head_dim) == others
    build_model(network, (1, 16, 16), 0)
    assert parse("train", Config, [*words, "--network.groups", "1"])[0].network.groups == 1
    chosen = parse("train", Config, [*words, "--network.attention", "[-1]"])[0].network
    build_model(chosen, (1, 16, 16), 0)


def test_the_shape_is_that_of_the_data(tmp_path):
    path = tmp_path / "y.npz"
    emfast.data.save_observations(path, torch.zeros(4, 1, 9, 13), {"mask": torch.ones(4, 1, 9, 13)})
    assert shape_of({"observations": str(path)}) == (1, 9, 13)
    assert shape_of({"observations": str(path), "patch": 8})[1:] == (8, 8)
    assert shape_of({}) == (1, 28, 28)
    assert shape_of({"size": "12"})[1:] == (12, 12)


def test_a_preset_is_refused_where_it_means_nothing(capsys):
    with pytest.raises(ValueError, match=r"Write Config\.with_preset\('tiny', shape"):
        Config(preset="tiny", data=DataConfig(size=16))
    with pytest.raises(ValueError, match="one of tiny, small, paper"):
        preset("huge", (1, 8, 8))
    assert main(["train", "--preset", "tinny"]) == 2
    assert "one of tiny, small, paper" in capsys.readouterr().err
