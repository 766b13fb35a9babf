"""The safetensors format piece by piece: a header with the place of every tensor, then their bytes.

The library of that name takes and gives whole files; a checkpoint need not be in memory a second time to be written,
nor a shard to be verified.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

import safetensors
import torch
from torch import Tensor

CHECKSUM = "crc32"
METADATA = "__metadata__"
PIECE = 1 << 20  # bytes read at a time
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Place(NamedTuple):
    """Where a tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # its first byte

    @property
    def bytes(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors one after the other, and their checksum into the header.

    Arguments:
        file: The file, open.
        tensors: The tensors by name, on any device; one at a time is copied to the CPU, twice.
        metadata: Texts stored in the header beside them.
    """
    # The wider numbers first, so that each lies at a multiple of its width.
    order, stop = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)), 0
    header: dict[str, object] = {METADATA: {**metadata, CHECKSUM: checksum(tensors, metadata)}}
    for name in order:
        tensor, start, stop = tensors[name], stop, stop + tensors[name].nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(_bytes(tensors[name]))


def places(path: str | os.PathLike[str]) -> tuple[dict[str, Place], dict[str, str]]:
    """Returns where the tensors of a file lie, and the texts of its header; none of the tensors is read.

    Raises:
        SafetensorError: If the header is damaged, or the file longer or shorter than it says.
    """
    # Looks at all of that. "pt" would map the file to be written to, which a system refuses beyond its memory.
    with safetensors.safe_open(path, "np"):
        pass
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop(METADATA, None) or {}
    unknown = sorted({entry["dtype"] for entry in header.values()} - DTYPES.keys())
    if unknown:
        raise safetensors.SafetensorError(f"tensors of the unknown kind {unknown[0]}")
    begin = 8 + length
    return {
        name: Place(DTYPES[entry["dtype"]], tuple(entry["shape"]), begin + entry["data_offsets"][0])
        for name, entry in header.items()
    }, metadata


def read(path: str | os.PathLike[str], place: Place) -> Tensor:
    """Returns a tensor of a file.

    Arguments:
        path: The file.
        place: Where the tensor lies; see `places`.
    """
    tensor = torch.empty(place.shape, dtype=place.dtype)
    left = _bytes(tensor)
    with open(path, "rb", buffering=0) as file:
        file.seek(place.start)
        while len(left) > 0 and (count := file.readinto(left)):
            left = left[count:]
    return tensor


def file_checksum(path: str | os.PathLike[str], found: Mapping[str, Place], metadata: Mapping[str, str]) -> str:
    """Returns the `checksum` of the tensors that lie in a file, read piece by piece.

    Arguments:
        path: The file.
        found: Where its tensors lie, by name; see `places`.
        metadata: The texts of its header.
    """
    value, buffer = _begin(metadata), memoryview(bytearray(PIECE))
    with open(path, "rb", buffering=0) as file:
        for name in sorted(found):
            place = found[name]
            value = _name(name, place.dtype, place.shape, value)
            file.seek(place.start)
            left = place.bytes
            while left > 0 and (count := file.readinto(buffer[: min(left, PIECE)])):
                value = zlib.crc32(buffer[:count], value)
                left -= count
    return f"{value:08x}"


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Returns the CRC-32 of the names, dtypes, shapes and bytes of tensors, and of texts, as 8 hexadecimal digits.

    Arguments:
        tensors: The tensors by name.
        metadata: The texts by name.
    """
    value = _begin(metadata or {})
    for name in sorted(tensors):
        value = _name(name, tensors[name].dtype, tensors[name].shape, value)
        value = zlib.crc32(_bytes(tensors[name]), value)
    return f"{value:08x}"


def _begin(metadata: Mapping[str, str]) -> int:
    value = 0
    for name, text in sorted(metadata.items()):
        value = zlib.crc32(f"{name}={text}".encode(), value)
    return value


def _name(name: str, dtype: torch.dtype, shape: tuple[int, ...], value: int) -> int:
    return zlib.crc32(f"{name} {dtype} {tuple(shape)}".encode(), value)


def _bytes(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor, of one on the CPU and in order without a copy."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
