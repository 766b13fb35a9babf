"""Mean and covariance of the features of a set of images, in a file: the reference of a Frechet distance."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emfast._check import check, message
from emfast._files import write_file


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of features, float64, and the name of their space where it is known."""

    mean: Tensor
    covariance: Tensor
    space: str | None = None


def statistics_of(
    features: Tensor,  # (N, D)
    space: str | None = None,
) -> Statistics:
    """Returns the statistics of features.

    Arguments:
        features: One row for each image.
        space: The name of their space.
    Returns:
        Mean and covariance, in float64.
    """
    rows = features.detach().cpu().double()
    check(len(rows) > 1, "statistics_of", "features", "of shape (N >= 2, D)", features)
    return Statistics(rows.mean(0), torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1]), space)


def read_statistics(path: str | os.PathLike[str]) -> Statistics | None:
    """Returns the statistics in a .npz file with `mu` and `sigma`, as pytorch-fid and EDM write them; None of others.

    Arguments:
        path: The file.
    Raises:
        ValueError: If they are of no features.
    """
    if Path(path).suffix != ".npz" or not Path(path).is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file.files):
                return None
            mean, covariance = (torch.from_numpy(np.asarray(file[key], np.float64)) for key in ("mu", "sigma"))
            space = str(file["features"]) if "features" in file.files else None
    except (OSError, ValueError) as error:
        found = type(error).__name__
        raise ValueError(message("evaluate", str(path), "to be a .npz file of numbers", found)) from error
    good = mean.ndim == 1 and covariance.shape == (len(mean), len(mean))
    found = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
    check(good, "evaluate", str(path), "to hold mu (D,) and sigma (D, D)", found)
    finite = bool(mean.isfinite().all() and covariance.isfinite().all())
    check(finite, "evaluate", str(path), "to be finite", "NaN or infinity")
    return Statistics(mean, covariance, space)


def write_statistics(path: str | os.PathLike[str], statistics: Statistics) -> None:
    """Writes statistics to a .npz file that `read_statistics`, pytorch-fid and EDM read.

    Arguments:
        path: The file.
        statistics: The statistics.
    """
    arrays: dict[str, Any] = {"mu": statistics.mean.numpy(), "sigma": statistics.covariance.numpy()}
    if statistics.space is not None:
        arrays["features"] = np.asarray(statistics.space)
    write_file(path, lambda file: np.savez(file, **arrays))


def distance_to(
    features: Tensor,  # (N, D)
    reference: Statistics,
) -> float:
    r"""Returns the Frechet distance between features and statistics, as `frechet_distance` between two sets.

    Arguments:
        features: Features of images.
        reference: The statistics of others, of the same space.
    Returns:
        The distance, computed in float64.
    Raises:
        ValueError: If they have not the same number of features.
    """
    own = statistics_of(features)
    good = own.mean.shape == reference.mean.shape
    fix = "Take the features that the statistics are of"
    check(good, "distance_to", "features", f"to be {len(reference.mean)} each", len(own.mean), fix)
    values, vectors = torch.linalg.eigh(reference.covariance)
    root = vectors * values.clamp_min(0).sqrt()  # root root' is the covariance
    rows = features.detach().cpu().double() - own.mean
    cross = torch.linalg.svdvals(rows @ root).sum() / (len(rows) - 1) ** 0.5
    mean = (own.mean - reference.mean).square().sum()
    return max(float(mean + own.covariance.trace() + values.clamp_min(0).sum() - 2 * cross), 0.0)
