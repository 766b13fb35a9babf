"""What the user did not say: never a default where it would be a guess about somebody's measurements."""

import json

import numpy as np
import pytest
import yaml
from tiny_run import CONFIG, one_sentence, train, write_config

from emfast.cli import main
from emfast.commands.parser import parse
from emfast.config import Config, DataConfig
from emfast.em.inputs import read_inputs
from emfast.operators import GaussianBlur, Given, Mask, MotionBlur

Y = np.linspace(-1, 1, 8 * 144, dtype=np.float32).reshape(8, 1, 12, 12)
MASK = (np.arange(8 * 144).reshape(8, 1, 12, 12) % 3 > 0).astype(np.float32)
KERNEL = np.full((8, 1, 3, 3), 1 / 9, dtype=np.float32)
SHORT = ("--rounds", "0", "--final_rounds", "0", "--gaussian.rounds", "2")


def observed(folder, **arrays):
    """A file of observations."""
    np.savez(folder / "y.npz", y=Y, **arrays)
    return str(folder / "y.npz")


def unnamed(folder, **changes):
    """The tiny config with neither an operator nor images."""
    data = {key: value for key, value in CONFIG["data"].items() if key == "size"}
    path = write_config(folder, data=data, **changes)
    path.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "operator"}))
    return str(path)


@pytest.mark.parametrize("others", [{}, {"labels": np.arange(8)}])
def test_observations_of_an_unknown_operator_are_refused(others, tmp_path, capsys):
    file = observed(tmp_path, **others)
    assert main(["train", "--config", unnamed(tmp_path), "--data.observations", file]) == 2
    assert one_sentence(capsys.readouterr().err, [file, "mask", "kernel", "--operator"])
    assert not (tmp_path / "run").exists()
    config = Config(data=DataConfig(observations=file))
    with pytest.raises(ValueError, match="or the operator to be named"):
        read_inputs(config)


def test_observations_alone_are_compared_with_nothing(tmp_path, capsys):
    file = observed(tmp_path, mask=MASK)
    argv = ["train", "--config", unnamed(tmp_path), "--data.observations", file, *SHORT]
    assert main(argv) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["fd"] for row in rows] == [None]
    assert main(["train", "--config", str(tmp_path / "run" / "config.yaml")]) == 0  # complete as it is


@pytest.mark.parametrize(("name", "kind"), [("mask", Mask), ("kernel", MotionBlur)])
def test_parameters_in_a_file_tell_the_operator(name, kind, tmp_path):
    file = observed(tmp_path, **{name: MASK if kind is Mask else KERNEL})
    for config in (
        Config(data=DataConfig(observations=file)),
        parse("train", Config, ["--data.observations", file])[0],
    ):
        inputs = read_inputs(config)
        assert isinstance(inputs.observations.operator, Given)
        assert isinstance(inputs.observations.operator.operator, kind)
        assert (inputs.clean, inputs.reference) == (None, None)


def test_an_operator_that_is_named_needs_no_parameters_but_random_ones(tmp_path):
    config, _ = parse("train", Config, ["--data.observations", observed(tmp_path), "--operator", "GaussianBlur"])
    assert isinstance(read_inputs(config).observations.operator, GaussianBlur)
    config, _ = parse("train", Config, ["--data.observations", observed(tmp_path), "--operator.missing", "0.5"])
    with pytest.raises(ValueError, match="to bring mask, which Mask would draw at random"):
        read_inputs(config)


def test_named_images_are_taken(tmp_path):
    data = DataConfig(
        observations=observed(tmp_path, mask=MASK), size=12, clean="sample:train", reference="sample:test"
    )
    inputs = read_inputs(Config(data=data))
    assert len(inputs.clean) == 50
    assert len(inputs.reference) == 500


# ----------------------------------------------------------------------- restore


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs with a blur and noise, and with random masks."""
    found = {}
    for name, flags in (("blur", ["--operator=GaussianBlur", "--operator.std=1.5", "--sigma=0.2"]), ("mask", [])):
        folder = tmp_path_factory.mktemp(name)
        assert train(folder, "--rounds", "0", "--final_rounds", "0", *flags) == 0
        found[name] = folder / "run"
    return found


def restore(run, folder, *flags):
    """Restores with a sampler of two steps; returns the exit code."""
    argv = ["restore", str(run), "--sampler.steps", "2", "--device", "cpu", "--output", str(folder / "out"), *flags]
    return main(argv)


IMAGES = ("--images", "sample:test", "--size", "12", "--limit", "4")


def test_restoring_takes_operator_and_sigma_from_the_run(runs, tmp_path, capsys):
    assert restore(runs["blur"], tmp_path, *IMAGES) == 0
    out = capsys.readouterr().out
    assert f"Operator: GaussianBlur(size=9, std=1.5, padding=reflect) of {runs['blur']}\n" in out
    assert f"Sigma:    0.2 of {runs['blur']}\n" in out
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert settings["operator"]["init_args"]["std"] == 1.5
    assert settings["sigma"] == 0.2
    assert main(["restore", "--config", str(tmp_path / "out" / "config.yaml")]) == 0


@pytest.mark.parametrize(
    ("flags", "operator", "sigma"),
    [
        (["--operator.std", "2"], "GaussianBlur(size=9, std=2.0, padding=reflect)\n", "0.2 of"),
        (["--operator", "Mask", "--operator.box", "4"], "Mask(box=4, seed=0)\n", "0.2 of"),
        (["--operator=GaussianBlur", "--sigma=0.1"], "GaussianBlur(size=9, std=1.5, padding=reflect) of", "0.1\n"),
    ],
)
def test_flags_go_before_the_run(flags, operator, sigma, runs, tmp_path, capsys):
    assert restore(runs["blur"] / "model", tmp_path, *IMAGES, *flags) == 0
    out = capsys.readouterr().out
    assert f"Operator: {operator}" in out
    assert f"Sigma:    {sigma}" in out


def test_restoring_observations(runs, tmp_path, capsys):
    file = observed(tmp_path)
    assert restore(runs["mask"], tmp_path, "--observations", file) == 2  # its masks were random ones
    assert one_sentence(capsys.readouterr().err, [file, "mask", "kernel", "--operator"])
    assert not (tmp_path / "out").exists()
    assert restore(runs["blur"], tmp_path, "--observations", file) == 0
    assert f"Operator: GaussianBlur(size=9, std=1.5, padding=reflect) of {runs['blur']}" in capsys.readouterr().out
    (tmp_path / "masked").mkdir()
    for run in runs.values():
        (tmp_path / run.parent.name).mkdir()
        file = observed(tmp_path / "masked", mask=MASK)
        assert restore(run, tmp_path / run.parent.name, "--observations", file) == 0
        assert f"Operator: Mask of {file}" in capsys.readouterr().out


def test_a_model_that_is_of_no_run(runs, tmp_path, capsys):
    (runs["blur"] / "model").rename(tmp_path / "model")
    try:
        assert restore(tmp_path / "model", tmp_path, *IMAGES) == 2
        assert one_sentence(capsys.readouterr().err, ["the operator to be named", "--operator"])
        assert restore(tmp_path / "model", tmp_path, *IMAGES, "--operator", "Identity", "--sigma", "0.1") == 0
        assert "Operator: Identity()\nSigma:    0.1\n" in capsys.readouterr().out
    finally:
        (tmp_path / "model").rename(runs["blur"] / "model")


@pytest.mark.parametrize("operator", ["os.system", "examples.custom_operator.DeadColumns"])
def test_no_code_runs_for_the_sake_of_a_folder(operator, runs, tmp_path, capsys):
    path = runs["blur"] / "config.yaml"
    whole = path.read_text()
    path.write_text(whole.replace("emfast.operators.GaussianBlur", operator))
    try:
        for what in (IMAGES, ("--observations", observed(tmp_path, mask=MASK))):  # its masks may be another operator's
            assert restore(runs["blur"], tmp_path, *what) == 2
            assert one_sentence(capsys.readouterr().err, [operator, "--operator"])
        assert restore(runs["blur"], tmp_path, *IMAGES, "--operator", "Identity", "--sampler", "MMPS") == 0
        path.write_text("{")
        assert restore(runs["blur"], tmp_path, *IMAGES) == 2
        assert one_sentence(capsys.readouterr().err, [str(path)])
    finally:
        path.write_text(whole)


# ----------------------------------------------------------------------- clean images


def test_clean_images_are_left_out_wherever_they_lie(tmp_path):
    from emfast.data import load

    images = load("sample:train", size=8, limit=40).tensor
    np.savez(tmp_path / "all.npz", images=images.numpy())
    np.savez(tmp_path / "ten.npz", images=images[5:15].numpy())
    np.savez(tmp_path / "floats.npz", images=2 * (images[5:15].numpy().astype(np.float32) / 255) - 1)
    (tmp_path / "link.npz").symlink_to(tmp_path / "all.npz")
    rows = torch_rows(images)
    for clean, left in (("ten.npz", 30), ("floats.npz", 30), ("link.npz", 30), ("all.npz", 30)):
        data = DataConfig(images=str(tmp_path / "all.npz"), clean=str(tmp_path / clean), clean_count=10, reference=None)
        inputs = read_inputs(Config(data=data))
        assert len(inputs.observations) == left
        first = 30 if clean in ("link.npz", "all.npz") else 5
        expected = [row for index, row in enumerate(rows) if not first <= index < first + 10]
        assert torch_rows(inputs.observations.images.tensor) == expected
    with pytest.raises(ValueError, match="to hold more than the clean images"):
        read_inputs(
            Config(data=DataConfig(images=str(tmp_path / "ten.npz"), clean=str(tmp_path / "ten.npz"), clean_count=10))
        )


def torch_rows(images):
    return [image.numpy().tobytes() for image in images]


def test_images_of_a_users_own_are_not_mixed_with_the_sample(tmp_path):
    """Clean ones, and those that the distance compares with, are of them."""
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).integers(0, 256, (9, 3, 12, 12), dtype=np.uint8))
    found = read_inputs(Config(data=DataConfig(images=str(tmp_path / "mine.npy"), clean_count=2)))
    assert (len(found.observations), len(found.clean), len(found.reference)) == (7, 2, 9)
    assert found.clean.shape == found.reference.shape == found.observations.shape == (3, 12, 12)
    sample = read_inputs(Config(data=DataConfig(size=12, limit=4)))
    assert len(sample.reference) != len(sample.clean) == 50
