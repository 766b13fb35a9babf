"""Rows of numbers that are read when they are asked for: a tensor of which no whole copy is in memory.

What is small is a tensor all the same; `Tensor | Rows` is what data are held in, and both are indexed alike.
"""

from __future__ import annotations

import math
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emfast._check import message

SMALL = 1 << 24  # bytes: what has no more is read whole
PIECE = 1 << 22  # bytes that are looked at together where all are looked at
OPEN = 64  # files at most that are kept open


class Rows(ABC):
    """Rows of one shape and dtype.

    Arguments:
        shape: (N, ...).
        dtype: The dtype.
    """

    device = torch.device("cpu")

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = torch.Size(shape), dtype

    @abstractmethod
    def read(self, ids: Tensor) -> Tensor:
        """Returns rows, (B, ...) of the ids (B,), all of them in 0 ... N-1."""

    def __len__(self) -> int:
        return int(self.shape[0])

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"{tuple(self.shape)} {str(self.dtype).removeprefix('torch.')}"

    def __getitem__(self, ids: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Returns rows as indexing a tensor does."""
        if isinstance(ids, int):
            return self[[ids]][0]
        if isinstance(ids, slice):
            return self.read(torch.arange(*ids.indices(len(self))))
        ids = torch.as_tensor(ids).cpu()
        ids = ids.nonzero()[:, 0] if ids.dtype == torch.bool else ids.long()
        if len(ids) and not -len(self) <= int(ids.min()) <= int(ids.max()) < len(self):
            raise IndexError(message("Rows", "ids", f"to be in 0 .. {len(self) - 1}", ids.tolist()))
        return self.read(torch.where(ids < 0, ids + len(self), ids))


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
        file.seek(offset)
        while done < len(memory):
            count = file.readinto(memory[done:])  # type: ignore[attr-defined]
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


class Mapped(Rows):
    """A function of rows, computed whenever they are read.

    Arguments:
        rows: The rows.
        function: Gives a row for each.
    """

    def __init__(self, rows: Tensor | Rows, function: Callable[[Tensor], Tensor]) -> None:
        one = function(rows[:1])
        super().__init__((len(rows), *one.shape[1:]), one.dtype)
        self.rows, self.function = rows, function

    def read(self, ids: Tensor) -> Tensor:
        """Returns the function of rows."""
        return self.function(self.rows[ids])


class _Joined(Rows):
    def __init__(self, parts: Sequence[Tensor | Rows]) -> None:
        super().__init__((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
        self.parts = parts
        self.starts = torch.tensor([0, *map(len, parts)]).cumsum(0)

    def read(self, ids: Tensor) -> Tensor:
        rows = torch.empty(len(ids), *self.shape[1:], dtype=self.dtype)
        part = torch.searchsorted(self.starts, ids, right=True) - 1
        for index in part.unique().tolist():
            chosen = part == index
            rows[chosen] = self.parts[index][ids[chosen] - self.starts[index]]
        return rows


class _Picked(Rows):
    def __init__(self, rows: Rows, ids: Tensor) -> None:
        super().__init__((len(ids), *rows.shape[1:]), rows.dtype)
        self.rows, self.ids = rows, ids

    def read(self, ids: Tensor) -> Tensor:
        return self.rows.read(self.ids[ids])


def mapped(rows: Tensor | Rows, function: Callable[[Tensor], Tensor]) -> Tensor | Rows:
    """Returns a function of rows that gives one for each: now for a small tensor, else whenever they are read.

    Arguments:
        rows: (N, ...) rows.
        function: Makes (n, ...) of (n, ...), each row by itself.
    """
    if isinstance(rows, Tensor) and rows.nbytes <= SMALL // 4:
        return function(rows)
    return Mapped(rows, function)


def joined(parts: Sequence[Tensor | Rows]) -> Tensor | Rows:
    """Returns rows one after the other, as torch.cat does; parts without any are passed over."""
    parts = [part for part in parts if len(part)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    small = len(tensors) == len(parts) and sum(part.nbytes for part in tensors) <= SMALL
    return torch.cat(tensors) if small else _Joined(parts)


def picked(rows: Tensor | Rows, ids: Sequence[int] | slice | Tensor) -> Tensor | Rows:
    """Returns the rows of some ids, in that order.

    Arguments:
        rows: (N, ...) rows.
        ids: Their numbers.
    """
    if isinstance(rows, Tensor):
        return rows[ids if isinstance(ids, slice | Tensor) else torch.tensor(ids, dtype=torch.long)]
    if isinstance(ids, slice):
        ids = torch.arange(*ids.indices(len(rows)))
        if len(ids) == len(rows) and (len(ids) < 2 or ids[1] > ids[0]):
            return rows
    ids = torch.as_tensor(ids, dtype=torch.long)
    return _Picked(rows, ids)


def small(rows: Rows) -> Tensor | Rows:
    """Returns rows, as a tensor if they take little memory."""
    return rows[:] if rows.nbytes <= SMALL else rows


def pieces(rows: Tensor | Rows) -> Iterator[tuple[int, Tensor]]:
    """Yields all rows, some megabytes at a time, each time with the number of the first."""
    step = rows_at_a_time(rows)
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


def rows_at_a_time(rows: Tensor | Rows) -> int:
    """Returns how many rows take some megabytes; one at least."""
    return max(1, PIECE * len(rows) // max(1, rows.nbytes))


def first_not_finite(rows: Tensor | Rows) -> int | None:
    """Returns the index of the first row that holds a NaN or an infinity, None if there is none."""
    for start, part in pieces(rows):
        bad = not_finite(part)
        if bad.any():
            return start + int(bad.nonzero()[0])
    return None


def not_finite(rows: Tensor) -> Tensor:
    """Returns which rows hold a NaN or an infinity, (N,) bool."""
    if rows.sum().isfinite():  # which neither leaves finite, and costs a thirtieth of looking at each number
        return torch.zeros(len(rows), dtype=torch.bool)
    return ~rows.reshape(len(rows), -1).isfinite().all(1)


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
