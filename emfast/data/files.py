"""What a file holds, told by its first bytes, and the files of a folder, each once."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from emfast._check import check_regular

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
ARRAYS = {".npy": "npy", ".npz": "npz", ".safetensors": "safetensors", ".h5": "hdf5", ".hdf5": "hdf5"}
SUFFIXES = {**ARRAYS, **dict.fromkeys(PICTURES, "picture"), ".bin": "cifar", ".gz": "idx"}
SIGNATURES = {
    "npy": (b"\x93NUMPY",),
    "npz": (b"PK\x03\x04", b"PK\x05\x06"),
    "hdf5": (b"\x89HDF\r\n\x1a\n",),
    "idx": (b"\x1f\x8b",),  # compressed by gzip
    "picture": (
        *(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF"),
        *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF in either byte order, and BigTIFF
        *(b"P%d%s" % (kind, space) for kind in range(1, 7) for space in (b"\n", b" ", b"\t", b"\r")),
    ),
}
IDX_TYPES = {8: 1, 9: 1, 11: 2, 12: 4, 13: 4, 14: 8}  # bytes of a value


def format_of(path: Path) -> str | None:
    """Returns "npy", "npz", "safetensors", "hdf5", "idx", "picture" or "cifar", None for what is none of them.

    The content decides, whatever the name. Only where it says nothing, as in a damaged file, the name does; files of
    CIFAR have no mark at all.

    Arguments:
        path: A file; a folder is none of them.
    Raises:
        ValueError: If it is a pipe, a socket or a device.
        OSError: If it cannot be read.
    """
    check_regular("load", path)
    if path.is_dir():
        return None
    with path.open("rb") as file:
        start, size = file.read(256), file.seek(0, os.SEEK_END)
    for name, signatures in SIGNATURES.items():
        if start.startswith(signatures):
            return name
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    if _is_idx(start, size) or (path.suffix.lower() not in SUFFIXES and _is_called_idx(path)):
        return "idx"
    return SUFFIXES.get(path.suffix.lower())


def _is_idx(start: bytes, size: int) -> bool:
    """Whether a file begins as IDX, and is as long as its header says."""
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in IDX_TYPES:
        return False
    end = 4 + 4 * start[3]
    shape = [int.from_bytes(start[i : i + 4], "big") for i in range(4, min(end, len(start)), 4)]
    return size == end + IDX_TYPES[start[2]] * math.prod(shape)


def _is_called_idx(path: Path) -> bool:
    return any(part in path.name.lower() for part in ("ubyte", "idx"))


def distinct(paths: Iterable[Path]) -> list[Path]:
    """Returns the paths that lead to different files or folders: of several links to one thing the first."""
    found: dict[object, Path] = {}
    for path in paths:
        found.setdefault(_identity(path), path)
    return list(found.values())


def files_below(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder and those below it, in order; links are followed, each folder is visited once.

    Hidden files and folders are left out.

    Raises:
        OSError: If a folder cannot be read.
    """
    seen: set[object] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        identity = _identity(Path(root))
        folders[:] = [] if identity in seen else sorted(name for name in folders if not name.startswith("."))
        if identity not in seen:
            yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
        seen.add(identity)


def _identity(path: Path) -> object:
    """What all links to one file or folder share."""
    try:
        status = path.stat()
    except OSError:  # a broken link is itself
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else path.resolve()


def _raise(error: OSError) -> NoReturn:
    raise error
