"""CIFAR-10 and CIFAR-100 in their binary version (never the Python one: unpickling runs code)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from emfast._check import check
from emfast._files import check_regular

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
_FIX = "Give an unchanged file of the binary version: data_batch_1.bin, test_batch.bin, train.bin or test.bin"


def read_cifar(path: Path, limit: int | None = None) -> Tensor:
    """Returns the (N, 3, 32, 32) uint8 images of a CIFAR binary file, or of all data_batch_*.bin files of a folder.

    Raises:
        ValueError: If a file is not a whole number of records.
    """
    files = sorted(path.glob("data_batch_*.bin")) if path.is_dir() else [path]
    batches: list[Tensor] = []
    count = 0
    for file in files:
        if limit is not None and count >= limit:
            break
        batches.append(_read_batch(file))
        count += len(batches[-1])
    return torch.cat(batches)[:limit]


def _read_batch(path: Path) -> Tensor:
    """A record is 1 label byte (CIFAR-10) or 2 (CIFAR-100), then the pixels, channel by channel."""
    check_regular("load", path)
    content = path.read_bytes()
    labels = 2 if path.name in ("train.bin", "test.bin") else 1
    record = labels + PIXELS
    good = len(content) > 0 and len(content) % record == 0
    requirement = f"to be a whole number of records of {record} bytes"
    check(good, "load", str(path), requirement, f"{len(content)} bytes", _FIX)
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, record)
    return records[:, labels:].reshape(-1, *SHAPE).contiguous()
