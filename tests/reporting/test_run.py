"""Pictures and tables of a run, from its files alone."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from emfast import reporting
from emfast._files import write_tensors
from emfast.em import Progress, RoundFinished, TrainingLogged
from emfast.reporting.pictures import Row, to_grid


def write_run(folder, *, channels=1, truth=True, rounds=3, same=True):
    """Writes what `emfast train` leaves for the report."""
    generator = torch.Generator().manual_seed(0)

    def images(count):
        return torch.rand(count, channels, 8, 8, generator=generator) * 2 - 1

    kept, rows = images(4), []
    for number in range(rounds):
        row = {"round": number, "phase": "warm" if number else "initial", "fd": 30.0 - number, "features": "f"}
        preview = {"samples": images(9)}
        if number:
            seen = kept if same else images(4)
            preview |= {"observation": seen, "reconstruction": images(4)} | ({"truth": kept} if truth else {})
            row |= {"psnr": 20.0 + number if truth else None, "misfit": 1e-3, "network_evaluations": 100}
        rows.append(row)
        write_tensors(folder / f"rounds/{number:03d}/preview.safetensors", preview)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("truth", [True, False])
def test_draw_run(tmp_path, channels, truth):
    write_run(tmp_path, channels=channels, truth=truth)
    path = reporting.draw_run(tmp_path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 10
    assert not (tmp_path / "rounds/000/reconstructions.png").exists()
    assert (tmp_path / "rounds/002/reconstructions.png").is_file()
    assert not list(tmp_path.rglob(".tmp*"))


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_run_may_have_just_begun(tmp_path, rounds):
    write_run(tmp_path, rounds=rounds)
    assert reporting.draw_run(tmp_path).is_file()


def height(path):
    with Image.open(path) as picture:
        return picture.size[1]


def test_observations_that_differ_are_shown_twice(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", same=False)
    assert height(reporting.draw_summary(tmp_path / "b")) > height(reporting.draw_summary(tmp_path / "a"))


def test_observations_that_are_no_images_are_left_out(tmp_path):
    write_run(tmp_path)
    folder = tmp_path / "rounds/001"
    write_tensors(
        folder / "preview.safetensors", {"observation": torch.zeros(4, 7), "reconstruction": torch.zeros(4, 1, 8, 8)}
    )
    assert len(reporting.draw_round(folder)) == 1
    assert reporting.draw_summary(tmp_path).is_file()


def test_a_round_without_samples(tmp_path):
    write_run(tmp_path)
    folder = tmp_path / "rounds/000"
    write_tensors(folder / "preview.safetensors", {"samples": torch.empty(0, 1, 8, 8)})
    assert reporting.draw_round(folder) == []
    assert reporting.draw_summary(tmp_path).is_file()


def test_to_grid():
    images = torch.tensor([-1.0, 0.0, 1.0, 5.0]).reshape(4, 1, 1, 1).expand(4, 1, 64, 64)
    grid = to_grid(images, 3)
    assert grid.shape == (2 * 64 + 2, 3 * 64 + 4, 3)
    assert [grid[0, 66 * i, 0] for i in range(3)] == [0, 128, 255]
    assert grid[66, 0, 0] == 255  # clipped
    assert grid[66, 80, 0] == 255  # the place of no image is white


def test_to_grid_enlarges_by_whole_pixels_and_keeps_colours():
    image = torch.zeros(1, 3, 30, 30)
    image[0, 0] = 1
    grid = to_grid(image, 1)
    assert grid.shape == (90, 90, 3)
    assert grid[0, 0].tolist() == [255, 128, 128]


def test_row_drawable():
    assert Row("a", torch.zeros(1, 1, 2, 2)).drawable
    assert not Row("a", torch.zeros(1, 2)).drawable
    assert not Row("a", torch.zeros(0, 1, 2, 2)).drawable


def test_first_and_last(tmp_path):
    rows = write_run(tmp_path)
    line = reporting.first_and_last(rows)
    assert line == "PSNR of the E-step: 21.00 -> 22.00 dB (+1.00 dB); FD of the samples (f): 30.00 -> 28.00"
    assert reporting.first_and_last([{"round": 0}]).startswith("No metrics")


def test_metrics_table_fits_a_terminal(tmp_path):
    rows = write_run(tmp_path)
    rows[-1] |= {"scale": 1.0, "seconds_e_step": 12345.0, "seconds_m_step": 12345.0, "network_evaluations": 5_000_000}
    file = io.StringIO()
    Console(file=file, width=80).print(reporting.metrics_table(rows))
    Console(file=file, width=30).print(reporting.metrics_table(rows), soft_wrap=True)
    text = file.getvalue()
    assert "…" not in text
    assert text.count("5,000,000") == 2
    assert text.count("12345.0 s") == 4


def test_evaluations_of_an_image_are_rounded():
    place = [key for _, key, _ in reporting.COLUMNS].index("network_evaluations")
    assert reporting.cells({"network_evaluations": 3.67})[place] == "4"


def test_read_metrics_names_the_damaged_line(tmp_path):
    write_run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"round":')
    with pytest.raises(ValueError, match="line 4"):
        reporting.read_metrics(tmp_path)


def test_read_metrics_of_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics"):
        reporting.read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="empty"):
        reporting.read_metrics(tmp_path)


def test_missing_pixels_are_hatched():
    images, mask = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    mask[0, 0, :4] = 0
    grid = to_grid(images, 2, mask)
    plain = to_grid(images, 2)
    assert len(np.unique(grid[:32, :64].reshape(-1, 3), axis=0)) == 2  # lines and paper, no grey
    assert (grid[:32, :64] != 128).all()
    assert np.array_equal(grid[32:, :64], plain[32:, :64])
    assert np.array_equal(grid[:, 66:], plain[:, 66:])


def test_a_run_in_python_is_shown_in_lines(capsys):
    for done in range(1, 101):
        reporting.show(Progress("m-step", 1, done, 100))
    row = {"step": 100, "steps": 100, "loss": 0.25, "images_per_second": 812.3}
    reporting.show(TrainingLogged(1, row))
    reporting.show(RoundFinished({"round": 1, "phase": "warm", "psnr": 25.317, "fd": None}, Path("rounds/001")))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[9:] == [
        "round 1: m-step 100/100",
        "round 1: step 100, loss 0.25, 812 images/s",
        "round 1, phase warm, PSNR 25.32",
    ]


def test_held_out_observations_say_what_is_wrong_with_the_last_model():
    rows = [{"round": k, "held_out_psnr": psnr, "held_out_variance": 0.8} for k, psnr in enumerate((20.0, 22.0, 21.9))]
    assert reporting.advice(rows) is None
    assert "held out: 20.00 -> 21.90 dB" in reporting.first_and_last(rows)
    rows[2] |= {"held_out_psnr": 21.0, "held_out_variance": 0.25}
    assert "best in round 1, 22.00 dB" in reporting.advice(rows)
    assert "rounds/001/model" in reporting.advice(rows)
    assert "by a factor of 2.0" in reporting.advice(rows)
    rows[2]["held_out_variance"] = 0.0  # samples that are all the same
    assert reporting.advice(rows).endswith(
        "vary 0.00 times as much as their error asks for: the spread of samples tells too small an error."
    )
    assert reporting.advice([{"round": 0, "psnr": 20.0}]) is None


def test_held_out_observations_are_compared_under_one_noise_only():
    rows = [{"round": k, "held_out_psnr": 34.0 - k, "sigma": sigma} for k, sigma in enumerate((0.05, 0.1, 0.101))]
    rows[1]["held_out_psnr"] = 32.1
    assert reporting.advice(rows) is None
    assert "held out: 32.10 -> 32.00 dB" in reporting.first_and_last(rows)
    rows[1]["held_out_psnr"] = 32.4
    assert "best in round 1, 32.40 dB" in reporting.advice(rows)


def test_the_columns_of_held_out_observations_are_there_where_there_are_some():
    heads = [[column[0] for column in reporting.columns_of_run([row])] for row in ({}, {"held_out_psnr": None})]
    assert "held out" not in heads[0]
    assert "held out" in heads[1]
