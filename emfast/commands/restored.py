"""What `emfast restore` writes: arrays, a picture, metrics, and files like those that were imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emfast._files import write_file, write_json, write_tensors
from emfast.commands.files import scores
from emfast.data import Store, save_observations
from emfast.data.origin import Origin
from emfast.data.raw import write_raw
from emfast.em import Observations
from emfast.evaluation import coverage
from emfast.reporting import PREVIEW, Row, draw_rows
from emfast.samplers import data_misfit

FLOATS = ("tiff", "fits", "npy", "npz", "hdf5", "safetensors")  # the kinds that hold fractions


def write_results(
    output: Path,
    observations: Observations,
    ids: Tensor,
    stores: Sequence[Store],
    pictures: int,
    truth: Tensor | None = None,
) -> dict[str, Any]:
    """Writes observations, reconstructions, their spread, a picture and metrics.

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
    y = observations.read(ids)
    parameters = observations.operator.parameters(ids, tuple(y.shape[1:]))
    own = {name: value for name, value in parameters.items() if len(value) == len(ids)}
    save_observations(output / "observations.npz", y, own, observations.origin)
    samples = torch.stack([store.load("images") for store in stores])
    found = {"images": samples[0]}
    if len(stores) > 1:
        found |= {"mean": samples.mean(0), "std": samples.std(0), "samples": samples.transpose(0, 1)}
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in found.items()}
    write_file(output / "reconstructions.npz", lambda file: np.savez(file, **arrays))
    shown = slice(0, pictures)
    preview = {"observation": observations.pictures(ids[shown]), "reconstruction": samples[0, shown]}
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
    metrics = _metrics(observations, ids, samples, y, truth)
    write_json(output / "metrics.json", metrics)
    return metrics


def write_files(output: Path, origin: Origin, found: Mapping[str, Tensor]) -> None:
    """Writes reconstructions as files like those that the observations were imported from, in their units.

    Arguments:
        output: The folder; there will be `images` for one sample, `mean`, `std` and `sample-1` ... for more.
        origin: The files and their range.
        found: The reconstructions, as `write_results` has them.
    """
    if "samples" in found:
        each = {f"sample-{k + 1}": sample for k, sample in enumerate(found["samples"].unbind(1))}
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


def _metrics(
    observations: Observations, ids: Tensor, samples: Tensor, y: Tensor, truth: Tensor | None
) -> dict[str, Any]:
    """Returns what is known of the reconstructions; PSNR and SSIM are of one sample, `psnr_mean` of their mean."""
    row: dict[str, Any] = {"images": len(ids), "psnr": None, "ssim": None}
    row["misfit"] = None
    if not observations.operator.is_simulated:
        row["misfit"] = float(data_misfit(samples[0], y, observations.operator, ids).mean())
    if len(samples) > 1:
        row |= {"samples": len(samples), "spread": float(samples.std(0).mean())}
    if truth is not None:
        row |= scores(samples[0], truth)
        shown = observations.pictures(ids)
        if shown.shape == truth.shape:
            row |= {f"{key}_observations": value for key, value in scores(shown, truth).items()}
        if len(samples) > 1:
            row |= {f"{key}_mean": value for key, value in scores(samples.mean(0), truth).items()}
            row["coverage"] = coverage(truth, samples)
            row["coverage_expected"] = (len(samples) - 1) / (len(samples) + 1)
    return row
