"""What a run shows: tables and pictures, made from the files of the run alone, so that they can be made again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfast._check import check, message
from emfast._files import read_tensors, write_file
from emfast.em.held_out import NAMES as HELD_OUT
from emfast.em.state import check_row
from emfast.reporting.pictures import Row, draw_rows, draw_summary_figure, to_grid

if TYPE_CHECKING:
    from rich.table import Table

Metrics = dict[str, Any]
NOTABLE = 0.3  # dB that a fall has to have to be told
SAME = 0.03  # by which share estimates of the noise may differ, or held-out PSNRs cannot be compared
UNSURE = 0.5  # of the variance: an error twice the spread's square is told
PREVIEW = "preview.safetensors"
SUMMARY = "summary.png"

Column = tuple[str, str, str]  # heading, key, format
COLUMNS: tuple[Column, ...] = (
    ("round", "round", "d"),
    ("phase", "phase", "s"),
    ("PSNR", "psnr", ".2f"),
    ("SSIM", "ssim", ".3f"),
    ("misfit", "misfit", ".2e"),
    ("FD", "fd", ".2f"),
    ("held out", "held_out_psnr", ".2f"),
    ("variance", "held_out_variance", ".2f"),
    ("scale", "scale", "g"),
    ("evals", "network_evaluations", ",d"),
    ("E-step", "seconds_e_step", ".1f s"),
    ("M-step", "seconds_m_step", ".1f s"),
)


def read_metrics(run: str | os.PathLike[str]) -> list[Metrics]:
    """Returns the rows of a run's `metrics.jsonl`, one for each finished round.

    Raises:
        FileNotFoundError: If the folder is not a run.
        ValueError: If the file is damaged; the line is named.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        fix = "Give the output folder of `emfast train`, after its first round"
        if (Path(run) / "reconstructions" / "manifest.json").is_file():
            fix = "It is a restoration that was not finished: the same `emfast restore` goes on with it"
        raise FileNotFoundError(message("report", str(run), "to be a run", "no metrics.jsonl there", fix))
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(message("report", f"line {number} of {path}", "to be JSON", str(error))) from error
        check_row("report", f"line {number} of {path}", row)
        rows.append(row)
    check(len(rows) > 0, "report", str(path), "to hold at least one round", "an empty file")
    return rows


def columns_of_run(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Returns the COLUMNS that a run has: those of held-out observations where it holds some out."""
    return [column for column in COLUMNS if column[1] not in HELD_OUT or any(column[1] in row for row in rows)]


def cells(row: Mapping[str, Any], columns: Sequence[Column] = COLUMNS) -> list[str]:
    """Returns a row of metrics as texts in the order of the columns; what is not known is a dash.

    Arguments:
        row: The metrics of a round.
        columns: The columns: heading, key and format of each.
    """
    return [_cell(row.get(key), spec) for _, key, spec in columns]


def metrics_table(rows: Sequence[Metrics]) -> Table:
    """Returns the table of the rounds, for a terminal."""
    return plain_table([(column[0], [cells(row, [column])[0] for row in rows]) for column in columns_of_run(rows)])


def plain_table(columns: Sequence[tuple[str, Sequence[str]]]) -> Table:
    """Returns a table of the given (heading, cells) columns, for a terminal.

    A number that is cut is another one: print it with `soft_wrap=True`, and a narrow terminal breaks its lines.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table

    widths = [max(map(cell_len, (heading, *texts))) for heading, texts in columns]
    whole = sum(widths) + len(widths) + 1  # a space between two columns, and at both ends
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, width=whole)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in zip(*(values for _, values in columns), strict=True):
        table.add_row(*line)
    return table


def first_and_last(rows: Sequence[Metrics]) -> str:
    """Returns one line that compares the first with the last E-step, and the initial with the last model."""
    parts = []
    psnr = [row["psnr"] for row in rows if row.get("psnr") is not None]
    if psnr:
        gain = f" ({psnr[-1] - psnr[0]:+.2f} dB)" if len(psnr) > 1 else ""
        parts.append(f"PSNR of the E-step: {psnr[0]:.2f} -> {psnr[-1]:.2f} dB{gain}")
    distances = [row for row in rows if row.get("fd") is not None]
    if distances:
        first, last = distances[0], distances[-1]
        parts.append(f"FD of the samples ({last.get('features')}): {first['fd']:.2f} -> {last['fd']:.2f}")
    held = _comparable(rows)
    if held:
        parts.append(f"held out: {held[0][HELD_OUT[0]]:.2f} -> {held[-1][HELD_OUT[0]]:.2f} dB")
    return "; ".join(parts) or "No metrics: neither the truth nor a reference is known; data.held_out tells without"


def advice(rows: Sequence[Metrics]) -> str | None:
    """Returns what held-out observations say against the last model, in a sentence or two; None if nothing."""
    psnr, variance = HELD_OUT
    known = _comparable(rows)
    if not known:
        return None
    best, last, said = max(known, key=lambda row: row[psnr]), known[-1], []
    if best[psnr] - last[psnr] > NOTABLE:
        said.append(
            f"Held-out observations were best in round {best['round']}, {best[psnr]:.2f} dB: since then the model "
            f"learns its images by heart. That model is rounds/{best['round']:03d}/model; fewer rounds or more images "
            "help."
        )
    if last.get(variance) is not None and last[variance] < UNSURE:
        # Samples may agree altogether, where no number says by how much.
        factor = f", by a factor of {last[variance] ** -0.5:.1f}" if last[variance] >= 0.005 else ""
        said.append(
            f"Posterior samples vary {last[variance]:.2f} times as much as their error asks for: the spread of samples "
            f"tells too small an error{factor}."
        )
    return " ".join(said) or None


def _comparable(rows: Sequence[Metrics]) -> list[Metrics]:
    """Returns the rows with a held-out PSNR, of an unknown noise those that take it to be that of the last one.

    What noise adds to the error is subtracted: where it is thought to be less, the same model seems to be better.
    """
    known = [row for row in rows if row.get(HELD_OUT[0]) is not None]
    last = known[-1].get("sigma") if known else None
    return [row for row in known if last is None or abs(row.get("sigma", 0.0) - last) <= SAME * last]


def draw_round(folder: str | os.PathLike[str]) -> list[Path]:
    """Draws the pictures of one round, `reconstructions.png` and `samples.png`, from its preview.

    Arguments:
        folder: `rounds/NNN` of a run.
    Returns:
        The files written.
    """
    folder = Path(folder)
    preview = read_tensors(folder / PREVIEW)
    written = []
    rows = [_row(name, preview) for name in ("truth", "observation", "reconstruction") if name in preview]
    rows = [row for row in rows if row.drawable]
    if rows:
        path = folder / "reconstructions.png"
        write_file(path, lambda file: draw_rows(rows, file, title=f"round {int(folder.name)}"))
        written.append(path)
    if len(preview.get("samples", ())):
        written.append(save_grid(folder / "samples.png", preview["samples"]))
    return written


def draw_summary(run: str | os.PathLike[str]) -> Path:
    """Draws `summary.png`, the whole run in one picture: what the first E-step and model gave, and what the last.

    Returns:
        The file written.
    """
    run = Path(run)
    rows = read_metrics(run)
    previews = {row["round"]: _preview(run, row["round"]) for row in (rows[0], *_e_steps(rows, run), rows[-1])}
    path = run / SUMMARY
    images = _summary_rows(rows, previews, run)
    write_file(path, lambda file: draw_summary_figure(images, rows, file, title=run.name))
    return path


def draw_run(run: str | os.PathLike[str]) -> Path:
    """Draws all pictures of a run again.

    Returns:
        The path of `summary.png`.
    """
    for row in read_metrics(run):
        folder = round_folder(run, row["round"])
        if (folder / PREVIEW).is_file():
            draw_round(folder)
    return draw_summary(run)


def save_grid(path: str | os.PathLike[str], images: Tensor, columns: int | None = None) -> Path:
    """Writes images as one PNG, atomically.

    Arguments:
        path: The file.
        images: (N, C, H, W) in data units; clipped to [-1, 1] for the picture.
        columns: Images per row; a square grid by default.
    Returns:
        The file.
    """
    from PIL import Image

    columns = columns or math.ceil(math.sqrt(len(images)))
    grid = Image.fromarray(to_grid(images, columns))
    write_file(path, lambda file: grid.save(file, format="PNG"))
    return Path(path)


def round_folder(run: str | os.PathLike[str], number: int) -> Path:
    """Returns the folder of a round.

    Arguments:
        run: The folder of the run.
        number: The round; 0 is the initial model.
    """
    return Path(run) / "rounds" / f"{number:03d}"


def _row(name: str, preview: Mapping[str, Tensor], group: int = 0) -> Row:
    """A row of a preview, the missing pixels of observations marked as such."""
    return Row(name, preview[name], group, preview.get("mask") if name == "observation" else None)


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return "-"
    spec, _, unit = spec.partition(" ")
    if spec.endswith("d"):
        value = round(value)
    return f"{value:{spec}} {unit}".rstrip()


def _preview(run: Path, number: int) -> dict[str, Tensor]:
    path = round_folder(run, number) / PREVIEW
    return read_tensors(path) if path.is_file() else {}


def _e_steps(rows: Sequence[Metrics], run: Path) -> list[Metrics]:
    """The rows of the first and the last round with a reconstruction."""
    found = [row for row in rows if "reconstruction" in _preview(run, row["round"])]
    return [found[0], found[-1]] if found else []


def _summary_rows(rows: Sequence[Metrics], previews: Mapping[int, dict[str, Tensor]], run: Path) -> list[Row]:
    """The rows of the summary: the observations once if both E-steps show the same ones, then the samples."""
    result: list[Row] = []
    shown: Tensor | None = None
    group = 0
    steps = _e_steps(rows, run)
    single = len({row["round"] for row in steps}) == 1
    for row, which in zip(steps[:1] if single else steps, ("first", "last"), strict=False):
        preview = previews[row["round"]]
        if shown is None or not torch.equal(shown, preview["observation"]):
            shown = preview["observation"]
            group = len(result)
            result += [_row(name, preview, group) for name in ("truth", "observation") if name in preview]
        psnr = f"\n{row['psnr']:.2f} dB" if row.get("psnr") is not None else ""
        result.append(Row(f"{'' if single else which + ' '}E-step{psnr}", preview["reconstruction"], group))
    count = len(result[0].images) if result else 8
    ends = rows[:1] if len(rows) == 1 else [rows[0], rows[-1]]
    for row, which in zip(ends, ("initial", "last"), strict=False):
        preview = previews[row["round"]]
        if "samples" in preview:
            distance = f"\nFD {row['fd']:.1f}" if row.get("fd") is not None else ""
            result.append(Row(f"samples of the\n{which} model{distance}", preview["samples"][:count], group=-1))
    return [row for row in result if row.drawable]
