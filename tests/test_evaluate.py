"""`emfast evaluate` for papers: statistics of a reference, LPIPS asked for at the start, tables in two formats."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import one_sentence, train

from emfast.cli import main
from emfast.evaluation import frechet_distance
from emfast.evaluation.statistics import distance_to, read_statistics, statistics_of, write_statistics
from emfast.reporting.tables import read_rows, to_latex, to_markdown

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def sets(tmp_path):
    x = 2 * np.random.default_rng(0).random((300, 1, 12, 12), dtype=np.float32) - 1
    for name, images in (("a", 0.9 * x), ("b", x), ("c", x[::-1] ** 3)):
        np.savez(tmp_path / f"{name}.npz", images=images)
    return tmp_path


@pytest.mark.parametrize("count", [5, 60])
def test_the_distance_to_statistics_is_that_to_the_set(count):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(count, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    b = torch.randn(40, 8, generator=generator) + 0.3
    assert distance_to(a, statistics_of(b)) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert distance_to(b, statistics_of(b)) == pytest.approx(0, abs=1e-9)


def test_statistics_in_a_file(tmp_path):
    found = statistics_of(torch.randn(9, 4), "a space")
    write_statistics(tmp_path / "s.npz", found)
    again = read_statistics(tmp_path / "s.npz")
    assert again.space == "a space"
    assert torch.equal(again.covariance, found.covariance)
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 1, 4, 4)))
    assert read_statistics(tmp_path / "images.npz") is None
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="to hold mu"):
        read_statistics(tmp_path / "bad.npz")


def run(capsys, *argv):
    code = main(["evaluate", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def cells(out):
    """The cells of a Markdown table's last row, by their headings."""
    table = [line for line in out.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return dict(zip(lines[0], lines[-1], strict=True))


def test_a_reference_from_a_file(sets, capsys):
    stats = sets / "stats.npz"
    flags = ("--table", "markdown")
    code, out, _ = run(capsys, sets / "a.npz", sets / "b.npz", "--statistics", stats, *flags)
    assert code == 0
    whole = cells(out)
    code, out, _ = run(capsys, sets / "a.npz", stats, *flags)
    assert code == 0
    assert cells(out)["FD (fashion-mnist)"] == whole["FD (fashion-mnist)"]
    assert cells(out)["PSNR"] == "-"
    assert whole["PSNR"] != "-"
    both = ("--samples", sets / "c.npz", "--reference", stats)
    _, out, _ = run(capsys, sets / "a.npz", sets / "b.npz", *both, "--limit", "20", *flags)
    _, alone, _ = run(capsys, sets / "c.npz", stats, *flags)
    assert cells(out)["FD (fashion-mnist)"] == cells(alone)["FD (fashion-mnist)"]
    assert cells(out)["images"] == "20"


def test_one_pair_has_scores_and_no_distance(sets, capsys):
    argv = ["evaluate", str(sets / "a.npz"), str(sets / "b.npz"), "--limit", "1", "--paired", "true"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "PSNR" in out
    assert "FD" not in out.replace("FD (", "")
    assert "left out" in err


def test_tables_with_published_rows(sets, capsys):
    beside = EXAMPLES / "paper" / "inpainting.csv"
    flags = ("--features", "none", "--beside", beside, "--name", "ours & more")
    _, out, _ = run(capsys, sets / "a.npz", sets / "b.npz", "--table", "markdown", *flags)
    assert "| EMDiffusion (published) | - | - | 24.70 | - | .009 |" in out
    assert cells(out)["method"] == "ours & more"
    assert "FD" not in cells(out)  # no column that nothing stands in
    assert cells(out)["FID"] == "-"  # another feature space does not stand in the column of FID
    _, out, _ = run(capsys, sets / "a.npz", sets / "b.npz", "--table", "latex", *flags)
    assert out.startswith("\\begin{tabular}{l")
    assert r"ours \& more" in out
    assert out.count(r"\\") == 7
    assert to_markdown([("a", ["1|2"]), ("b", ["-"])]) == "| a | b |\n| --- | ---: |\n| 1\\|2 | - |"
    assert to_latex([("a_b", ["-"])]).splitlines()[4] == r"-- \\"
    special = to_latex([("a", ["x^2", "~", "\\y"])]).splitlines()[4:7]
    assert special == [r"x\textasciicircum{}2 \\", r"\textasciitilde{} \\", r"\textbackslash{}y \\"]


def test_rows_from_a_spreadsheet(tmp_path):
    """Spreadsheets put a mark of the encoding before the first name."""
    (tmp_path / "b.csv").write_text("method,PSNR\nthe paper's,24.7\n", encoding="utf-8-sig")
    assert read_rows(str(tmp_path / "b.csv")) == [{"method": "the paper's", "PSNR": "24.7"}]


def test_no_cell_is_cut(sets, capsys, monkeypatch):
    """What is no terminal counts as 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")
    name = "a method with a name that is as long as those in papers are"
    (sets / "b.csv").write_text(f"method,PSNR,LPIPS\n{name},24.7054321,.0091\n")
    code, out, _ = run(capsys, sets / "a.npz", sets / "b.npz", "--beside", sets / "b.csv")
    assert code == 0
    for text in (name, "24.7054321", ".0091", "FD (fashion-mnist)"):
        assert text in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--lpips", "nothing.pth"), ["lpips: expected weights to be a file"]),
        (("--beside", "nothing.csv"), ["nothing.csv", "a CSV file"]),
        (("--features", "inception", "--weights", "nothing.pth"), ["features: expected", "nothing.pth"]),
    ],
)
def test_what_is_missing_is_said_before_anything_is_read(tmp_path, capsys, flags, words):
    code, _, err = run(capsys, tmp_path / "not-there-either.npz", "b.npz", *flags)
    assert code == 2
    assert one_sentence(err, words)


@pytest.mark.parametrize("option", ["weights", "samples", "reference", "statistics"])
def test_what_belongs_to_the_distance_is_not_passed_over(sets, capsys, option):
    code, _, err = run(capsys, sets / "a.npz", sets / "b.npz", f"--{option}", "x.npz", "--features", "none")
    assert code == 2
    assert one_sentence(err, [option, "--features none"])


def test_statistics_are_written_of_images_alone(sets, capsys):
    write_statistics(sets / "s.npz", statistics_of(torch.randn(9, 4), "a space"))
    for words in ([sets / "s.npz"], [sets / "b.npz", "--reference", sets / "s.npz"]):
        code, _, err = run(capsys, sets / "a.npz", *words, "--statistics", sets / "out.npz")
        assert code == 2
        assert one_sentence(err, ["statistics", "s.npz", "leave statistics out"])
    assert not (sets / "out.npz").exists()


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_positive(sets, capsys, limit):
    code, _, err = run(capsys, sets / "a.npz", sets / "b.npz", "--limit", limit)
    assert code == 2
    assert one_sentence(err, ["evaluate", "limit", "positive"])


def test_lpips_says_how_to_install_it(tmp_path, capsys):
    if __import__("importlib").util.find_spec("lpips"):
        pytest.skip("lpips is installed")
    (tmp_path / "w.pth").write_bytes(b"")
    code, _, err = run(capsys, "a.npz", "b.npz", "--lpips", tmp_path / "w.pth")
    assert code == 2
    assert one_sentence(err, ["the package lpips to be installed", "pip install 'emfast[fid]'"])


def test_the_script_of_the_paper_makes_its_table(tmp_path, capsys):
    """Its commands are noted by a command of the same name, and run here."""
    assert train(tmp_path, "--accelerate", "false", "--final_rounds", "0", "--evaluation.samples", "0") == 0
    command, noted = tmp_path / "bin" / "emfast", tmp_path / "noted"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done >> {noted}\necho >> {noted}\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "IMAGES": "4", "SAMPLES": "4"}
    script, data = EXAMPLES / "paper_table.sh", ("sample:test", "sample:test", "--size", "12")
    argv = ["sh", script, "inpainting", tmp_path / "run", *data]
    subprocess.run(list(map(str, argv)), env={**environment, "STEPS": "2"}, check=True)
    for lines in noted.read_text().strip().split("\n\n"):
        capsys.readouterr()
        assert main(lines.split("\n")) == 0
    found = cells(capsys.readouterr().out)
    assert found["method"] == "emfast, run"
    assert found["PSNR"] != "-"
    assert "FD (fashion-mnist)" in found
