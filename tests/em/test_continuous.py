"""EM without rounds: what it leaves, and that interruptions, lost pieces and processes change nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from contracts import rms_norm
from tiny_run import snapshot, write_config

from emfast._files import read_json, read_tensors
from emfast.commands.parser import parse
from emfast.config import Config
from emfast.data.store import Store
from emfast.em import train
from emfast.em.trainer import Trainer

FLAGS = (
    *("--schedule", "continuous", "--rounds", "3", "--final_rounds", "0", "--gaussian.always", "true"),
    *("--e_step.parts", "3", "--e_step.shard_size", "4", "--m_step.steps", "5", "--m_step.checkpoint", "2"),
    *(
        "--m_step.optimizer",
        "muon",
        "--m_step.learning_rate",
        "1e-2",
        "--m_step.warmup",
        "2",
        "--m_step.decay",
        "0.3",
        "--gaussian.rounds",
        "2",
    ),
    *("--m_step.noise_levels", "log-normal", "--m_step.schedule_share", "0.2", "--network.prediction", "v"),
    *("--sampler", "DPS", "--sampler.steps", "4", "--evaluation.samples", "0", "--accelerate", "false"),
)
STATES = ("rounds/002/training.safetensors", "rounds/003/training.safetensors")


def continuous(folder, *flags):
    """Trains."""
    folder.mkdir(exist_ok=True)
    train(parse("train", Config, ["--config", str(write_config(folder)), *FLAGS, *flags])[0])


def tensors(run):
    """What a run leaves, by file, but for the seconds."""
    return {
        (path.relative_to(run), name): value
        for path in sorted(run.rglob("*.safetensors"))
        for name, value in read_tensors(path).items()
        if name != "seconds"
    }


def test_its_models_note_their_images(whole):
    for model in ("model", "rounds/000/model", "rounds/003/model"):
        assert read_json(whole / "run" / model / "emfast.json")["shape"] == [1, 12, 12]


def equal(one, two):
    first, second = tensors(one / "run"), tensors(two / "run")
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    continuous(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """The same run once more."""
    shutil.copytree(whole / "run", tmp_path / "run")
    return tmp_path


def test_what_a_run_leaves(whole):
    rows = [json.loads(line) for line in (whole / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["initial", "warm", "warm", "warm"]
    assert [row["observations"] for row in rows] == [24] * 4  # the first are reconstructions under a Gaussian
    assert all(row["psnr"] > 0 and row["seconds_m_step"] > 0 for row in rows)
    states = sorted(str(path.relative_to(whole / "run")) for path in whole.rglob("training.safetensors"))
    assert states == sorted(STATES)


def test_optimizer_and_average_last(whole):
    one, two = (read_tensors(whole / "run" / name) for name in STATES)
    assert (one["optimizer/0/step"], two["optimizer/0/step"]) == (14, 19)  # 4 initial steps, 5 a round
    assert not torch.equal(one["average/0"], two["average/0"])
    model = read_tensors(whole / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(torch.equal(value, two["average/0"]) for value in model.values())


def test_every_part_is_made_by_the_model_of_its_moment(whole, tmp_path):
    """Of a run without training steps between the parts the reconstructions of all but the first differ."""
    continuous(tmp_path, "--e_step.parts", "1", "--rounds", "1", "--m_step.decay", "0")
    continuous(tmp_path / "parts", "--rounds", "1", "--m_step.decay", "0")
    one, two = (
        Store.open(path / "run" / "rounds" / "001" / "reconstructions").load()
        for path in (tmp_path, tmp_path / "parts")
    )
    assert torch.equal(one[:8], two[:8])
    assert not torch.equal(one[8:], two[8:])


def test_interruptions_change_nothing(whole, tmp_path, monkeypatch):
    left, updates, writes = [0], Trainer.update, Store.write

    def counted(method):
        def call(self, *arguments):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            method(self, *arguments)

        return call

    monkeypatch.setattr(Trainer, "update", counted(updates))
    monkeypatch.setattr(Store, "write", counted(writes))
    for moment in (3, 6, 12, 9, 8):
        left[0] = moment
        with pytest.raises(KeyboardInterrupt):
            continuous(tmp_path)
    continuous(tmp_path)
    assert equal(whole, tmp_path)


@pytest.mark.parametrize("lost", ["reconstructions/shard-00001.safetensors", "training.safetensors", "model", "."])
def test_lost_pieces_of_the_last_round_are_made_again(lost, whole, folder):
    last = folder / "run" / "rounds" / "003"
    for name in ("row.json", lost):
        path = last / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if lost != "." and lost != "model":
        shutil.rmtree(last / "model")
    continuous(folder)
    assert equal(whole, folder)


def test_lost_pieces_of_earlier_rounds_are_named(whole, folder):
    for path in ("rounds/003", "rounds/002/training.safetensors"):
        path = folder / "run" / path
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=r"002/training.safetensors .* begin anew"):
        continuous(folder)
    shutil.copy(whole / "run" / STATES[0], folder / "run" / STATES[0])
    (folder / "run" / "rounds" / "002" / "reconstructions" / "shard-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"002/reconstructions to be whole, .* Delete"):
        continuous(folder)


def test_the_same_command_again_changes_nothing(folder):
    before = snapshot(folder / "run" / "rounds")
    continuous(folder)
    assert snapshot(folder / "run" / "rounds") == before


@pytest.mark.parametrize(
    ("flag", "value"),
    [("e_step.shard_size", "5"), ("rounds", "4"), ("m_step.decay", "0")],
)
def test_what_may_not_change(flag, value, folder):
    with pytest.raises(ValueError, match=f"expected {flag} to stay"):
        continuous(folder, f"--{flag}", value)


def test_a_given_model_and_rounds_from_scratch(whole, tmp_path):
    model = ("--model", str(whole / "run" / "model"), "--rounds", "1", "--final_rounds", "1")
    continuous(tmp_path, *model)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["initial", "warm", "final"]


def test_two_processes_end_with_the_same_model(whole, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "emfast", "train", "--config", str(write_config(tmp_path)), *FLAGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    one, two, first = (
        torch.cat([value.flatten() for value in read_tensors(path / "run" / name).values()])
        for path, name in ((whole, weights), (tmp_path, weights), (whole, f"rounds/001/{weights}"))
    )
    assert rms_norm(two - one) <= rms_norm(first - one) / 100  # by rounding alone
