"""What the commands read and write beside a run."""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emfast._check import check, message
from emfast._files import write_file
from emfast.data.rows import Rows, rows_at_a_time

BATCH = 256  # images that are measured together


def gather(argv: list[str]) -> list[str]:
    """Returns a command line whose first words, which are paths, are one list: `report a b --output c`."""
    count = next((index for index, word in enumerate(argv) if word.startswith("-")), len(argv))
    words = [os.path.expanduser(word) for word in argv[:count]]
    return [json.dumps(words), *argv[count:]] if count else argv


def check_output(function: str, path: str | os.PathLike[str]) -> None:
    """Raises a sentence if a file cannot be written, before what is to stand in it is computed.

    Arguments:
        function: The command.
        path: The file; its folder is made.
    """
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            good = not Path(path).is_dir()
    except OSError as error:
        fix = "Choose another folder"
        raise type(error)(message(function, str(path), "to be writable", error.strerror or error, fix)) from error
    check(good, function, str(path), "to be a file", "a folder", "Choose another name")


def write_images(path: str | os.PathLike[str], images: Tensor) -> None:
    """Writes images as the array `images` of a .npz file, float32 in data units, atomically.

    Arguments:
        path: The file.
        images: (N, C, H, W) in data units.
    """
    write_file(path, lambda file: np.savez(file, images=images.float().cpu().numpy()))


def scores(x: Tensor | Rows, truth: Tensor | Rows, lpips: str | None = None) -> dict[str, float | None]:
    """Returns the means of `psnr`, `ssim` and `lpips`, a batch at a time; no SSIM for images smaller than its window.

    Arguments:
        x: (N, C, H, W) the images.
        truth: The true ones.
        lpips: The weights of LPIPS; None: it is not measured.
    Returns:
        The means by name, None for what is not measured.
    """
    from emfast import evaluation

    measures = {"psnr": evaluation.psnr, "ssim": evaluation.ssim}
    if lpips is not None:
        measures["lpips"] = partial(evaluation.lpips, weights=lpips)
    if min(x.shape[-2:]) < 11:  # the side of SSIM's window
        del measures["ssim"]
    found: dict[str, float | None] = {"psnr": None, "ssim": None}
    values = {name: torch.empty(len(x), dtype=torch.float64) for name in measures}
    for ids in torch.arange(len(x)).split(min(BATCH, rows_at_a_time(x))):
        pair = x[ids], truth[ids]
        for name, measure in measures.items():
            values[name][ids] = measure(*pair).double()
    return found | {name: float(value.mean()) for name, value in values.items()}


def belong(x: Tensor | Rows, y: Tensor | Rows) -> bool:
    """Returns whether images are nearer to their partners than to the neighbours of those, beyond 3 standard errors.

    Arguments:
        x: (N, C, H, W) the images.
        y: Their partners.
    """
    nearer = torch.empty(len(x))  # a list of small tensors would keep the memory between them from being used again
    for rows in torch.arange(len(x)).split(min(512, rows_at_a_time(x))):
        nearer[rows] = ((x[rows] - y[rows - 1]).square() - (x[rows] - y[rows]).square()).flatten(1).mean(1)
    return is_clear(nearer)


def is_clear(nearer: Tensor) -> bool:
    """Returns whether differences are positive in the mean, beyond 3 standard errors; a single one may be anything.

    Arguments:
        nearer: (N,) how much nearer images are to their partners than to others.
    """
    return len(nearer) < 2 or bool(nearer.mean() >= 3 * nearer.std() / len(nearer) ** 0.5)
