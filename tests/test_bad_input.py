"""Every mistake of a user is one sentence on stderr and exit code 2, and leaves nothing half-written."""

import os
import resource

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_run import CONFIG, one_sentence, snapshot, train, write_config

from emfast.cli import main


def refused(capsys, argv, *words):
    """Whether the command refuses with one sentence that holds the words."""
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert one_sentence(err, words), err
    assert out == ""
    return True


# ----------------------------------------------------------------------- the command line and the config


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["'trian'", "'train'"]),
        (["train", "--sigm", "1"], ["'--sigm'", "'--sigma'"]),
        (["train", "--data.limmit", "1"], ["'--data.limmit'", "'--data.limit'"]),
        (["train", "--operator.misssing", "1"], ["'misssing'", "'missing'", "Mask"]),
        (["train", "--operator", "GaussianBlur", "--operator.siz", "5"], ["'siz'", "'size'"]),
        (["train", "--operator", "Maskk"], ["'Maskk'", "'Mask'"]),
        (["train", "--operator", "os.system"], ["operator", "subclass of Operator"]),
        (["train", "--operator", "no.such.Thing"], ["no.such.Thing"]),
        (["train", "--operator", "emfast.samplers.DPS"], ["operator"]),
        (["train", "--sampler", "DSP"], ["'DSP'", "'DPS'"]),
        (["train", "--network.schedule", "lineer"], ["'linear'", "lineer"]),
        (["train", "--sigma", "much"], ["sigma", "a number", "much"]),
        (["train", "--sigma"], ["sigma"]),
        (["train", "--m_step.steps", "0.5"], ["m_step.steps", "whole number"]),
        (["train", "--operator.missing", "x"], ["operator.missing", "a number or null"]),
        (["train", "--sampler.steps", "x"], ["sampler.steps to be a whole number, got x."]),
        (["train", "--operator.box", "1.5"], ["operator.box to be a whole number or null, got 1.5."]),
        (["train", "something"], ["'something'"]),
        (["train", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["train", "--config", "."], [". to be a file", "folder"]),
        (["train", "--config", ""], ["--config to be given a file"]),
        (["train", "--operator", ".."], ["operator to name a class", "'..'", "my_file.MyClass"]),
        (["train", "--sampler", "a b.C"], ["sampler to name a class", "'a b.C'"]),
        (["train", "--operator", "[1]"], ["operator to name a class", "[1]"]),
        (["report", ""], ["'' to be a run"]),
        (["sample"], ["model"]),
        (["sample", "nowhere"], ["nowhere"]),
        (["sample", "nowhere", "--output", "a.png"], [".npz"]),
        (["sample", "nowhere", "--count", "100000001"], ["count to be in 1 ... 100000000"]),
        (["report", "nowhere"], ["nowhere"]),
        (["evaluate", "nowhere", "sample:test"], ["nowhere"]),
        (["evaluate", "sample:nothing", "sample:test"], ["sample:train"]),
        (["evaluate", "sample:test", "sample:test", "--features", "incepton"], ["'inception'"]),
        (["evaluate", "sample:test", "sample:train", "--paired", "true", "--features", "none"], ["500", "5000"]),
        (["restore", "nowhere"], ["neither"]),
        (["restore", "nowhere", "--images", "sample:test"], ["nowhere"]),
        (["restore", "nowhere", "--images", "sample:test", "--sigma", "-1"], ["sigma", "-1"]),
    ],
)
def test_command_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, argv, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sigm: 1", ["'sigm'", "'sigma'"]),
        ("clean_count: 50", ["'clean_count'", "'data.clean_count'"]),
        ("data: {limmit: 1}", ["'data.limmit'", "'data.limit'"]),
        ("operator: {class_path: Mask, init_args: {misssing: 1}}", ["'misssing'", "'missing'"]),
        ("operator: Maskk", ["'Maskk'", "'Mask'"]),
        ("sampler: {class_path: DPSS}", ["'DPSS'", "'DPS'"]),
        ("sampler: {class_path: DPS, init_args: {steps: 1.5}}", ["sampler.steps", "whole number"]),
        ("data: [1\n b: {", ["bad.yaml", "YAML"]),
        ("a: 1\n---\nb: 2\n", ["bad.yaml", "YAML"]),
        ("", ["bad.yaml", "options by name"]),
        ("text", ["bad.yaml", "options by name", "text"]),
        ("- 1", ["bad.yaml", "options by name", "[1]"]),
        ("1: 2", ["bad.yaml", "options by name", "{1: 2}"]),
        ("e_step:", ["e_step to have a value", "none in", "bad.yaml"]),
        (b"seed: 1 # \xff", ["bad.yaml", "UTF-8", "0xff at position 10"]),
        ("operator: 3", ["operator to name a class", "3"]),
        ("operator: {class_path: [1]}", ["operator to name a class", "[1]"]),
        ("operator: {class_path: Mask, init_args: 3}", ["operator.init_args", "by name"]),
    ],
)
def test_config_file(text, words, tmp_path, capsys):
    path, good = tmp_path / "bad.yaml", tmp_path / "good.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    good.write_text("seed: 1\n")
    argv = ["train", "--config", good, "--config", path, "--output", tmp_path / "run"]
    assert refused(capsys, argv, *words)
    assert not (tmp_path / "run").exists()


COUNTS = {
    "data": ["limit", "clean_count", "size", "crop"],
    "network": ["layers", "groups", "head_dim", "schedule_steps"],
    "gaussian": ["rank", "rounds", "images"],
    "e_step": ["batch_size", "shard_size", "subset", "scale_images"],
    "m_step": ["steps", "initial_steps", "final_steps", "batch_size", "checkpoint", "warmup"],
    "evaluation": ["samples", "steps", "pictures"],
    "sampler": ["steps"],
}


@pytest.mark.parametrize(
    "flag",
    [
        "--sigma=-0.1",
        "--rounds=-1",
        "--final_rounds=-1",
        "--data.size=0",
        "--data.limit=0",
        "--data.clean_count=-1",
        "--network.channels=[]",
        "--network.channels=[0,8]",
        "--network.layers=0",
        "--network.dropout=1",
        "--network.schedule_steps=1",
        "--e_step.batch_size=0",
        "--e_step.shard_size=-4",
        "--e_step.scales=[1,0]",
        "--m_step.steps=0",
        "--m_step.learning_rate=0",
        "--m_step.ema=1",
        "--m_step.warmup=-1",
        "--m_step.decay=1.5",
        "--m_step.ema_power=0",
        "--m_step.noise_std=0",
        "--m_step.noise_mean=nan",
        "--m_step.schedule_share=1",
        "--m_step.target_images=-1",
        "--e_step.parts=0",
        "--evaluation.samples=-1",
        "--evaluation.steps=0",
        "--evaluation.order=3",
        "--operator.missing=1.5",
        "--sampler.steps=0",
        "--sampler.steps=1001",
        "--evaluation.steps=1001",
        "--device=gpu",
        *(f"--{group}.{name}=1000000000000" for group, names in COUNTS.items() for name in names),
        "--rounds=1000000000000",
        "--data.size=1000000000",
        "--network.channels=[8,1000000000]",
    ],
)
def test_values(flag, tmp_path, capsys):
    path = write_config(tmp_path)
    name = flag[2:].split("=")[0]
    assert refused(capsys, ["train", "--config", path, flag], name.split(".")[-1])
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------- the data


def pictures(folder, *sizes, mode="L"):
    """Writes pictures of the given sides."""
    folder.mkdir()
    for index, size in enumerate(sizes):
        Image.new(mode, (size, size), 100).save(folder / f"{index}.png")
    return folder


def observed(path, y, **parameters):
    """Writes a file of observations."""
    np.savez(path, y=np.asarray(y, dtype=np.float32), **parameters)
    return path


Y = np.zeros((4, 1, 12, 12), dtype=np.float32)
RGB = np.zeros((4, 3, 12, 12))
MASKS = np.ones((len(RGB), 1, *RGB.shape[2:]))
NAN = np.where(np.arange(144).reshape(12, 12) == 5, np.nan, Y)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: ["--data.images", p / "nowhere"], ["nowhere"]),
        (lambda p: ["--data.images", pictures(p / "empty")], ["empty"]),
        (lambda p: ["--data.images", pictures(p / "mixed", 8, 10), "--data.size", "null"], ["mixed", "size"]),
        (lambda p: ["--data.images", pictures(p / "rgb", 8, 8, mode="RGB")], ["clean_count", "2"]),
        (lambda p: ["--data.observations", p / "nowhere.npz"], ["nowhere.npz"]),
        (lambda p: ["--data.observations", observed(p / "y.npz", NAN)], ["y", "finite"]),
        (lambda p: ["--data.observations", observed(p / "y.npz", Y + 255)], ["y.npz:y", "[-1, 1]", "255", "Scale"]),
        (
            lambda p: ["--data.observations", observed(p / "y.npz", Y + 0.5), "--sigma", "20"],
            ["sigma", "20", "mean square"],
        ),
        (
            lambda p: ["--data.observations", observed(p / "y.npz", RGB, mask=MASKS), "--data.clean", "sample:train"],
            ["shape", "3"],
        ),
        (lambda p: ["--data.observations", observed(p / "y.npz", Y, mask=np.ones((4, 1, 12, 7)))], ["mask"]),
        (lambda p: ["--data.observations", observed(p / "y.npz", Y, mask=np.ones((3, 1, 12, 12)))], ["mask", "4"]),
        (lambda p: ["--data.observations", observed(p / "y.npz", Y, mask=np.full_like(Y, 255))], ["mask", "0 and 1"]),
        (lambda p: ["--data.clean_count", "100000"], ["clean_count"]),
        (lambda p: ["--data.size", "1"], ["sides >= 2"]),
        (lambda p: ["--model", p / "nowhere"], ["nowhere"]),
        (lambda p: ["--model", pictures(p / "no_model", 8)], ["no_model", "UNet2DModel"]),
        (lambda p: ["--network.channels", "[8,18]"], ["channels", "groups"]),
        (lambda p: ["--operator", "GaussianBlur", "--operator.size", "99"], ["size"]),
        (lambda p: ["--sampler", "ReverseFromObservation", "--sigma", "0.1"], ["operator", "Identity"]),
        (lambda p: ["--sampler", "ReverseFromObservation", "--operator", "Identity"], ["sigma", "> 0"]),
    ],
)
def test_data(make, words, tmp_path, capsys):
    path = write_config(tmp_path)
    assert refused(capsys, ["train", "--config", path, *make(tmp_path)], *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(7, 12), (3, 12, 12), (2, 1, 12, 12)])
def test_a_mask_of_the_wrong_shape(shape, tmp_path, capsys):
    np.save(tmp_path / "mask.npy", np.ones(shape))
    operator = {"class_path": "Mask", "init_args": {"mask": str(tmp_path / "mask.npy")}}
    assert refused(capsys, ["train", "--config", write_config(tmp_path, operator=operator)], "mask")
    assert not (tmp_path / "run").exists()


def test_damaged_arrays(tmp_path, capsys):
    path = tmp_path / "damaged.npz"
    path.write_bytes(b"PK\x03\x04 not a zip file")
    assert refused(capsys, ["train", "--config", write_config(tmp_path), "--data.images", path], "damaged.npz")
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------- the output


def test_an_output_that_holds_something_else(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("42")
    before = snapshot(tmp_path / "run")
    assert refused(capsys, ["train", "--config", write_config(tmp_path)], "output", "other files")
    assert snapshot(tmp_path / "run") == before


def test_an_output_below_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("42")
    argv = ["train", "--config", write_config(tmp_path), "--output", tmp_path / "file" / "run"]
    assert refused(capsys, argv, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "42"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output(tmp_path, capsys):
    config = write_config(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o555)
    assert refused(capsys, ["train", "--config", config, "--output", tmp_path / "locked" / "run"], "locked")
    assert not list((tmp_path / "locked").iterdir())


def test_a_full_output(tmp_path, capsys):
    """A file-size limit fails as a full disk does, in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        assert train(tmp_path) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert one_sentence(capsys.readouterr().err, ["writable"])
    assert not list((tmp_path / "run").rglob(".tmp*"))
    assert not list((tmp_path / "run").rglob("training.safetensors"))
    assert train(tmp_path, "--final_rounds", "0") == 0  # room again: the same command goes on


def test_a_config_that_contradicts_the_run_it_resumes(tmp_path, capsys):
    assert train(tmp_path, "--rounds", "0", "--final_rounds", "0") == 0
    capsys.readouterr()
    before = snapshot(tmp_path / "run")
    for flags, words in (
        (["--sigma", "0.1"], ["sigma", "0.0", "0.1"]),
        (["--operator.missing", "0.5"], ["missing", "0.6", "0.5"]),
        (["--data.limit", "20"], ["limit", "24", "20"]),
        (["--network.channels", "[8,8]"], ["channels"]),
    ):
        assert refused(capsys, ["train", "--config", tmp_path / "config.yaml", *flags], *words)
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["config.yaml", "rounds/000/row.json", "data.json"])
def test_a_damaged_run(name, tmp_path, capsys):
    assert train(tmp_path, "--rounds", "0", "--final_rounds", "0") == 0
    capsys.readouterr()
    (tmp_path / "run" / name).write_text("\x00{")
    assert refused(capsys, ["train", "--config", tmp_path / "config.yaml"], name)


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setenv("EMFAST_DEBUG", "1")
    assert main(["train", "--sigma", "-1"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.strip().split("\n")[-1].startswith("config: expected sigma to be >= 0, got -1.0")


def test_the_tiny_config_is_complete_yaml(tmp_path):
    assert yaml.safe_load(write_config(tmp_path).read_text()).keys() >= CONFIG.keys()
