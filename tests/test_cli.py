"""The command: subcommands, the files they leave, resumption, interruption, what they print."""

import io
import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tiny_run import one_sentence, snapshot, train, write_config

from emfast import _settings
from emfast.cli import main
from emfast.commands import COMMANDS, display, parser
from emfast.commands.display import Display
from emfast.config import Config

ROW = {"round": 1, "phase": "warm", "psnr": 22.5, "network_evaluations": 51200, "seconds_e_step": 1.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("cli")
    assert main(["train", "--config", str(write_config(folder)), "--data.reference", "auto"]) == 0
    return folder / "run"


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command, capsys):
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"usage: emfast {command}" in out
    assert err == ""


def test_a_run_leaves_its_files(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["initial", "warm", "final"]
    for number in range(3):
        assert (run / f"rounds/{number:03d}/samples.png").is_file()
    assert (run / "rounds/001/reconstructions.png").is_file()
    with Image.open(run / "summary.png") as picture:
        assert min(picture.size) > 300
    assert not [path for path in run.rglob("*") if path.name.startswith((".tmp", ".old"))]


def test_the_model_opens_in_diffusers(run):
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(run / "model")
    assert pipeline.unet.config.sample_size == 12


def test_the_same_command_again_changes_nothing_of_the_run(run, capsys):
    before = snapshot(run / "rounds")
    assert main(["train", "--config", str(run.parent / "config.yaml"), "--data.reference", "auto"]) == 0
    assert "PSNR of the E-step" in capsys.readouterr().out
    after = snapshot(run / "rounds")
    assert {name: content for name, (content, _) in after.items()} == {n: c for n, (c, _) in before.items()}


def test_the_saved_config_is_the_same_run(run):
    assert main(["train", "--config", str(run / "config.yaml")]) == 0


def test_more_rounds_go_on_with_the_run(tmp_path, capsys):
    assert train(tmp_path, "--final_rounds", "0") == 0
    capsys.readouterr()
    assert train(tmp_path, "--final_rounds", "0", "--rounds", "2", "--trackers", "tensorboard") == 0
    out = capsys.readouterr().out
    assert "e-step" in out
    assert "warm" in out
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_report(run, capsys):
    picture = run / "summary.png"
    picture.unlink()
    assert main(["report", str(run)]) == 0
    assert picture.is_file()
    out = capsys.readouterr().out
    assert "initial" in out
    assert "PSNR of the E-step" in out
    assert str(picture) in out.replace("\n", "")


def test_sample(run, tmp_path):
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    common = ["--steps", "2", "--device", "cpu"]
    assert main(["sample", str(run), "--count", "6", "--output", str(first), *common]) == 0
    assert (
        main(["sample", str(run / "model"), "--count", "4", "--batch_size", "3", "--output", str(second), *common]) == 0
    )
    a, b = np.load(first)["images"], np.load(second)["images"]
    assert a.shape == (6, 1, 12, 12)
    assert a.dtype == np.float32
    np.testing.assert_allclose(a[:4], b, atol=1e-3)  # an image depends on its seed and number alone
    assert first.with_suffix(".png").is_file()


@pytest.fixture(scope="module")
def restored(run, tmp_path_factory):
    """The command that restored images, and its output."""
    output = tmp_path_factory.mktemp("restore") / "out"
    argv = ["restore", str(run), "--images", "sample:test", "--size", "12", "--limit", "10", "--shard_size", "4"]
    argv += ["--sampler.steps", "3", "--output", str(output), "--device", "cpu"]
    assert main(argv) == 0
    return argv, output


def test_restore(restored):
    _, output = restored
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["images"] == 10
    assert metrics["psnr"] > 0
    assert np.load(output / "reconstructions.npz")["images"].shape == (10, 1, 12, 12)
    assert np.load(output / "observations.npz")["mask"].shape == (10, 1, 12, 12)
    assert (output / "reconstructions.png").is_file()


def test_restore_resumes(restored, capsys):
    argv, output = restored
    expected = (output / "reconstructions.npz").read_bytes()
    (output / "reconstructions" / "shard-00001.safetensors").unlink()
    kept = output / "reconstructions" / "shard-00000.safetensors"
    before = kept.stat().st_mtime_ns
    assert main(argv) == 0
    assert kept.stat().st_mtime_ns == before
    assert (output / "reconstructions.npz").read_bytes() == expected


def test_restore_refuses_the_folder_of_another_job(restored, capsys):
    argv, output = restored
    before = snapshot(output)
    assert main([*argv, "--operator.missing", "0.5"]) == 2
    assert "operator" in capsys.readouterr().err
    assert main([*argv[:-4], "--output", str(output.parent), "--device", "cpu"]) == 2
    assert "other files" in capsys.readouterr().err
    assert snapshot(output) == before


def test_restore_takes_observations_from_a_file(restored, run, tmp_path):
    _, output = restored
    content = dict(np.load(output / "observations.npz"))
    content["y"] = np.where(content["mask"] == 1, content["y"], np.nan)  # what a file has there is not looked at
    np.savez(tmp_path / "y.npz", **content)
    argv = ["restore", str(run), "--observations", str(tmp_path / "y.npz"), "--sampler.steps", "3"]
    assert main([*argv, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    again, first = (np.load(folder / "reconstructions.npz")["images"] for folder in (tmp_path / "out", output))
    # Same ids, same seed, same observations: the same but for rounding, since the batches may be others.
    np.testing.assert_allclose(again, first, rtol=0, atol=1e-3)


def test_evaluate_pairs_reconstructions_with_the_images_of_their_ids(run, capsys):
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert main(["evaluate", str(run), "sample:train", "--size", "12", "--features", "none"]) == 0
    assert f"{row['psnr']:.2f}" in capsys.readouterr().out


def test_evaluate_leaves_out_the_clean_images_that_the_run_left_out(tmp_path, capsys):
    """Ids count the images that are observed: those before them that are clean ones shift them."""
    x = (2 * np.random.default_rng(0).random((24, 1, 12, 12), dtype=np.float32) - 1).round(2)
    x[3] = x[20]  # of the clean ones, which are the last
    np.savez(tmp_path / "x.npz", images=x)
    path = str(tmp_path / "x.npz")
    flags = ["--data.images", path, "--data.clean", path, "--data.clean_count", "6"]
    assert train(tmp_path, *flags, "--e_step.subset", "null", "--final_rounds", "0") == 0
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    for limit in ([], ["--limit", "20"]):
        assert main(["evaluate", str(tmp_path / "run"), path, "--features", "none", *limit]) == 0
        assert f"{row['psnr']:.2f}" in capsys.readouterr().out


def test_evaluate_pairs_no_others(tmp_path, capsys):
    x = 2 * np.random.default_rng(0).random((40, 1, 12, 12), dtype=np.float32) - 1
    for name, images in (("a", x), ("b", 0.5 * x + 0.1), ("c", x[::-1])):
        np.savez(tmp_path / f"{name}.npz", images=images)
    argv = ["evaluate", str(tmp_path / "a.npz"), "--features", "none", str(tmp_path / "{}.npz")]
    for name, flags, shown in (("b", [], True), ("c", [], False), ("c", ["--paired", "true"], True)):
        assert main([word.format(name) for word in argv] + flags) == 0
        out, err = capsys.readouterr()
        assert (out.count(" -") == 0) == shown
        assert shown or one_sentence(err, ["nearer to their partners", "--paired true"])


def test_evaluate_compares_files(restored, capsys):
    _, output = restored
    assert main(["evaluate", str(output), "sample:test", "--size", "12", "--limit", "10"]) == 0
    out = capsys.readouterr().out
    assert f"{json.loads((output / 'metrics.json').read_text())['psnr']:.2f}" in out
    assert "FD (fashion-mnist)" in out


def test_info_lists_the_modules_of_a_model(run, capsys):
    assert main(["info", "--model", str(run / "model")]) == 0
    text = capsys.readouterr().out
    assert "ResnetBlock2D" in text[text.index("swapped") : text.index("left")]
    layers = text[text.index("layers, as a sampler runs them") :].splitlines()[1:]
    assert any("conv1" in line and "convolution layer: " in line and "; cuDNN: " not in line for line in layers)


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in out
    assert "SongUNet" in out[out.index("accelerates") : out.index("ops")]


def test_print_config_gives_the_same_config_again(tmp_path, capsys):
    path = write_config(tmp_path)
    assert main(["train", "--config", str(path), "--data.reference", "null", "--print_config"]) == 0
    text = capsys.readouterr().out
    again = tmp_path / "again.yaml"
    again.write_text(text)
    config, dumped = parser.parse("train", Config, ["--config", str(again)])
    assert dumped == text
    assert config.data.reference is None
    assert config.operator.missing == 0.6


@pytest.mark.parametrize(
    ("name", "expected"), [("limmit", "data.limit"), ("data.limmit", "data.limit"), ("clean_cout", "data.clean_count")]
)
def test_nearest(name, expected):
    assert _settings.nearest(name, ["sigma", "data.limit", "data.clean_count"]) == expected
    assert _settings.nearest("zzz", ["sigma"]) is None


def test_ctrl_c(monkeypatch, tmp_path, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("emfast.commands.train.train", interrupted)
    assert train(tmp_path) == 130
    assert capsys.readouterr().err == "Interrupted. The same command resumes.\n"


def test_sigterm(monkeypatch, tmp_path, capsys):
    def terminated(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("emfast.commands.train.train", terminated)
    assert train(tmp_path) == 143
    assert capsys.readouterr().err == "Terminated. The same command resumes.\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_plain_lines_are_few(monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    file = io.StringIO()
    with Display(console=Console(file=file, force_terminal=False, width=100)) as shown:
        for done in range(1, 101):  # 50 seconds
            shown.advance("round 1: e-step", done, 100)
        shown.row(ROW)
        shown.row({**ROW, "round": 2})
    lines = file.getvalue().rstrip("\n").split("\n")
    assert len(lines) == 5 + 3
    assert lines[0].endswith("left")
    assert "2.0/s" in lines[0]
    assert lines[-3].split()[0] == "round"
    assert lines[-1].split()[:3] == ["2", "warm", "22.50"]


def test_a_terminal_shows_bars_and_a_table():
    file = io.StringIO()
    with Display([{**ROW, "round": 0}], Console(file=file, force_terminal=True, width=100)) as shown:
        shown.advance("round 1: e-step", 1, 100)
        shown.advance("round 1: e-step", 50, 100)
        shown.screen.refresh()  # as its own thread does, four times a second
        shown.row(ROW)
    text = file.getvalue()
    assert "round 1: e-step" in text
    assert "50/100" in text
    assert "PSNR" in text
    assert "51,200" in text


def test_paths_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    changes = {"data": {"images": "~/x.npz"}, "operator": {"class_path": "Mask", "init_args": {"mask": "~/m.npy"}}}
    np.save(tmp_path / "m.npy", np.ones((4, 4)))
    write_config(tmp_path, **changes)
    config, text = parser.parse("train", Config, ["--config=~/config.yaml", "--output=~/run", "--model", "~"])
    assert (config.output, config.model, config.data.images) == tuple(
        f"{tmp_path}{end}" for end in ("/run", "", "/x.npz")
    )
    assert config.operator.mask.shape == (1, 1, 4, 4)
    assert "~" not in text


def test_names_that_the_terminal_cannot_show(tmp_path, monkeypatch):
    """One stands for characters that its encoding has not: the file is written all the same."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    np.save(tmp_path / "a.npy", np.arange(20.0).reshape(4, 5))
    output = tmp_path / "caf\xe9.npz"
    assert main(["import", str(tmp_path / "a.npy"), "--output", str(output)]) == 0
    assert sys.stdout.errors == "strict"
    sys.stdout.flush()
    assert b"caf?.npz" in raw.getvalue()
    assert output.is_file()
