"""CIFAR-10 and CIFAR-100 in their binary version (never the Python one: unpickling runs code)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from emfast._check import check_regular, message
from emfast.data.file_rows import collect
from emfast.data.files import distinct
from emfast.data.rows import Rows, picked

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
HIGHEST_LABELS = ((9,), (19, 99))  # CIFAR-10: the class; CIFAR-100: the coarse and the fine one
_FIX = "Give an unchanged file of the binary version: data_batch_1.bin, test_batch.bin, train.bin or test.bin"


def training_files(folder: Path) -> list[Path]:
    """Returns the files of a folder of CIFAR-10 or CIFAR-100: the training images, or the others if it has them alone.

    Arguments:
        folder: The folder; there are none in any other one.
    """
    batches = distinct(sorted(folder.glob("data_batch_*.bin"))) or [folder / "test_batch.bin"]
    both = [folder / "train.bin", folder / "test.bin"]
    return batches if batches[0].is_file() else both[:1] if all(path.is_file() for path in both) else []


def read_cifar(files: list[Path], limit: int | None = None) -> Tensor | Rows:
    """Returns the (N, 3, 32, 32) uint8 images of CIFAR binary files.

    Arguments:
        files: The files, in order.
        limit: How many images; none: all.
    Raises:
        ValueError: If a file is not a whole number of records.
    """
    return picked(collect(_batches(files, limit)), slice(0, limit))


def _batches(files: list[Path], limit: int | None) -> Iterator[Tensor]:
    """Yields the images of each file, as long as there are too few."""
    count = 0
    for file in files:
        if limit is None or count < limit:
            images = _read_batch(file)
            yield images
            count += len(images)


def _read_batch(path: Path) -> Tensor:
    """The images of a file: a record is its labels, then the pixels, channel by channel."""
    check_regular("load", path)
    content = path.read_bytes()
    for highest in HIGHEST_LABELS:
        labels = len(highest)
        if not content or len(content) % (labels + PIXELS):
            continue
        records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, labels + PIXELS)
        if (records[:, :labels] <= torch.tensor(highest)).all():
            return records[:, labels:].reshape(-1, *SHAPE).contiguous()
    requirement = f"to be a whole number of records of {1 + PIXELS} or {2 + PIXELS} bytes that begin with their labels"
    found = f"{len(content)} bytes"
    raise ValueError(message("load", str(path), requirement, found, _FIX))
