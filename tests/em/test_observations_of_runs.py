"""Observations that an operator cannot have made are refused before the work begins; those it can go all the way."""

import numpy as np
import pytest
import torch
from tiny_run import one_sentence, write_config

from emfast.cli import main
from emfast.data import Images
from emfast.em import Observations
from emfast.em.observing_operator import shows_pixels
from emfast.operators import Downsample, GaussianBlur, Given, Identity, Mask, MotionBlur, Operator, from_deepinv

IMAGES = {"mask": Mask(missing=0.5), "identity": Identity(), "blur": GaussianBlur(3), "shake": MotionBlur(3)}
IMAGES |= {"downsample": Downsample(2), "given": Given(Mask(), {"mask": torch.ones(3, 1, 6, 6)})}


class Projections(Operator):
    """Sums along the rows and the columns, (B, H + W): no images."""

    def apply(self, x, parameters):
        return torch.cat((x.sum((1, 2)), x.sum((1, 3))), 1)

    def adjoint(self, y, parameters):
        half = y.shape[1] // 2
        return (y[:, None, None, :half] + y[:, None, half:, None]).contiguous()


class Spectrum(Operator):
    """Complex numbers, which samplers do not take."""

    def apply(self, x, parameters):
        return torch.fft.fft2(x)

    def adjoint(self, y, parameters):
        return torch.fft.ifft2(y).real


@pytest.mark.parametrize("operator", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("shape", [(3, 36), (3, 6, 6), (3, 1, 1, 6, 6)])
def test_observations_that_are_no_images(operator, shape):
    with pytest.raises(ValueError, match=r"expected y to have shape \(N, C, H, W\), got "):
        Observations(operator, y=torch.zeros(shape))


def test_complex_observations():
    with pytest.raises(TypeError, match=r"Spectrum: expected y to be real, .* real and imaginary parts as channels"):
        Observations(Spectrum(), images=Images(torch.zeros(3, 1, 6, 6)))


@pytest.mark.parametrize(
    ("operator", "given", "words"),
    [
        (Identity(), {"mask": torch.ones(3, 1, 6, 6)}, "parameters that it reads, got mask"),
        (MotionBlur(3), {"mask": torch.ones(3, 1, 6, 6)}, "parameters that it reads, got mask"),
        (GaussianBlur(3), {"kernel": torch.ones(3, 3, 3)}, "parameters that it reads, got kernel"),
        (Identity(), {"masks": torch.ones(3, 1, 6, 6)}, "parameters that it reads, got masks"),
        (Identity(), {"sigma": torch.ones(3)}, "parameters that it reads, got sigma"),
        (Mask(), {"mask": torch.ones(3, 3, 6, 6)}, "shared by the channels"),
        (Mask(), {"mask": torch.ones(3, 1, 6, 6, dtype=torch.complex64)}, "to be real"),
        (Mask(), {"mask": 2 * torch.ones(3, 6, 6) - 3}, "made of 0 and 1, got -1"),
    ],
)
def test_parameters_that_mean_something_else(operator, given, words):
    with pytest.raises(ValueError, match=words):
        Observations(operator, y=torch.zeros(3, 3, 6, 6), given=given)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_every_observation_has_its_row(rows):
    with pytest.raises(ValueError, match="given to have a row for each of the 3 observations"):
        Observations(Mask(), y=torch.zeros(3, 1, 6, 6), given={"mask": torch.ones(rows, 6, 6)})


def test_others_stand_beside_y():
    given = {"mask": torch.ones(3, 6, 6), "labels": torch.arange(3)}
    assert len(Observations(Mask(), y=torch.zeros(3, 3, 6, 6), given=given)) == 3
    physics = type("Physics", (), {"A": lambda _, x, mask: mask * x, "A_adjoint": lambda _, y, mask: mask * y})
    assert (
        len(Observations(from_deepinv(physics()), y=torch.zeros(3, 3, 6, 6), given={"mask": torch.ones(3, 3, 6, 6)}))
        == 3
    )


def test_projections_through_all_commands(tmp_path, capsys):
    y = Projections().observe(2 * torch.rand(20, 1, 12, 12, generator=torch.Generator().manual_seed(0)) - 1)
    np.savez(tmp_path / "y.npz", y=y.numpy())
    operator = f"{__name__}.Projections"
    few = {"samples": 0, "pictures": 2}
    config = write_config(tmp_path, operator=operator, evaluation=few, final_rounds=0)
    assert main(["train", "--config", str(config), "--data.observations", str(tmp_path / "y.npz")]) == 0
    common = ["--operator", operator, "--sampler", "DPS", "--sampler.steps", "2", "--batch_size", "8"]
    restore = ["restore", str(tmp_path / "run"), *common]
    for source in (["--observations", str(tmp_path / "y.npz")], ["--images", "sample:test", "--size", "12"]):
        output = tmp_path / source[0].strip("-")
        assert main([*restore, *source, "--limit", "20", "--output", str(output)]) == 0
        assert np.load(output / "observations.npz")["y"].shape == (20, 24)
    assert main(["report", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    argv = [*restore, "--images", "sample:test", "--size", "12", "--output", str(tmp_path / "c")]
    argv[argv.index(operator)] = f"{__name__}.Spectrum"
    assert main(argv) == 2
    assert one_sentence(capsys.readouterr().err, ["Spectrum", "real"])
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("flags", [["--data.size", "8"], ["--data.size", "24"]])
def test_observations_are_not_resized(flags, tmp_path, capsys):
    np.savez(tmp_path / "y.npz", y=np.zeros((4, 1, 12, 12), np.float32), mask=np.ones((4, 12, 12)))
    argv = ["train", "--config", str(write_config(tmp_path)), "--data.observations", str(tmp_path / "y.npz")]
    assert main([*argv, *flags]) == 2
    assert one_sentence(capsys.readouterr().err, ["data.size", "(1, 12, 12)", flags[1], "neither cut nor resized"])
    for name in ("size", "crop"):
        assert main(["restore", "run", "--observations", str(tmp_path / "y.npz"), f"--{name}", "12"]) == 2
        assert one_sentence(capsys.readouterr().err, [name, "neither cut nor resized"])


def test_which_operators_show_pixels_as_they_are():
    """Masks that came with a file are masks; a subclass that does something else is none."""

    class Negative(Mask):
        def apply(self, x, parameters):
            return -super().apply(x, parameters)

        def adjoint(self, y, parameters):
            return -super().adjoint(y, parameters)

    masks = {"mask": torch.ones(3, 1, 6, 6)}
    assert all(map(shows_pixels, (Mask(0.5), Identity(), Given(Mask(), masks))))
    assert not any(map(shows_pixels, (GaussianBlur(3), Negative(0.5), Given(Negative(), masks))))
