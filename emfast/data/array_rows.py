"""Where an array lies in a file, so that its rows can be read when they are asked for."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from emfast.data.file_rows import FileRows, Part, collect
from emfast.data.rows import PIECE, Rows, picked, pieces, small

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Array(NamedTuple):
    """An array in a file whose rows lie one after the other, as numpy has them."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None  # None if it is compressed, or lies in chunks

    @property
    def is_plain(self) -> bool:
        """Whether torch has such rows."""
        kind, width = self.dtype.kind, self.dtype.itemsize
        return kind in "buifc" and width <= (16 if kind == "c" else 8) and self.dtype.isnative and len(self.shape) > 0


def rows_of_array(path: Path, array: Array, source: Hdf5Rows | str, limit: int | None = None) -> Tensor | Rows:
    """Returns the rows of a plain array, those of a small one read now.

    Arguments:
        path: The file.
        array: Where it lies there.
        source: What reads it where it does not lie plainly: the dataset, or the name in a .npz file.
        limit: Only the first so many rows.
    """
    size = array.dtype.itemsize * math.prod(array.shape[1:])
    if array.offset is not None:
        rows: Tensor | Rows = FileRows(
            [Part(path, array.offset, array.shape[0])], array.shape[1:], torch_dtype(array.dtype)
        )
    elif isinstance(source, str):
        with zipfile.ZipFile(path) as archive, archive.open(f"{source}.npy") as member:
            _header(member)
            return picked(collect(_stream(member, array, max(1, PIECE // max(1, size)))), slice(0, limit))
    else:
        rows = source
    rows = picked(rows, slice(0, limit))
    return small(rows) if isinstance(rows, Rows) else rows


def npz_array(path: Path, name: str) -> Array | None:
    """Returns where an array of a .npz file lies, after its checksum was verified; None if numpy has to read it.

    Arguments:
        path: The file.
        name: The array in it.
    Raises:
        BadZipFile: If it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as member:
            found = _header(member)
            length = member.tell()
            if found is None or found[1]:
                return None
            stored = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
            while stored and member.read(PIECE):  # its checksum is looked at behind its last byte
                pass
        with path.open("rb") as file:
            file.seek(info.header_offset)
            local = file.read(30)  # then its name and what else there is to say of it
        begin = (
            info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        )
        shape, _, dtype = found
        whole = length + dtype.itemsize * math.prod(shape) == info.file_size
        return Array(shape, dtype, begin + length if stored else None) if whole else None


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
    """Reads the header of a .npy file: the shape, whether the first axis is the fastest, and the dtype."""
    try:
        return HEADERS[npy.read_magic(member)](member)
    except (KeyError, ValueError):  # no array, or one that holds no numbers
        return None


def _stream(member: IO[bytes], array: Array, step: int) -> Iterator[Tensor]:
    """Yields the rows that are left in an open file, some at a time."""
    row = array.dtype.itemsize * math.prod(array.shape[1:])
    for start in range(0, max(1, array.shape[0]), step):
        count = min(step, array.shape[0] - start)
        content = bytearray(member.read(count * row))
        yield torch.from_numpy(np.frombuffer(content, array.dtype).reshape(count, *array.shape[1:]))
    member.read(1)  # its checksum is looked at behind its last byte


def write_npz(file: BinaryIO, arrays: Mapping[str, Tensor | Rows]) -> None:
    """Writes arrays as a .npz file, as np.savez does, some megabytes at a time; any name will do.

    Arguments:
        file: The file, open.
        arrays: The arrays by name, of one axis at least, on any device.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, rows in arrays.items():
            dtype = torch.empty(0, dtype=rows.dtype).numpy().dtype
            header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(rows.shape)}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array_header_1_0(member, header)
                for _, part in pieces(rows):
                    member.write(part.detach().cpu().contiguous().numpy().tobytes())


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """Returns torch's name of a plain dtype of numpy."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


class Hdf5Rows(Rows):
    """Rows of a dataset that is compressed, or lies in chunks.

    Arguments:
        path: The file.
        name: The dataset.
        array: Its shape and dtype.
    """

    def __init__(self, path: Path, name: str, array: Array) -> None:
        super().__init__(array.shape, torch_dtype(array.dtype))
        self.path, self.name = path, name

    def read(self, ids: Tensor) -> Tensor:
        """Returns rows; each chunk is read once."""
        import h5py

        wanted, places = ids.unique(return_inverse=True)
        with h5py.File(self.path, "r") as file:
            dataset = file[self.name]
            runs = np.split(wanted.numpy(), np.flatnonzero(np.diff(wanted.numpy()) != 1) + 1)
            found = [torch.from_numpy(np.asarray(dataset[run[0] : run[-1] + 1])) for run in runs if len(run)]
        return torch.cat(found)[places] if found else torch.empty(0, *self.shape[1:], dtype=self.dtype)
