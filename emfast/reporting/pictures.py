"""Pictures of images in data units: grids, labelled rows, and the summary of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 2  # white pixels between images
CELL = 64  # pixels that an image is enlarged to, at least
HATCH, PAPER = (np.array(tint, dtype=np.uint8) for tint in ((150, 180, 220), (240, 245, 255)))  # of missing pixels
INK, MUTED, ACCENT = "#1a1a1a", "#8a8a8a", "#1f6fb4"


class Row(NamedTuple):
    """A labelled row of images of a figure; a new group is set apart by a space."""

    label: str
    images: Tensor  # (K, C, H, W)
    group: int = 0
    mask: Tensor | None = None  # (K, 1, H, W), 0 where a pixel is missing

    @property
    def drawable(self) -> bool:
        """Whether the tensor is a batch of images (observations need not be)."""
        return self.images.ndim == 4 and len(self.images) > 0


def to_grid(images: Tensor, columns: int, mask: Tensor | None = None) -> NDArray[np.uint8]:
    """Returns images as one picture, (height, width, 3) uint8, small ones enlarged by whole pixels.

    Arguments:
        images: (N, C, H, W) in data units, clipped to [-1, 1]; RGB if C is 3, else the first channel in grey.
        columns: Images per row.
        mask: (N, 1, H, W), 0 where a pixel is missing: it is hatched, so that it is not taken for grey or black.
    """
    pixels = ((images.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    pixels = pixels if pixels.shape[-1] == 3 else np.repeat(pixels[..., :1], 3, axis=-1)
    factor = max(1, -(-CELL // max(pixels.shape[1:3])))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    if mask is not None:
        gone = (mask[:, 0].cpu().numpy() == 0).repeat(factor, axis=1).repeat(factor, axis=2)
        lines = np.add.outer(np.arange(gone.shape[1]), np.arange(gone.shape[2])) % 4 == 0
        pixels = np.where(gone[..., None], np.where(lines[..., None], HATCH, PAPER), pixels)
    count, height, width, _ = pixels.shape
    lines = -(-count // columns)
    columns = min(columns, count)
    grid = np.full((lines * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for index in range(count):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        grid[top : top + height, left : left + width] = pixels[index]
    return grid


def draw_rows(rows: Sequence[Row], file: BinaryIO, title: str = "") -> None:
    """Writes labelled rows of images as a PNG.

    Arguments:
        rows: The rows, from the top.
        file: Where to.
        title: A line above them.
    """
    figure, tops = _figure(rows, below=0.0, title=title)
    _add_images(figure, rows, tops)
    figure.savefig(file, format="png", dpi=DPI)


def draw_summary_figure(rows: Sequence[Row], metrics: Sequence[Mapping[str, Any]], file: BinaryIO, title: str) -> None:
    """Writes the summary of a run as a PNG: labelled rows of images above the plots of PSNR and distance.

    Arguments:
        rows: The rows of images, with their labels.
        metrics: Those of every round.
        file: Where to.
        title: What stands above.
    """
    names = next((str(m["features"]) for m in metrics if m.get("fd") is not None), "")
    plots = [("psnr", "PSNR of the E-step (dB)"), ("fd", f"Frechet distance of samples ({names})")]
    if all(m.get("psnr") is None for m in metrics):  # nobody knows the truth
        plots[0] = ("held_out_psnr", "PSNR of held-out observations (dB)")
    plots = [(key, text) for key, text in plots if sum(m.get(key) is not None for m in metrics) > 1]
    below = 2.0 if plots else 0.0
    figure, tops = _figure(rows, below=below, title=title)
    _add_images(figure, rows, tops)
    width, height = figure.get_size_inches()
    room = (width - MARGIN - 0.1) / max(1, len(plots))
    for index, (key, text) in enumerate(plots):
        left = LABEL if len(plots) == 1 else 0.55 + index * (room + 0.1)
        wide = width - LABEL - MARGIN if len(plots) == 1 else room - 0.6
        axes = figure.add_axes((left / width, 0.42 / height, wide / width, 1.15 / height))
        _add_curve(axes, metrics, key, text)
    figure.savefig(file, format="png", dpi=DPI)


DPI = 150
LABEL = 1.35  # inches left of the images, for the labels
MARGIN = 0.15
IMAGE = 0.78  # inches of one image


def _figure(rows: Sequence[Row], below: float, title: str) -> tuple[Figure, list[float]]:
    """An empty figure of the right size, and the distance in inches of every row from its top."""
    from matplotlib.figure import Figure

    tops, top = [], 0.42 if title else MARGIN
    for index, row in enumerate(rows):
        if index and row.group != rows[index - 1].group:
            top += 0.18
        tops.append(top)
        top += _height(row) + 0.05
    columns = max((len(row.images) for row in rows), default=8)
    figure = Figure(figsize=(LABEL + max(columns * IMAGE, 3.2) + MARGIN, top + 0.1 + below), facecolor="white")
    if title:
        x, y = MARGIN / figure.get_figwidth(), 1 - 0.14 / figure.get_figheight()
        figure.text(x, y, title, parse_math=False, size=11, weight="bold", color=INK, va="top")
    return figure, tops


def _height(row: Row) -> float:
    height, width = row.images.shape[-2:]
    return IMAGE * height / width


def _add_images(figure: Figure, rows: Sequence[Row], tops: Sequence[float]) -> None:
    """Puts the rows of images into a figure, each with its label at the left."""
    width, height = figure.get_size_inches()
    for row, top in zip(rows, tops, strict=True):
        tall, wide = _height(row), len(row.images) * IMAGE
        axes = figure.add_axes((LABEL / width, 1 - (top + tall) / height, wide / width, tall / height))
        axes.imshow(to_grid(row.images, len(row.images), row.mask), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        middle = 1 - (top + tall / 2) / height
        figure.text((LABEL - 0.1) / width, middle, row.label, size=8.5, color=INK, ha="right", va="center")


def _add_curve(axes: Axes, metrics: Sequence[Mapping[str, Any]], key: str, text: str) -> None:
    """One number over the rounds; rounds from scratch have open circles."""
    from matplotlib.ticker import MaxNLocator

    points = [(m["round"], m[key], m.get("phase") == "final") for m in metrics if m.get(key) is not None]
    rounds, values, final = zip(*points, strict=True)
    axes.plot(rounds, values, color=ACCENT, linewidth=1.6, zorder=1)
    fills = ["white" if scratch else ACCENT for scratch in final]
    axes.scatter(rounds, values, s=22, color=fills, edgecolors=ACCENT, linewidths=1.4, zorder=2)
    axes.set_title(text, size=8.5, color=INK, loc="left")
    axes.set_xlabel("round (open: from scratch)" if any(final) else "round", size=8, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.1, y=0.22)
    axes.tick_params(labelsize=7.5, colors=MUTED, length=2)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#cccccc")
    for index in (0, -1):
        above = (0, 6)
        axes.annotate(
            f"{values[index]:.2f}", (rounds[index], values[index]), above, textcoords="offset points",
            ha="center", size=7.5, color=INK,
        )  # fmt: skip
