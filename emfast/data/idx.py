"""IDX files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from emfast._check import check, message
from emfast.data.file_rows import FileRows, Part, collect
from emfast.data.rows import Rows, mapped, picked, small

_FIX = "The file is damaged or of another format: restore it from a copy"
UNSIGNED_BYTE = 8
PIECE = 1 << 24
GZIP = b"\x1f\x8b"


def read_idx(path: Path, limit: int | None = None) -> Tensor | Rows:
    """Returns the (N, 1, H, W) uint8 images of an IDX file, compressed or not; of many the rows in a file.

    Arguments:
        path: The file.
        limit: How many images; none: all.
    Raises:
        ValueError: If the file is damaged, truncated, or does not hold images of bytes.
    """
    array = read_array(path, limit)
    check(array.ndim == 3, "load", str(path), "to hold images (3 dimensions)", array, "Give the images file")
    return mapped(array, lambda images: images[:, None])


def read_array(path: Path, limit: int | None = None) -> Tensor | Rows:
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
            whole, row = math.prod(shape), math.prod(shape[1:])
            check(whole > 0, "load", str(path), "to hold at least one image", f"shape {tuple(shape)}", _FIX)
            if packed:
                rows = collect(_stream(file, path, whole, row))
            else:
                _check_length(path, whole, path.stat().st_size - file.tell())
                rows = small(FileRows([Part(path, file.tell(), shape[0])], shape[1:], torch.uint8))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(message("load", str(path), "to be a whole gzip file", str(error), _FIX)) from error
    rows = mapped(rows, lambda found: found.reshape(-1, *shape[1:])) if packed else rows
    return picked(rows, slice(0, limit))


def _stream(file: IO[bytes] | gzip.GzipFile, path: Path, whole: int, row: int) -> Iterator[Tensor]:
    """Yields the rows of a file, flat, some at a time: a damaged header may ask for more bytes than there is memory.

    It is read to its end, where gzip has its checksum.
    """
    count, rest = 0, b""
    while count <= whole and (piece := file.read(PIECE)):
        count += len(piece)
        content = bytearray(rest + piece)
        full = len(content) // row * row
        rest = bytes(content[full:])
        if full:
            yield torch.frombuffer(content, dtype=torch.uint8, count=full).reshape(-1, row)
    _check_length(path, whole, count)


def _check_length(path: Path, whole: int, count: int) -> None:
    found = f"{count}: it is truncated" if count < whole else "more"
    check(count == whole, "load", str(path), f"to hold {whole} bytes after its header", found, _FIX)


def _read_shape(file: IO[bytes] | gzip.GzipFile, path: Path) -> list[int]:
    """The shape in the header."""
    start = file.read(4)
    good = len(start) == 4 and start[:3] == bytes([0, 0, UNSIGNED_BYTE]) and start[3] > 0
    check(good, "load", str(path), "to start with an IDX header of bytes", start.hex() or "nothing", _FIX)
    header = file.read(4 * start[3])
    check(len(header) == 4 * start[3], "load", str(path), "to hold a whole header", f"{len(header)} bytes", _FIX)
    return [int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4)]
