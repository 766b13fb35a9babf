"""IDX files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from emfast._check import check, message

_FIX = "The file is damaged or of another format: restore it from a copy"
UNSIGNED_BYTE = 8
PIECE = 1 << 24
GZIP = b"\x1f\x8b"


def read_idx(path: Path, limit: int | None = None) -> Tensor:
    """Returns the (N, 1, H, W) uint8 images of an IDX file, compressed or not.

    Arguments:
        path: The file.
        limit: How many images; none: all.
    Raises:
        ValueError: If the file is damaged, truncated, or does not hold images of bytes.
    """
    array = read_array(path, limit)
    check(array.dim() == 3, "load", str(path), "to hold images (3 dimensions)", array, "Give the images file")
    return array[:, None]


def read_array(path: Path, limit: int | None = None) -> Tensor:
    """Returns the uint8 array of an IDX file, of any number of dimensions (labels have one).

    Arguments:
        path: The file.
        limit: How many rows; none: all.
    """
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            shape = _read_shape(file, path)
            whole = math.prod(shape)
            if limit is not None:
                shape[0] = min(shape[0], limit)
            content, count = bytearray(), 0
            # Piece by piece, as a damaged header may ask for more bytes than there is memory; to the end, where gzip
            # has its checksum.
            while count <= whole and (piece := file.read(PIECE)):
                content += piece[: math.prod(shape) - len(content)]
                count += len(piece)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(message("load", str(path), "to be a whole gzip file", str(error), _FIX)) from error
    found = f"{count}: it is truncated" if count < whole else "more"
    check(count == whole, "load", str(path), f"to hold {whole} bytes after its header", found, _FIX)
    check(whole > 0, "load", str(path), "to hold at least one image", f"shape {tuple(shape)}", _FIX)
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)


def _read_shape(file: IO[bytes] | gzip.GzipFile, path: Path) -> list[int]:
    """The shape in the header."""
    start = file.read(4)
    good = len(start) == 4 and start[:3] == bytes([0, 0, UNSIGNED_BYTE]) and start[3] > 0
    check(good, "load", str(path), "to start with an IDX header of bytes", start.hex() or "nothing", _FIX)
    header = file.read(4 * start[3])
    check(len(header) == 4 * start[3], "load", str(path), "to hold a whole header", f"{len(header)} bytes", _FIX)
    return [int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4)]
