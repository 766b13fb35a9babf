"""Rows of numbers that are read when they are asked for: a tensor of which no whole copy is in memory.

What is small is a tensor all the same; `Tensor | Rows` is what data are held in, and both are indexed alike.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from emfast._check import message

SMALL = 1 << 24  # bytes: what has no more is read whole
PIECE = 1 << 22  # bytes that are looked at together where all are looked at


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


class Stacked(Rows):
    """Rows of several, each made of one of each, along a new axis behind the first.

    Arguments:
        parts: Rows of one shape and dtype.
    """

    def __init__(self, parts: Sequence[Tensor | Rows]) -> None:
        super().__init__((len(parts[0]), len(parts), *parts[0].shape[1:]), parts[0].dtype)
        self.parts = parts

    def read(self, ids: Tensor) -> Tensor:
        """Returns rows."""
        return torch.stack([part[ids] for part in self.parts], 1)


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
