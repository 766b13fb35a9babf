"""The report of runs: one HTML page that needs nothing else, made from their files alone."""

from __future__ import annotations

import base64
import html
import io
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emfast._check import check
from emfast._files import read_json, read_tensors, write_text
from emfast._json import to_json
from emfast._records import read_record
from emfast.em.state import TRAINING
from emfast.em.training_log import LEVELS
from emfast.reporting.pictures import to_grid
from emfast.reporting.run import COLUMNS, PREVIEW, cells, read_metrics, round_folder

REPORT = "report.html"
CURVES = (
    ("psnr", "PSNR of the E-step (dB)"),
    ("ssim", "SSIM of the E-step"),
    ("fd", "Frechet distance of samples"),
    ("held_out_psnr", "PSNR of held-out observations, without the truth (dB)"),
    ("held_out_variance", "variance of samples over what their error asks for"),
    ("misfit", "data misfit"),
    ("network_evaluations", "network evaluations per image"),
    ("seconds", "seconds of a round"),
)
LOGGED = (  # and whether its axis is logarithmic
    ("loss", "training loss", True),
    ("gradient_norm", "gradient norm", True),
    ("learning_rate", "learning rate", False),
    ("images_per_second", "images per second", False),
)
POINTS = 400  # of a curve


def write_report(folders: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str] | None = None) -> Path:
    """Writes the report of runs, side by side where there are several: one HTML page that loads nothing.

    Arguments:
        folders: Output folders of `emfast train`, after their first round, or of `emfast restore`.
        path: The page; `report.html` in the folder of the first by default.
    Returns:
        The page.
    Raises:
        FileNotFoundError: If a folder is none of these.
        ValueError: If a file in one is damaged.
    """
    check(len(folders) > 0, "report", "a run", "to be given", "none")
    names = _names([Path(folder) for folder in folders])
    pictures = _Pictures()
    runs = [_run(Path(folder), name, pictures) for folder, name in zip(folders, names, strict=True)]
    curves = [[key, name] for key, name in CURVES]
    # No "<" in it: the text of a file cannot end the element that holds it.
    content = {"runs": runs, "pictures": pictures.urls, "curves": curves, "training": LOGGED, "levels": LEVELS}
    data = to_json(content).replace("<", "\\u003c")
    commands = "".join(f"<pre>{html.escape(run['command'])}</pre>" for run in runs)
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    path = Path(path) if path is not None else Path(folders[0]) / REPORT
    parts = {"table": _table(runs), "configs": _configs(runs), "commands": commands, "data": data}
    write_text(path, template.substitute(parts, title=html.escape("emfast: " + ", ".join(names))))
    return path


class _Pictures:
    """Images as PNG in the text of the page, each once."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.places: dict[bytes, int] = {}

    def add(self, pixels: np.ndarray[Any, Any]) -> int:
        """Returns the place of an image, (H, W), (H, W, 2) with transparency, (H, W, 3) or (H, W, 4), uint8."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        content = buffer.getvalue()
        if content not in self.places:
            self.places[content] = len(self.urls)
            self.urls.append("data:image/png;base64," + base64.b64encode(content).decode())
        return self.places[content]

    def each(self, images: Tensor, mask: Tensor | None = None) -> list[int]:
        """Returns the places of images in data units, (N, C, H, W); what is missing is transparent."""
        pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte()
        pixels = pixels if pixels.shape[1] == 3 else pixels[:, :1]
        if mask is not None:
            pixels = torch.cat((pixels, (mask != 0).byte() * 255), 1)
        return [self.add(image.permute(1, 2, 0).squeeze(2).numpy()) for image in pixels]


def _names(folders: list[Path]) -> list[str]:
    """Returns the names of folders, with as much of their paths as tells them apart."""
    for depth in range(1, 20):
        names = ["/".join(folder.absolute().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{index + 1}: {folder}" for index, folder in enumerate(folders)]


def _run(folder: Path, name: str, pictures: _Pictures) -> dict[str, Any]:
    """Returns what the page shows of a run, or of a folder of restored images."""
    restored = (folder / "metrics.json").is_file() and not (folder / "metrics.jsonl").is_file()
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    command = f"emfast {'restore' if restored else 'train'} --config {shlex.quote(str(config))}"
    known: dict[str, Any] = {"name": name, "command": command, "config": text, "rows": [], "log": [], "final": {}}
    if restored:
        metrics = read_json(folder / "metrics.json")
        check(isinstance(metrics, dict), "report", str(folder / "metrics.json"), "to hold an object", metrics)
        preview = _preview(folder / PREVIEW, 0, pictures)
        return {**known, "final": {"phase": "restored", **metrics}, "previews": [preview]}
    rows = read_metrics(folder)
    numbers = [row["round"] for row in rows]
    previews = [_preview(round_folder(folder, number) / PREVIEW, number, pictures) for number in numbers]
    return {**known, "rows": rows, "log": _log(folder, numbers), "final": rows[-1], "previews": previews}


def _log(folder: Path, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Returns what the trainings of some rounds have logged, as many rows as a curve shows."""
    paths = [round_folder(folder, number) / TRAINING for number in numbers]
    rows = [row for path in paths if path.is_file() for row in read_record(path).get("log", [])]
    kept = rows[:: -(-len(rows) // POINTS)] if rows else []
    return [{key: row[key] for key in ("step", "loss_by_noise", *(key for key, *_ in LOGGED))} for row in kept]


def _preview(path: Path, number: int, pictures: _Pictures) -> dict[str, Any]:
    """Returns the places of the images of a round, and how good each is where the truth is known."""
    found: dict[str, Any] = {"round": number}
    if not path.is_file():
        return found
    preview = read_tensors(path)
    for kind in ("truth", "observation", "reconstruction", "mean"):
        if kind in preview and preview[kind].ndim == 4:
            found[kind] = pictures.each(preview[kind], preview.get("mask") if kind == "observation" else None)
    if len(preview.get("samples", ())):
        columns = int(np.ceil(np.sqrt(len(preview["samples"]))))
        found["samples"] = pictures.add(to_grid(preview["samples"], columns))
    if "truth" in preview and "reconstruction" in preview:
        error = (preview["reconstruction"].clamp(-1, 1) - preview["truth"]).square().flatten(1).mean(1)
        found["psnr"] = (10 * torch.log10(4 / error)).tolist()
    if "spread" in preview:
        spread = preview["spread"]
        found["spreads"] = spread.flatten(1).mean(1).tolist()
        found["spread"] = pictures.each(2 * spread / spread.max().clamp_min(1e-9) - 1)
    return found


def _table(runs: list[dict[str, Any]]) -> str:
    """Returns the last rounds of the runs, or of one run all its rounds, as a table."""
    single = len(runs) == 1 and runs[0]["rows"]
    lines = runs[0]["rows"] if single else [run["final"] for run in runs]
    columns = [k for k, (_, key, _) in enumerate(COLUMNS) if any(line.get(key) is not None for line in lines)]
    covered = any(line.get("coverage") is not None for line in lines)
    heads = ([] if single else ["run"]) + [COLUMNS[k][0] for k in columns] + ["coverage"] * covered
    body = []
    for index, line in enumerate(lines):
        found, coverage = cells(line), line.get("coverage")
        body.append(([] if single else [runs[index]["name"]]) + [found[k] for k in columns])
        if covered:
            body[-1].append("-" if coverage is None else f"{coverage:.0%} ({line['coverage_expected']:.0%} if exact)")
    return _html_table(heads, body)


def _html_table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [("th", heads), *(("td", line) for line in body)]
    lines = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) for tag, line in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _configs(runs: list[dict[str, Any]]) -> str:
    """Returns the configs, folded; of several what differs stands before them."""
    parts = []
    flat = [_flat(run["config"]) for run in runs]
    if len(runs) > 1:
        keys = sorted(set().union(*flat))
        body = [[key, *(each.get(key, "-") for each in flat)] for key in keys]
        body = [line for line in body if len(set(line[1:])) > 1]
        table = _html_table(["what differs", *(run["name"] for run in runs)], body)
        parts.append(f'<div class="scroll">{table}</div>')
    for run in runs:
        name, text = html.escape(run["name"]), html.escape(run["config"])
        parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    return "".join(parts)


def _flat(text: str) -> dict[str, str]:
    """Returns the values of a config by their dotted names."""
    import yaml

    found: dict[str, str] = {}

    def walk(tree: Any, prefix: str) -> None:
        if isinstance(tree, Mapping) and tree:
            for key, value in tree.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        elif prefix:
            found[prefix] = str(tree)

    try:
        walk(yaml.safe_load(text), "")
    except yaml.YAMLError:
        return {}
    return found
