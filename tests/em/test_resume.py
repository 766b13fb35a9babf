"""Interruptions: kill -9, several processes, and folders that belong to something else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from contracts import rms_norm
from tiny_run import train, write_config

import emfast
from emfast._files import read_tensors
from emfast._yaml import defaults
from emfast.config import Config, EStepConfig
from emfast.data import load
from emfast.em.m_step import Trainer
from emfast.em.state import FREE, RunFolder, flat

TESTS = Path(__file__).parents[1]


def weights(folder, model="model"):
    return read_tensors(folder / "run" / model / "unet" / "diffusion_pytorch_model.safetensors")


def distance(one, two):
    """The root mean square of the differences between the weights of two models."""
    assert one.keys() == two.keys()
    return rms_norm(torch.cat([(two[name] - value).flatten() for name, value in one.items()]))


def environment():
    paths = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_kill_9_between_any_two_files(tmp_path):
    command = [sys.executable, str(TESTS / "em" / "kill.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["codes"] == [0, 0], result["logs"]
    assert result["same"]
    assert result["left"] == ["002"]  # what older rounds had was dropped, whenever that was interrupted
    whole, parts = map(set, result["renames"])
    # Killed after every row, a run publishes its model once, at its end, in the place of none. Kills while a folder is
    # replaced by another are tried in tests/test_files.py.
    assert whole - parts <= {"run/.old-model"}
    assert result["kills"] >= len(whole) - 1 > 25


def test_two_processes_end_with_the_same_models(tmp_path):
    flags = (
        "--m_step.warmup",
        "1",
        "--m_step.learning_rate",
        "1e-3",
        "--network.dropout",
        "0.2",
    )  # few steps that move the weights
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert train(tmp_path / "one", *flags) == 0
    config = write_config(tmp_path / "two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "emfast", "train", "--config", str(config), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    rounds = [len(RunFolder(tmp_path / name / "run").rows()) for name in ("one", "two")]
    assert rounds == [3, 3]
    models = [[weights(tmp_path / name, f"rounds/{k:03}/model") for k in range(3)] for name in ("one", "two")]
    moved = distance(*models[0][:2])
    assert moved > 1e-3
    for one, two in zip(*models, strict=True):  # by rounding alone, a thousandth of what other noise does
        assert distance(one, two) <= moved / 500


def test_a_config_that_contradicts_the_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = "sigma: 0.1\noperator:\n  class_path: Mask\n  init_args:\n    missing: {}\nrounds: {}\n"
    folder.claim(config.format(0.6, 2), {"a": "1"})
    folder.finish({"round": 0, "phase": "initial"})
    folder.claim(config.format(0.6, 3), {"a": "1"})
    before = (folder.path / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"expected operator.missing to stay 0.6, .*, got 0.7. Put it back, or choose"):
        folder.claim(
            "sigma: 0.1\noperator:\n  class_path: Mask\n  init_args:\n    missing: 0.7\nrounds: 3\n", {"a": "1"}
        )
    with pytest.raises(ValueError, match="to be as when it began, got something else"):
        folder.claim(before, {"a": "2"})
    assert (folder.path / "config.yaml").read_text() == before


def test_data_that_came_later_are_the_runs_too(tmp_path):
    """Neither may the clean images go, nor the reference or the initial model become another one."""
    folder, data = RunFolder(tmp_path / "run"), {"observations": "1", "operator": "2", "clean images": "3"}
    folder.claim("rounds: 1\n", data)
    folder.finish({"round": 0, "phase": "initial"})
    for name in ("reference images", "initial model"):
        data[name] = "4"
        folder.claim("rounds: 1\n", data)
        with pytest.raises(ValueError, match=f"the {name} of .* to be as when it began, got something else"):
            folder.claim("rounds: 1\n", {**data, name: "5"})
    folder.claim("rounds: 1\n", {name: value for name, value in data.items() if name != "reference images"})
    with pytest.raises(ValueError, match=r"the clean images of .* to be as when it began, got none"):
        folder.claim("rounds: 1\n", {name: value for name, value in data.items() if name != "clean images"})


def without(tree, key):
    """Nested mappings without the value of a name as `flat` has it."""
    first, _, rest = key.partition(".")
    names = {"init_args": key} if isinstance(tree.get("init_args"), dict) and first not in tree else {first: rest}
    (first, rest) = next(iter(names.items()))
    return {k: without(v, rest) if k == first and rest else v for k, v in tree.items() if k != first or rest}


@pytest.mark.parametrize("operator", [emfast.operators.Mask(missing=0.6), emfast.operators.GaussianBlur(size=5)])
def test_a_run_that_began_before_a_setting_existed(operator, tmp_path):
    config = Config(operator=operator, sampler=emfast.samplers.DPS(steps=7), e_step=EStepConfig(scales=[1.0]))
    folder, text = RunFolder(tmp_path / "run"), config.to_yaml()
    folder.claim(text, {"a": "1"})
    folder.finish({"round": 0, "phase": "initial"})
    whole, usual, refused = yaml.safe_load(text), defaults(config), set()
    for key in flat(whole):
        if key in ("operator", "sampler"):
            continue
        (folder.path / "config.yaml").write_text(yaml.safe_dump(without(whole, key)))
        if usual.get(key) == flat(whole)[key] or key in FREE:
            folder.claim(text, {"a": "1"}, usual)
            continue
        refused.add(key)
        with pytest.raises(ValueError, match=f"expected {key} to stay"):
            folder.claim(text, {"a": "1"}, usual)
    mine = {"operator.missing"} if "operator.missing" in flat(whole) else {"operator.size"}
    assert refused == {"sampler.steps", "e_step.scales", *mine}


def test_the_size_of_batches_may_change(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for size in (1024, 512, "auto"):
        folder.claim(f"sigma: 0.1\ne_step:\n  batch_size: {size}\n", {})
    assert "auto" in (folder.path / "config.yaml").read_text()


SHORT = ("--final_rounds", "0", "--evaluation.samples", "0")


def stopped(folder, saves, *flags):
    """Trains until a number of checkpoints are written."""
    written, save = [], Trainer.save

    def stop(self, path):
        save(self, path)
        written.append(path)
        if len(written) == saves:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", stop)
        assert train(folder, *SHORT, *flags) == 130


def test_a_run_without_a_finished_round_may_become_another(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    stopped(folders[0], 1, "--m_step.learning_rate", "1e-2", "--data.limit", "20", "--network.channels", "[8,8]")
    for folder in folders:
        assert train(folder, *SHORT, "--rounds", "0") == 0
    one, two = (weights(folder) for folder in folders)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert (folders[0] / "run" / "data.json").read_bytes() == (folders[1] / "run" / "data.json").read_bytes()


def test_what_changes_no_result_may_change(tmp_path):
    images = tmp_path / "images.npz"
    np.savez(images, images=load("sample:train", size=12, limit=40).tensor.numpy())
    found = []
    for name in ("whole", "parts"):
        folder = tmp_path / name
        folder.mkdir()
        data = ("--data.images", str(images), "--data.clean", str(images))
        if name == "parts":
            stopped(folder, 2, *data)  # in the M-step of round 1
            shard = folder / "run" / "rounds" / "001" / "reconstructions" / "shard-00001.safetensors"
            shard.unlink()
            images = images.rename(tmp_path / "moved.npz")
            data = ("--data.images", str(images), "--data.clean", str(images))
            data += ("--e_step.shard_size", "5", "--evaluation.pictures", "2", "--m_step.checkpoint", "3")
        assert train(folder, *SHORT, *data) == 0
        found.append(weights(folder))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="to be empty or an emfast run"):
        RunFolder(tmp_path).claim("sigma: 0\n", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_shard_is_named_and_the_rest_kept(tmp_path, capsys):
    assert train(tmp_path) == 0
    run = tmp_path / "run"
    shard = sorted((run / "rounds" / "002" / "reconstructions").glob("*.safetensors"))[0]
    expected = weights(tmp_path)
    (run / "rounds" / "002" / "row.json").unlink()
    (run / "rounds" / "002" / "seconds.json").unlink()
    for path in (run / "rounds" / "002" / "model" / "unet").iterdir():
        path.unlink()
    import shutil

    shutil.rmtree(run / "rounds" / "002" / "model")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert train(tmp_path) == 2
    assert shard.name in capsys.readouterr().err
    shard.unlink()
    assert train(tmp_path) == 0
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path).items())
