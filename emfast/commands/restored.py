"""What `emfast restore` writes: arrays, a picture, metrics, and files like those that were imported."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emfast._files import write_file, write_json, write_tensors
from emfast.commands.files import is_clear, scores
from emfast.data import Store, save_observations
from emfast.data.array_rows import write_npz
from emfast.data.origin import Origin
from emfast.data.raw import write_raw
from emfast.data.rows import Mapped, Rows, mapped, pieces, rows_at_a_time
from emfast.em import Observations
from emfast.evaluation.metrics import covered
from emfast.operators.base import Parameters
from emfast.reporting import PREVIEW, Row, draw_rows
from emfast.samplers import data_misfit

FLOATS = ("tiff", "fits", "npy", "npz", "hdf5", "safetensors")  # the kinds that hold fractions
FOLDER = re.compile(r"images|mean|std|sample-\d+")  # of files like those that were imported


class Stacked(Rows):
    """Rows of several, each made of one of each, along a new axis behind the first.

    Arguments:
        parts: Rows of one shape and dtype.
    """

    def __init__(self, parts: Sequence[Tensor | Rows]) -> None:
        super().__init__((len(parts[0]), len(parts), *parts[0].shape[1:]), parts[0].dtype)
        self.parts = parts

    def read(self, ids: Tensor) -> Tensor:
        """Returns rows."""
        return torch.stack([part[ids] for part in self.parts], 1)


def write_results(
    output: Path,
    observations: Observations,
    ids: Tensor,
    stores: Sequence[Store],
    pictures: int,
    truth: Tensor | Rows | None = None,
) -> dict[str, Any]:
    """Writes observations, reconstructions, their spread, a picture and metrics; all of them some rows at a time.

    Arguments:
        output: The folder.
        observations: The observations.
        ids: (N,) which of them were reconstructed.
        stores: Their reconstructions, one store for each sample.
        pictures: Images in the picture.
        truth: The clean images, if they are known.
    Returns:
        The metrics.
    """
    y = Mapped(ids, observations.read)
    save_observations(output / "observations.npz", y, _parameters(observations, ids, y), observations.origin)
    samples = [store.rows("images") for store in stores]
    found: dict[str, Rows] = {"images": samples[0]}
    if len(stores) > 1:
        each = Stacked(samples)
        found |= {"mean": Mapped(each, _mean), "std": Mapped(each, _std), "samples": each}
    write_file(output / "reconstructions.npz", lambda file: write_npz(file, found))
    shown = slice(0, pictures)
    preview = {"observation": observations.pictures(ids[shown]), "reconstruction": samples[0][shown]}
    if truth is not None:
        preview = {"truth": truth[shown], **preview}
    if len(stores) > 1:
        preview |= {"mean": found["mean"][shown], "spread": found["std"][shown]}
    mask = observations.mask(ids[shown])
    write_tensors(output / PREVIEW, preview | ({} if mask is None else {"mask": mask}))
    rows = [Row(name, values, mask=mask if name == "observation" else None) for name, values in preview.items()]
    # The spread is drawn from black, none, to white, a quarter of the range.
    rows = [row._replace(images=row.images * 4 - 1) if row.label == "spread" else row for row in rows if row.drawable]
    write_file(output / "reconstructions.png", lambda file: draw_rows(rows, file))
    if observations.origin is not None:
        write_files(output, observations.origin, found)
    metrics = _metrics(observations, ids, found, y, truth)
    write_json(output / "metrics.json", metrics)
    return metrics


def agree(truth: Tensor | Rows, observations: Observations) -> bool:
    """Returns whether observations are nearer to what their own truth gives than to what that of their neighbours does.

    Arguments:
        truth: The clean images.
        observations: The observations.
    """
    operator = observations.operator
    if operator.is_simulated:
        return True
    nearer = torch.empty(len(truth))
    for ids in torch.arange(len(truth)).split(rows_at_a_time(truth)):
        y = observations.read(ids)
        own, others = (data_misfit(truth[rows], y, operator, ids) for rows in (ids, ids - 1))
        nearer[ids] = others.float() - own.float()
    return is_clear(nearer)


def _parameters(observations: Observations, ids: Tensor, y: Rows) -> dict[str, Tensor | Rows]:
    """Returns the operator's parameters that are others for each observation."""

    def of(ids: Tensor) -> Parameters:
        return observations.operator.parameters(ids, tuple(y.shape[1:]))

    few = ids[:2]
    own = [name for name, value in of(few).items() if len(value) == len(few)]
    return {name: Mapped(ids, lambda ids, name=name: of(ids)[name]) for name in own}  # type: ignore[misc]


def _mean(samples: Tensor) -> Tensor:
    return samples.mean(1)


def _std(samples: Tensor) -> Tensor:
    return samples.std(1)


def write_files(output: Path, origin: Origin, found: Mapping[str, Tensor | Rows]) -> None:
    """Writes reconstructions as files like those that the observations were imported from, in their units.

    Arguments:
        output: The folder; there will be `images` for one sample, `mean`, `std` and `sample-1` ... for more.
        origin: The files and their range.
        found: The reconstructions, as `write_results` has them.
    """
    if "samples" in found:
        each = {f"sample-{k + 1}": mapped(found["samples"], partial(_one, k)) for k in range(found["samples"].shape[1])}
        folders = {"mean": found["mean"], "std": found["std"], **each}
    else:
        folders = {"images": found["images"]}
    for name, images in folders.items():
        first = 0
        for layout in origin.files:
            part = images[first : first + layout["images"]]
            first += layout["images"]
            if not len(part):
                break
            # A spread is no place in the range, and is small: fractions count, where a file can have them.
            values = part.double() * origin.range.half if name == "std" else origin.range.to_values(part)
            dtype = "float32" if name == "std" and layout["kind"] in FLOATS else layout["dtype"]
            write_raw(output / name / layout["path"], values.numpy(), {**layout, "dtype": dtype})
    for folder in output.iterdir():
        if FOLDER.fullmatch(folder.name) and folder.name not in folders:
            _remove_files(folder, origin)


def _remove_files(folder: Path, origin: Origin) -> None:
    """Removes the files of a job with another number of samples, and the folders that are then empty."""
    for layout in origin.files:
        (folder / layout["path"]).unlink(missing_ok=True)
    for path in (*sorted(folder.rglob("*/"), reverse=True), folder):
        with suppress(OSError):  # somebody has put something of theirs there
            path.rmdir()


def _one(number: int, samples: Tensor) -> Tensor:
    return samples[:, number]


def _metrics(
    observations: Observations, ids: Tensor, found: Mapping[str, Rows], y: Rows, truth: Tensor | Rows | None
) -> dict[str, Any]:
    """Returns what is known of the reconstructions; PSNR and SSIM are of one sample, `psnr_mean` of their mean."""
    row: dict[str, Any] = {"images": len(ids), "psnr": None, "ssim": None}
    row["misfit"] = None if observations.operator.is_simulated else _misfit(found["images"], y, ids, observations)
    if truth is not None:
        row |= scores(found["images"], truth)
        shown = Mapped(ids, observations.pictures)
        if shown.shape == truth.shape:
            row |= {f"{key}_observations": value for key, value in scores(shown, truth).items()}
    return row | _spread(found, truth) if "samples" in found else row


def _misfit(x: Rows, y: Rows, ids: Tensor, observations: Observations) -> float:
    """Returns the mean of the squared residual of reconstructions."""
    misfit = 0.0
    for part in torch.arange(len(ids)).split(rows_at_a_time(x)):
        misfit += float(data_misfit(x[part], y[part], observations.operator, ids[part]).sum(dtype=torch.float64))
    return misfit / len(ids)


def _spread(found: Mapping[str, Rows], truth: Tensor | Rows | None) -> dict[str, Any]:
    """Returns how much samples differ, what their mean is worth, and how often they enclose the truth."""
    samples = found["samples"]
    count = samples.shape[1]
    spread = sum(float(part.sum(dtype=torch.float64)) for _, part in pieces(found["std"]))
    row: dict[str, Any] = {"samples": count, "spread": spread / math.prod(found["std"].shape)}
    if truth is not None:
        row |= {f"{key}_mean": value for key, value in scores(found["mean"], truth).items()}
        inside = uncertain = 0
        for first, part in pieces(samples):
            some = covered(truth[first : first + len(part)], part.transpose(0, 1))
            inside, uncertain = inside + some[0], uncertain + some[1]
        row["coverage"] = inside / uncertain if uncertain else None
        row["coverage_expected"] = (count - 1) / (count + 1)
    return row
