"""`emfast precompile`: what it compiles is all that is launched, and a second process finds it."""

import importlib
import json
import re
import subprocess
import sys
import tempfile

import pytest
import torch
from tiny_run import one_sentence

from emfast.cli import main
from emfast.compilation.compiling import Layout
from emfast.compilation.precompile import BATCHES, compile_calls, digest, recording, trace, write_archive
from emfast.diffusion import Denoiser, VPSchedule
from emfast.nn.rehearsal import rehearsed
from emfast.operators import Mask
from emfast.samplers import DPS


def network(**changes):
    """A U-Net as small as they get: one resolution, with attention."""
    from diffusers import UNet2DModel

    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "layers_per_block": 1}
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return UNet2DModel(**{**size, **kinds, "norm_num_groups": 4, **changes})


@pytest.fixture
def model(tmp_path):
    """The folder of a model."""
    from diffusers import DDPMScheduler

    network(add_attention=False).save_pretrained(tmp_path / "model")  # its kernels take the longest to compile
    DDPMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    return tmp_path / "model"


def test_a_second_process_compiles_nothing(model, tmp_path, capsys):
    pytest.importorskip("triton", reason="needs triton (the test extra installs it)")
    cache = tmp_path / "cache"
    argv = ["precompile", "--model", str(model), "--arch", "sm_90", "--out", str(cache), "--jobs", "1"]
    assert main(argv) == 0
    compiled, found = counts(capsys.readouterr().out)
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert compiled > 10
    assert found == 0
    assert len([path for path in files if path.suffix == ".cubin"]) == compiled
    again = subprocess.run([sys.executable, "-m", "emfast", *argv], capture_output=True, text=True, check=True)
    assert counts(again.stdout) == (0, compiled)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == files


def test_a_cache_without_launchers_says_so(model, tmp_path, capsys, monkeypatch):
    command = importlib.import_module("emfast.commands.precompile")
    monkeypatch.setattr(command, "precompile", lambda *_, **__: (3, 0))
    for path, said in (("/usr/bin/gcc", False), (None, True)):
        monkeypatch.setattr(command, "compiler", lambda path=path: path)
        assert main(["precompile", "--model", str(model), "--arch", "sm_90", "--out", str(tmp_path / "cache")]) == 0
        assert ("Run this again where gcc is" in capsys.readouterr().out) == said


def test_a_moved_cache_serves_as_before(tmp_path):
    pytest.importorskip("triton", reason="needs triton (the test extra installs it)")
    from emfast.kernels import _archive, _cache, _manifest

    calls = [("residual_sum", (Layout.of(torch.empty(2, 8, 4, 4)),) * 2 + (None, None, 1.0))]
    options = {"architectures": [90]}
    compiled, _ = compile_calls(calls, tmp_path / "made", **options)
    assert compiled == 1
    with pytest.MonkeyPatch.context() as patch:  # as one file, unpacked elsewhere, nothing is compiled either
        write_archive(tmp_path / "made", tmp_path / "kernels.tar")
        (tmp_path / "disk").mkdir()
        patch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
        assert compile_calls(calls, _archive.unpacked(str(tmp_path / "kernels.tar")), **options) == (0, 1)
    manifest = _manifest.read(tmp_path / "made")
    assert manifest["architectures"] == ["90"]
    assert manifest["calls"] == {"90": [digest(calls[0])]}
    assert sum(manifest["kernels"].values()) == 1
    (tmp_path / "made" / _manifest.FILE).write_text(json.dumps({**manifest, "triton": "0.1"}))
    with pytest.raises(RuntimeError, match="to be of triton"):
        compile_calls(calls, tmp_path / "made", **options)
    (tmp_path / "made" / _manifest.FILE).write_text(json.dumps(manifest))
    (tmp_path / "made").rename(tmp_path / "moved")
    assert compile_calls(calls, tmp_path / "moved", **options) == (0, 1)
    assert not [path for path in (tmp_path / "moved").rglob("__grp__*") if "/made/" in path.read_text()]

    (tmp_path / "moved").rename(tmp_path / "again")  # what the first launch of a process sees
    _cache.settle(str(tmp_path / "again"))
    assert not [path for path in (tmp_path / "again").rglob("__grp__*") if "/moved/" in path.read_text()]


def counts(text):
    """How many kernels were compiled, and how many found, as the command says."""
    return tuple(map(int, re.search(r"(\d+) kernels compiled, (\d+) were there", text).groups()))


@pytest.mark.parametrize("batch", BATCHES)
def test_the_trace_has_the_calls_of_a_real_run(batch):
    """On a CPU that goes the way of a GPU."""
    from emfast.adapters import accelerate
    from emfast.compilation.compiling import layouts

    denoiser = Denoiser(accelerate(network(), dtype=torch.bfloat16), VPSchedule.linear()).eval()
    traced, operator = set(trace(denoiser, (1, 8, 8), batch)), Mask(missing=0.5)
    y, ids = torch.zeros(batch, 1, 8, 8), torch.arange(batch)
    with rehearsed(), recording() as calls:
        DPS(steps=2)(denoiser, y, operator, ids=ids)
    real = {layouts(op, args) for op, args in calls}
    numbers = {"sampler_update", "normal"}  # whose last argument is the seed, which no kernel is compiled for
    assert {call for call in real if call[0] not in numbers} <= traced
    assert {plain(call) for call in real} <= {plain(call) for call in traced}


def plain(call):
    """A call without its numbers."""
    return call[0], tuple(value for value in call[1] if not isinstance(value, int))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["model"]),
        (["--model", "nowhere"], ["nowhere"]),
        (["--model", "."], ["UNet2DModel"]),
        (["--model", ".", "--arch", "sm_91"], ["'sm_91'", "'sm_90'"]),
        (["--model", ".", "--arch", "sm_90,hopper"], ["'hopper'"]),
        (["--model", ".", "--out", "file"], ["file"]),
        (["--model", ".", "--jobs", "-1"], ["jobs", "-1"]),
        (["--model", ".", "--tune", "true"], ["--tune", "GPU"]),
    ],
)
def test_mistakes_are_sentences(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["precompile", *argv]) == 2
    out, err = capsys.readouterr()
    assert one_sentence(err, words), err
    assert out == ""


def test_without_triton_it_says_so(model, monkeypatch, capsys):
    monkeypatch.setattr("emfast.compilation.precompile.triton_error", lambda: "triton is not installed")
    assert main(["precompile", "--model", str(model)]) == 2
    assert one_sentence(capsys.readouterr().err, ["triton", "installed"])
