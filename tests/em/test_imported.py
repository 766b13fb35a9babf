"""Observations of a user's own, from their files to restored files: units, sizes, samples."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import CONFIG, one_sentence, train

from emfast.cli import main
from emfast.config import Config
from emfast.data.origin import Origin, Range, rows_by_name
from emfast.diffusion import Denoiser
from emfast.em import Observations
from emfast.em.inputs import read_inputs
from emfast.em.model import load_model
from emfast.operators import Operator, PoissonCounts

SHAPE = (13, 11)  # the network halves it once
LOW, HIGH = 1000.0, 5000.0


def observe(folder, count=24):
    """Writes PNGs of 16 bits, and masks."""
    generator = np.random.default_rng(0)
    (folder / "raw").mkdir()
    (folder / "masks").mkdir()
    for index in range(count):
        slope = generator.random((2, 1, 1)) * np.indices(SHAPE) / max(SHAPE)
        pixels = (LOW + (HIGH - LOW) * slope.mean(0)).astype(np.uint16)
        Image.fromarray(pixels).save(folder / f"raw/frame {index:02d}.png")
        mask = generator.random(SHAPE) > 0.4
        Image.fromarray((mask * 255).astype(np.uint8)).save(folder / f"masks/frame {index:02d}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with observations and a run on them."""
    folder = tmp_path_factory.mktemp("imported")
    observe(folder)
    raw, masks = str(folder / "raw"), str(folder / "masks")
    argv = ["import", raw, "--masks", masks, f"--range={LOW},{HIGH}", "--output", str(folder / "obs.npz")]
    assert main(argv) == 0
    config = {**CONFIG, "data": {"observations": str(folder / "obs.npz")}, "sigma": 40.0, "output": str(folder / "run")}
    del config["operator"]
    config |= {"gaussian": {"rounds": 2, "rank": 4}, "final_rounds": 0}
    (folder / "config.yaml").write_text(json.dumps(config))
    assert main(["train", "--config", str(folder / "config.yaml")]) == 0
    return folder


def restore(folder, name, *flags, observations="obs.npz"):
    argv = ["restore", str(folder / "run"), "--observations", str(folder / observations), "--sampler.steps", "2"]
    return main([*argv, "--device", "cpu", "--output", str(folder / name), *flags])


def test_the_range_belongs_to_the_run(folder):
    inputs = read_inputs(Config.from_yaml(folder / "run/config.yaml"))
    assert inputs.observations.sigma == pytest.approx(40 / 2000)
    note = json.loads((folder / "run/model/emfast.json").read_text())
    assert note["range"] == [LOW, HIGH]
    assert note["shape"] == [1, *SHAPE]


def test_restored_files_are_like_those_imported(folder, capsys):
    assert restore(folder, "one", "--limit", "5") == 0
    assert "1000 ... 5000 for [-1, 1]" in capsys.readouterr().out
    files = sorted((folder / "one/images").iterdir())
    assert [file.name for file in files] == [f"frame {index:02d}.png" for index in range(5)]
    images = np.load(folder / "one/reconstructions.npz")["images"]
    for file, image in zip(files, images, strict=True):
        pixels = np.asarray(Image.open(file))
        assert pixels.dtype == np.uint16
        np.testing.assert_allclose(pixels, (image[0] + 1) / 2 * (HIGH - LOW) + LOW, atol=0.51)


def test_samples_have_a_mean_and_a_spread(folder):
    assert restore(folder, "more", "--limit", "3", "--samples", "2") == 0
    with np.load(folder / "more/reconstructions.npz") as arrays:
        assert arrays["samples"].shape == (3, 2, 1, *SHAPE)
        assert (arrays["samples"][:, 0] != arrays["samples"][:, 1]).any()
        np.testing.assert_allclose(arrays["mean"], arrays["samples"].mean(1), atol=1e-6)
        np.testing.assert_array_equal(arrays["images"], arrays["samples"][:, 0])
    names = {path.name for path in (folder / "more").iterdir() if (path / "frame 00.png").is_file()}
    assert names == {"mean", "std", "sample-1", "sample-2"}
    # More samples are added to those that are there.
    before = (folder / "more/samples/2/shard-00000.safetensors").stat().st_mtime_ns
    assert restore(folder, "more", "--limit", "3", "--samples", "3") == 0
    assert (folder / "more/samples/2/shard-00000.safetensors").stat().st_mtime_ns == before
    assert (folder / "more/sample-3/frame 00.png").is_file()


def test_files_of_another_number_of_samples_are_taken_away(folder, capsys):
    for samples in ("3", "2", "1"):
        assert restore(folder, "fewer", "--limit", "2", "--samples", samples) == 0
        if samples == "3":
            (folder / "fewer/std/notes.txt").write_text("somebody's own")
    found = {path.name for path in (folder / "fewer").iterdir() if path.is_dir()}
    assert {"images", "std"} <= found
    assert not {"mean", "sample-1", "sample-3"} & found
    assert [path.name for path in (folder / "fewer/std").iterdir()] == ["notes.txt"]


def test_a_report_of_an_unfinished_restoration(folder, capsys):
    assert restore(folder, "killed", "--limit", "2") == 0
    (folder / "killed/metrics.json").unlink()
    capsys.readouterr()
    assert main(["report", str(folder / "killed")]) == 2
    assert one_sentence(capsys.readouterr().err, ["killed", "a restoration that was not finished"])


def test_coverage_is_told_where_the_truth_is_known(folder, capsys):
    np.save(folder / "clean.npy", np.linspace(-0.9, 0.9, 4 * 143).reshape(4, 1, *SHAPE).astype(np.float32))
    flags = ["--images", str(folder / "clean.npy"), "--operator.missing", "0.5", "--samples", "3"]
    argv = ["restore", str(folder / "run"), *flags, "--sampler.steps", "2", "--output", str(folder / "truth")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "Coverage: the 3 samples" in out
    assert "50% if they were exact" in out
    assert "Sigma:    0.02" in out  # images are in data units, the run's sigma is not
    assert json.loads((folder / "truth/metrics.json").read_text())["coverage"] >= 0


def test_samples_of_no_uncertainty_have_no_coverage(folder, capsys):
    np.save(folder / "clean.npy", np.linspace(-0.9, 0.9, 4 * 143).reshape(4, 1, *SHAPE).astype(np.float32))
    task = ["--images", str(folder / "clean.npy"), "--operator", "Identity", "--sigma", "0.2", "--samples", "2"]
    flow = ["--sampler", "ReverseFromObservation", "--sampler.eta", "0", "--sampler.steps", "2"]
    assert main(["restore", str(folder / "run"), *task, *flow, "--output", str(folder / "flow")]) == 0
    out = capsys.readouterr().out
    assert "Coverage: the 2 samples leave no pixel uncertain" in out
    assert "nan" not in out
    assert json.loads((folder / "flow/metrics.json").read_text())["coverage"] is None


def test_the_truth_may_be_given(folder, capsys):
    argv = ["import", str(folder / "raw"), "--range", str(folder / "run")]
    assert main([*argv, "--output", str(folder / "truth.npz")]) == 0
    assert restore(folder, "judged", "--limit", "4", "--samples", "2", "--truth", str(folder / "truth.npz")) == 0
    assert "33% if they were exact" in capsys.readouterr().out
    assert json.loads((folder / "judged/metrics.json").read_text())["psnr"] > 0
    np.save(folder / "few.npy", np.zeros((4, 1, *SHAPE), dtype=np.float32) - 0.5)
    assert restore(folder, "wrong", "--truth", str(folder / "few.npy")) == 2
    assert one_sentence(capsys.readouterr().err, ["few.npy", "--range=1000,5000"])


def test_the_truth_is_found_by_its_names(folder, capsys):
    """Of names without leading zeros the tenth comes before the second."""
    frames = sorted((folder / "raw").iterdir())
    for kind, name in (("other", "frame {:02d}"), ("short", "{}"), ("long", "{:02d}")):
        (folder / f"{kind} frames").mkdir()
        for index, frame in enumerate(frames[:12]):
            shutil.copy(frame, folder / f"{kind} frames" / f"{name.format(index)}.png")
        shuffled = sorted((folder / f"{kind} frames").iterdir())
        shuffled = [*shuffled[::-1], frames[20]] if kind == "other" else shuffled
        argv = ["import", *map(str, shuffled), "--range", str(folder / "run"), "--output"]
        assert main([*argv, str(folder / f"{kind}.npz")]) == 0
    flags = ("--limit", "4", "--truth")
    for truth in ("truth.npz", "other.npz:y"):
        argv = ["import", str(folder / "raw"), "--range", str(folder / "run"), "--output", str(folder / "truth.npz")]
        assert main(argv) == 0
        assert restore(folder, f"by {truth}", *flags, str(folder / truth)) == 0
    found = [json.loads((folder / f"by {name}/metrics.json").read_text()) for name in ("truth.npz", "other.npz:y")]
    assert found[0] == found[1]
    capsys.readouterr()
    identity = ("--operator", "Identity")
    assert restore(folder, "short-long", *identity, *flags, str(folder / "long.npz"), observations="short.npz") == 2
    assert one_sentence(capsys.readouterr().err, ["long.npz to hold one for 0", "00 in its place", "the same names"])


def test_the_truth_is_found_by_the_numbers_in_its_names(folder, capsys):
    """Where its names have another prefix, in whatever order, and no other number."""
    frames = sorted((folder / "raw").iterdir())
    (folder / "truths").mkdir()
    for index, frame in enumerate(frames):
        shutil.copy(frame, folder / f"truths/gt_{index:02d}.png")
    paths = sorted((folder / "truths").iterdir(), reverse=True)
    sets = {"truth": frames, "numbered": paths, "shifted": [*paths[:-1], frames[0]], "few": paths[2:]}
    for name, chosen in sets.items():
        argv = ["import", *map(str, chosen), "--range", str(folder / "run")]
        assert main([*argv, "--output", str(folder / f"{name}.npz")]) == 0
    for name in ("truth", "numbered"):
        capsys.readouterr()
        assert restore(folder, f"judged by {name}", "--truth", str(folder / f"{name}.npz")) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert ("Truth:    by the numbers in the names, as in gt_00 for frame 00\n" in out) == (name == "numbered")
    found = [json.loads((folder / f"judged by {name}/metrics.json").read_text()) for name in ("truth", "numbered")]
    assert found[0] == found[1]
    for name in ("shifted", "few"):  # one is called otherwise; two are not there
        assert restore(folder, name, "--truth", str(folder / f"{name}.npz")) == 2
        assert one_sentence(capsys.readouterr().err, [f"{name}.npz to hold one for frame 0"])


@pytest.mark.parametrize(
    ("truths", "observed", "rows"),
    [
        (["gt_02", "gt_01"], ["obs_01", "obs_02"], [1, 0]),
        (["01_gt_7", "02_gt_7"], ["01-a-7", "02-a-7"], [0, 1]),
        (["gt_1", "gt_2"], ["obs_01", "obs_02"], None),  # digit for digit
        (["gt_1", "gt_2"], ["obs_2", "obs_3"], None),
        (["gt_1", "gt_2", "gt_3"], ["obs_1", "obs_2"], None),
        (["cat_1", "dog_2"], ["obs_1", "obs_2"], None),
        (["a1", "b1"], ["c1", "d1"], None),
        (["gt_1", "gt_2"], ["gt_2", "obs_1"], None),
    ],
)
def test_names_with_the_same_numbers(truths, observed, rows):
    found, wanted = (
        Origin(Range(0, 1), [{"path": f"{name}.png", "images": 1} for name in names]) for names in (truths, observed)
    )
    if rows is None:
        with pytest.raises(ValueError, match="to hold one for"):
            rows_by_name("restore", "truth.npz", found, wanted, 2)
    else:
        assert rows_by_name("restore", "truth.npz", found, wanted, 2)[0] == rows


def test_a_truth_without_names_is_looked_at(folder, capsys):
    """One file has no names of rows: that they are in another order shows in the images."""
    raw = np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "raw").iterdir())])
    for name, order in (("same", 1), ("turned", -1)):
        np.save(folder / f"{name}.npy", raw[::order])
        argv = ["import", str(folder / f"{name}.npy"), "--range", str(folder / "run")]
        assert main([*argv, "--output", str(folder / f"{name}.npz")]) == 0
        capsys.readouterr()
        assert restore(folder, name, "--truth", str(folder / f"{name}.npz")) == 0
        assert ("the images of truth" in capsys.readouterr().err) == (name == "turned")


def test_what_is_refused_leaves_no_folder_behind(folder, capsys):
    assert (
        main(["import", str(folder / "raw"), "--range", str(folder / "run"), "--output", str(folder / "whole.npz")])
        == 0
    )
    run = ("--operator", "Identity", "--limit", "2")
    capsys.readouterr()
    assert restore(folder, "later", *run, "--sigma", "0", observations="whole.npz") == 2
    assert one_sentence(capsys.readouterr().err, ["sigma", "> 0", "--sigma"])
    assert not (folder / "later").exists()
    assert restore(folder, "later", *run, "--sigma", "40", observations="whole.npz") == 0


def test_sets_of_other_units_are_not_compared(folder, capsys):
    """The pictures are of 16 bits, of which 65535 is white to `load`."""
    argv = ["import", str(folder / "raw"), "--range", str(folder / "run"), "--output", str(folder / "units.npz")]
    assert main(argv) == 0
    assert restore(folder, "units", "--limit", "4") == 0
    np.save(folder / "samples.npy", np.linspace(-0.9, 0.9, 4 * 143).reshape(4, 1, *SHAPE).astype(np.float32))
    samples = ["--features", "none", "--paired", "false"]  # in data units by what their maker says
    assert main(["evaluate", str(folder / "samples.npy"), str(folder / "units.npz"), *samples]) == 0
    for made in ("units", "run"):
        capsys.readouterr()
        assert main(["evaluate", str(folder / made), str(folder / "raw"), "--features", "none"]) == 2
        assert one_sentence(capsys.readouterr().err, ["range", "1000 ... 5000", "emfast import"])
        assert main(["evaluate", str(folder / made), str(folder / "units.npz"), "--features", "none"]) == 0
        assert "PSNR" in capsys.readouterr().out


def test_another_range_is_refused(folder, capsys):
    assert main(["import", str(folder / "raw"), "--output", str(folder / "auto.npz")]) == 0
    capsys.readouterr()
    assert restore(folder, "other", "--operator", "Identity", observations="auto.npz") == 2
    assert one_sentence(capsys.readouterr().err, ["--range=1000,5000", "auto.npz"])
    assert not (folder / "other").exists()
    argv = ["train", "--config", str(folder / "config.yaml"), "--output", str(folder / "new")]
    assert main([*argv, "--data.clean", str(folder / "auto.npz"), "--data.clean_count", "2"]) == 2
    assert one_sentence(capsys.readouterr().err, ["--range=1000,5000", "auto.npz"])
    argv = ["import", str(folder / "raw"), "--range", str(folder / "run"), "--output", str(folder / "like.npz")]
    assert main(argv) == 0
    assert "1000 ... 5000" in capsys.readouterr().out


def test_a_border_inside_the_network_changes_no_image_that_needs_none(folder):
    denoiser, shape = load_model(folder / "run/model")
    assert shape == (1, *SHAPE)
    assert denoiser.multiple == 2
    x = torch.randn(2, 1, 14, 12)
    plain = Denoiser(denoiser.network, denoiser.schedule, denoiser.prediction)
    assert torch.equal(denoiser(x, 10), plain(x, 10))
    assert denoiser(x[..., :13, :11], 10).shape == (2, 1, *SHAPE)


def test_any_diffusers_user_can_sample_from_the_model(folder):
    from diffusers import DDPMPipeline

    images = DDPMPipeline.from_pretrained(folder / "run/model")(num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 14, 12, 1)  # with the border


def test_an_estimate_of_the_noise_begins_in_the_units_of_the_files(folder, capsys):
    argv = ["train", "--config", str(folder / "config.yaml"), "--sigma", "auto", "--output", str(folder / "unknown")]
    capsys.readouterr()
    assert main(argv) == 2
    assert one_sentence(
        capsys.readouterr().err, ["sigma_start", "units of the files", "1000 ... 5000", "--sigma_start 200"]
    )


class Half(Operator):
    """What a filter leaves, half of the light."""

    def apply(self, x, parameters):
        return 0.5 * x

    def adjoint(self, y, parameters):
        return 0.5 * y


def test_an_offset_in_the_files_is_none_of_the_images(folder):
    """Half of an image in 1000 ... 5000 is no half of it in [-1, 1]; photons are not counted in [-1, 1] at all."""
    raw, path = str(folder / "raw"), str(folder / "whole.npz")
    assert main(["import", raw, f"--range={LOW},{HIGH}", "--output", path]) == 0
    with pytest.raises(ValueError, match=r"Half: expected A to leave the value .* range 1000 ... 5000, got 0.5 of 1"):
        Observations.from_file(path, Half())
    with pytest.raises(ValueError, match="PoissonCounts: expected imported files to be images"):
        Observations.from_file(path, PoissonCounts())
    assert main(["import", raw, "--range=-5000,5000", "--output", str(folder / "about zero.npz")]) == 0
    assert len(Observations.from_file(folder / "about zero.npz", Half())) == 24


def test_the_model_of_a_round_is_one_of_the_run(folder, capsys):
    flags = ["--observations", str(folder / "obs.npz"), "--sampler.steps", "2", "--limit", "2", "--device", "cpu"]
    for index, model in enumerate(("rounds/001", "rounds/001/model")):
        output = str(folder / f"round {index}")
        assert main(["restore", str(folder / "run" / model), *flags, "--output", output]) == 0
        assert "Sigma:    40 of " in capsys.readouterr().out


def test_the_noise_of_a_simulated_run_in_the_units_of_files(tmp_path, folder, capsys):
    """A run in data units, and files whose range is 4000 wide: 0.2 of half the range is 400."""
    assert train(tmp_path, "--sigma", "0.2", "--final_rounds", "0") == 0
    argv = ["restore", str(tmp_path / "run"), "--observations", str(folder / "obs.npz"), "--tile", "8"]
    main([*argv, "--sampler.steps", "2", "--limit", "1", "--device", "cpu", "--output", str(tmp_path / "out")])
    assert "Sigma:    400, in the units of the files" in capsys.readouterr().out
