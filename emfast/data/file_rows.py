"""Rows that lie in files, and the file without a name that many rows are kept in."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emfast._check import message
from emfast.data.rows import SMALL, Rows

OPEN = 64  # files at most that are kept open


class Part(NamedTuple):
    """Rows that lie one after the other in a file."""

    file: Path | IO[bytes]
    offset: int  # of the first one
    length: int  # how many they are


class FileRows(Rows):
    """Rows that lie in files as they lie in memory.

    Arguments:
        parts: Where they lie.
        shape: That of one row.
        dtype: The dtype.
    """

    def __init__(self, parts: Iterable[Part], shape: Sequence[int], dtype: torch.dtype) -> None:
        self.parts = [part for part in parts if part.length]
        super().__init__((sum(part.length for part in self.parts), *shape), dtype)
        self.offsets = np.array([part.offset for part in self.parts], np.int64)
        self.starts = np.cumsum([0, *(part.length for part in self.parts)])[:-1]
        self.open: OrderedDict[Path, IO[bytes]] = OrderedDict()
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return FileRows, (self.parts, self.shape[1:], self.dtype)  # a process that is spawned opens them itself

    def read(self, ids: Tensor) -> Tensor:
        """Returns rows; those that follow each other in a file are read at once."""
        rows = torch.empty(len(ids), *self.shape[1:], dtype=self.dtype)
        if rows.numel() == 0:
            return rows
        memory = rows.view(len(ids), -1).view(torch.uint8).numpy()
        where, size = ids.numpy(), memory.shape[1]
        part = np.searchsorted(self.starts, where, side="right") - 1
        offset = self.offsets[part] + (where - self.starts[part]) * size
        breaks = np.flatnonzero((np.diff(part) != 0) | (np.diff(offset) != size)) + 1
        with self.lock:
            for first, last in pairwise([0, *breaks.tolist(), len(where)]):
                self._read(int(part[first]), int(offset[first]), memory[first:last].reshape(-1).data)
        return rows

    def _read(self, part: int, offset: int, memory: memoryview) -> None:
        """Fills memory with what lies at an offset."""
        file, done = self._opened(self.parts[part].file), 0
        while done < len(memory):
            count = _read_at(file, offset + done, memory[done:])
            if not count:
                fix = "The file has changed since it was opened: restore it, and run again"
                raise ValueError(message("read", str(self.parts[part].file), "to be whole", "its end", fix))
            done += count

    def _opened(self, file: Path | IO[bytes]) -> IO[bytes]:
        """Returns an open file; of those that have a name only the ones used last stay open."""
        if not isinstance(file, Path):
            return file
        if file not in self.open:
            self.open[file] = open(file, "rb", buffering=0)  # noqa: SIM115 (closed below, or with this object)
            if len(self.open) > OPEN:
                self.open.popitem(last=False)[1].close()
        self.open.move_to_end(file)
        return self.open[file]


def _read_at(file: IO[bytes], offset: int, memory: memoryview) -> int:
    """Reads into memory; returns how many bytes. Forked processes have one place in a file together: it is not used."""
    if hasattr(os, "preadv"):  # not on Windows, where nothing is forked
        return os.preadv(file.fileno(), [memory], offset)
    file.seek(offset)
    return int(file.readinto(memory))  # type: ignore[attr-defined]


def collect(parts: Iterable[Tensor]) -> Tensor | Rows:
    """Returns the rows of parts one after the other; where they are many, in a file without a name.

    Arguments:
        parts: Tensors that differ in their number of rows alone; one at least.
    Raises:
        OSError: If the folder of temporary files (TMPDIR) has no room for them.
    """
    waiting: list[Tensor] = []
    first: Tensor | None = None
    file: IO[bytes] | None = None
    count = size = 0
    for part in parts:
        first = part if first is None else first
        waiting.append(part)
        count, size = count + len(part), size + part.nbytes
        if file is None and size > SMALL:
            file = tempfile.TemporaryFile(prefix="emfast-", buffering=0)  # noqa: SIM115 (it goes with its rows)
        if file is not None:
            _append(file, waiting)
            waiting = []
    if first is None:
        raise ValueError(message("collect", "parts", "to be one at least", "none"))
    if file is None:
        return torch.cat(waiting)
    return FileRows([Part(file, 0, count)], first.shape[1:], first.dtype)


def _append(file: IO[bytes], parts: list[Tensor]) -> None:
    """Writes tensors to a file without a name."""
    try:
        for part in parts:
            memory = part.contiguous().reshape(-1).view(torch.uint8).numpy().data
            while len(memory):
                memory = memory[file.write(memory) :]
    except OSError as error:
        fix = "Free space, or set TMPDIR to another folder"
        where = tempfile.gettempdir()
        sentence = message("load", f"the folder of temporary files, {where},", "to have room", error.strerror, fix)
        raise OSError(sentence) from error
