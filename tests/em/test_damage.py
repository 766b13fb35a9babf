"""Damage to the models and reconstructions of a run: found, named, and put right by what the sentence says."""

import shutil

import pytest
import torch
from tiny_run import one_sentence, train

from emfast._files import read_tensors
from emfast.em.model import damaged_file

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def flip(path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 4] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder) == 0
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """The same run once more; its config knows where it lies."""
    shutil.copytree(whole / "run", tmp_path / "run")
    return tmp_path


def same_model(whole, folder):
    expected, found = (read_tensors(path / "run" / "model" / WEIGHTS) for path in (whole, folder))
    return damaged_file(folder / "run" / "model") is None and all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", [WEIGHTS, "unet/config.json", "scheduler/scheduler_config.json", "emfast.json"])
def test_a_damaged_published_model_is_written_again(damage, name, whole, folder):
    damage(folder / "run" / "model" / name)
    assert train(folder) == 0
    assert same_model(whole, folder)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_of_an_earlier_round_is_named_and_made_again(damage, whole, folder, capsys):
    rounds = folder / "run" / "rounds"
    shutil.rmtree(rounds / "002")  # so that the model of round 1 is read
    damage(rounds / "001" / "model" / WEIGHTS)
    assert train(folder) == 2
    assert one_sentence(capsys.readouterr().err, [WEIGHTS, "as it was written", f"Delete {rounds / '001'}"])
    shutil.rmtree(rounds / "001")
    assert train(folder) == 0
    assert same_model(whole, folder)


def test_lost_reconstructions_are_named(folder, capsys):
    config = ["--sampler.steps", "3"]
    rounds = folder / "run" / "rounds"
    shutil.rmtree(rounds / "002")
    shutil.rmtree(rounds / "001" / "reconstructions")
    assert train(folder, *config) == 2
    assert one_sentence(capsys.readouterr().err, ["reconstructions to be there", f"Delete {rounds / '001'}"])
