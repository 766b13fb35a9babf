"""What the commands read and write beside a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from torch import Tensor

from emfast._files import write_file


def gather(argv: list[str]) -> list[str]:
    """Returns a command line whose first words, which are paths, are one list: `report a b --output c`."""
    count = next((index for index, word in enumerate(argv) if word.startswith("-")), len(argv))
    words = [os.path.expanduser(word) for word in argv[:count]]
    return [json.dumps(words), *argv[count:]] if count else argv


def model_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder of the model: `model/` of a run, or the folder itself."""
    path = Path(path)
    return path / "model" if (path / "model").is_dir() and not (path / "unet").is_dir() else path


def write_images(path: str | os.PathLike[str], images: Tensor) -> None:
    """Writes images as the array `images` of a .npz file, float32 in data units, atomically."""
    write_file(path, lambda file: np.savez(file, images=images.float().cpu().numpy()))


def scores(x: Tensor, truth: Tensor) -> dict[str, float | None]:
    """Returns the means of `psnr` and `ssim`; no SSIM for images smaller than its window."""
    from emfast.evaluation import psnr, ssim

    window = 11
    large = min(x.shape[-2:]) >= window
    return {"psnr": float(psnr(x, truth).mean()), "ssim": float(ssim(x, truth).mean()) if large else None}
