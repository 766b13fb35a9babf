"""Damage to the models and reconstructions of a run: found, named, and put right by what the sentence says."""

import ctypes
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import one_sentence, train

from emfast._files import read_tensors
from emfast.em.m_step import Trainer
from emfast.em.model import damaged_file

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def flip(path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 4] ^= 1
    path.write_bytes(content)


def to_folder(path):
    """Puts a folder in the place of a file."""
    path.unlink()
    (path / "some").mkdir(parents=True)


def lock(path):
    """Takes the right to read a file away."""
    path.chmod(0)


@pytest.fixture(autouse=True)
def ordinary_rights():
    """Has the system ask for the rights on a file of the super-user too."""

    class Sets(ctypes.Structure):
        _fields_ = [(f"{name}{part}", ctypes.c_uint32) for part in (0, 1) for name in ("now", "most", "left")]

    libc, sets = ctypes.CDLL(None, use_errno=True), Sets()
    if os.geteuid() != 0 or not hasattr(libc, "capset"):
        yield
        return
    thread = ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0))  # the version of the call, and this thread
    assert libc.capget(thread, ctypes.byref(sets)) == 0
    before = sets.now0
    sets.now0 &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(thread, ctypes.byref(sets)) == 0
    yield
    sets.now0 = before
    assert libc.capset(thread, ctypes.byref(sets)) == 0


DAMAGES = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "folder": to_folder,
    "unreadable": lock,
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


OTHERS = [
    ("unet/config.json", "flipped"),
    ("scheduler/scheduler_config.json", "missing"),
    ("emfast.json", "unreadable"),
]


@pytest.mark.parametrize(("name", "damage"), [*((WEIGHTS, damage) for damage in DAMAGES), *OTHERS])
def test_a_damaged_published_model_is_written_again(damage, name, whole, folder):
    DAMAGES[damage](folder / "run" / "model" / name)
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


def test_lost_reconstructions_are_made_again(whole, folder):
    rounds = folder / "run" / "rounds"
    shutil.rmtree(rounds / "002")
    shutil.rmtree(rounds / "001" / "reconstructions")
    assert train(folder) == 0
    assert same_model(whole, folder)


# ----------------------------------------------------------------------- every file of a run


QUICK = ("--evaluation.samples", "0", "--e_step.scales", "[0.1, 1.0]", "--e_step.scale_images", "4")
PICTURES = (".png", ".jsonl")
CASES = 14  # of some hundreds, without --all


def interrupted(folder):
    """Trains until the first checkpoint of the last round."""
    saves, save = [], Trainer.save

    def stop(self, path):
        save(self, path)
        saves.append(path)
        if len(saves) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", stop)
        assert train(folder, *QUICK) == 130


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A run in the middle of its last M-step and E-step, and at its end: folders by name."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("m-step", "e-step", "end")}
    interrupted(folders["m-step"])
    assert [path.parent.name for path in (folders["m-step"] / "run").rglob("training.safetensors")] == ["002"]
    for name in ("e-step", "end"):
        shutil.copytree(folders["m-step"] / "run", folders[name] / "run")
    last = folders["e-step"] / "run" / "rounds" / "002"
    (last / "training.safetensors").unlink()
    (last / "reconstructions" / "shard-00001.safetensors").unlink()
    assert train(folders["end"], *QUICK) == 0
    return folders


def named(sentence, run):
    """The path that a sentence says to delete, or names first."""
    paths = re.findall(rf"(Delete )?({re.escape(str(run))}/[\w./-]*\w)", sentence)
    assert paths, sentence
    return Path(next((path for delete, path in paths if delete), paths[0][1]))


def mended(state, name, damage, expected, folder, capsys):
    """What is wrong after a file was damaged and the same command was given, twice at most; None if nothing is."""
    shutil.copytree(state / "run", folder / "run")
    DAMAGES[damage](folder / "run" / name)
    code, err = train(folder, *QUICK), capsys.readouterr().err
    if code != 0:
        if code != 2 or not one_sentence(err):
            return f"{code}: {err}"
        path = named(err, folder / "run")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        code, again = train(folder, *QUICK), capsys.readouterr().err
        if code != 0:
            return f"{err} then {again}"
    if not same_model(expected, folder):
        return f"another model: {err}"
    lost = [path for path in (folder / "run").rglob("*") if path.suffix in PICTURES and not path.stat().st_size]
    missing = damage == "missing" and name.endswith(PICTURES) and not (folder / "run" / name).exists()
    return f"not made again: {lost}" if lost or missing else None


def test_no_damage_is_a_dead_end(states, tmp_path, capsys, request):
    cases = [
        (state, str(path.relative_to(folder / "run")), damage)
        for state, folder in states.items()
        for path in sorted((folder / "run").rglob("*"))
        if path.is_file()
        for damage in DAMAGES
    ]
    if not request.config.getoption("--all"):
        cases = random.Random(0).sample(cases, CASES)
    wrong = {}
    for number, (state, name, damage) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        if found := mended(states[state], name, damage, states["end"], folder, capsys):
            wrong[state, name, damage] = found
        shutil.rmtree(folder)
    assert not wrong


def test_reconstructions_of_old_rounds_are_dropped(tmp_path):
    flags = ("--final_rounds", "4", "--evaluation.samples", "0", "--e_step.warm_start", "3.0")
    assert train(tmp_path, *flags, "--keep", "2") == 0
    rounds = tmp_path / "run" / "rounds"
    kept = sorted(path.parent.name for path in rounds.glob("*/reconstructions"))
    assert kept == ["004", "005"]
    assert sorted(path.parent.name for path in rounds.glob("*/model")) == [f"{k:03}" for k in range(6)]
    expected = read_tensors(tmp_path / "run" / "model" / WEIGHTS)
    shutil.rmtree(rounds / "005")
    shutil.rmtree(rounds / "004")  # whose round needs what was dropped: it is made again, from the first on
    assert train(tmp_path, *flags, "--keep", "1") == 0
    assert sorted(path.parent.name for path in rounds.glob("*/reconstructions")) == ["005"]
    found = read_tensors(tmp_path / "run" / "model" / WEIGHTS)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
