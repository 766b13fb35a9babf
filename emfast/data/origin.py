"""Where imported observations come from: their files, and the range of values that stands for [-1, 1]."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emfast._check import check, message
from emfast._json import to_json
from emfast.data.arrays import ORIGIN, ArrayFile, split_key

Name = tuple[str, int]
# How files are called: by the first of these that tells all of them apart.
NAMINGS: tuple[Callable[[PurePosixPath], str], ...] = (
    lambda path: path.stem,
    lambda path: str(path.with_suffix("")),
    str,
)


class Range(NamedTuple):
    """The values of files that stand for -1 and 1."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """The difference of values that stands for 1."""
        return (self.high - self.low) / 2

    def to_data(self, values: Tensor) -> Tensor:
        """Returns values of files in data units, float32."""
        return ((values.double() - self.low) / self.half - 1).float()

    def to_values(self, x: Tensor) -> Tensor:
        """Returns data units as values of files, float64."""
        return (x.double() + 1) * self.half + self.low

    def __str__(self) -> str:
        return f"{self.low:g} ... {self.high:g}"


@dataclass(frozen=True)
class Origin:
    """What a file of observations knows of the files that it was imported from.

    Arguments:
        range: The range of their values.
        files: How each lies on disk, in the order of the rows: see `emfast.data.raw`.
    """

    range: Range
    files: list[dict[str, Any]] = field(default_factory=list)

    def to_tensor(self) -> Tensor:
        """Returns it as the bytes of a JSON text, which any file of arrays can keep."""
        text = to_json({"range": list(self.range), "files": self.files})
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def names(self, naming: Callable[[PurePosixPath], str]) -> list[Name]:
        """Returns what each row is called: its file, and its place in that.

        Arguments:
            naming: Makes the name of a file from its path.
        """
        named = [(naming(PurePosixPath(file["path"])), file["images"]) for file in self.files]
        return [(name, place) for name, count in named for place in range(count)]


def read_origin(path: str | os.PathLike[str]) -> Origin | None:
    """Returns what a file of observations, or of clean images, knows of its origin; None if it was not imported.

    Arguments:
        path: The file, or `path:key`.
    Raises:
        ValueError: If that is damaged.
    """
    path = split_key(os.fspath(path))[0]
    if not path.is_file():
        return None
    try:
        file = ArrayFile(path)
    except (ValueError, RuntimeError):
        return None  # no array file, or none that can be read: its reader says so
    if not file.has_origin:
        return None
    try:
        content = json.loads(bytes(file.read(ORIGIN).tolist()))
        low, high = map(float, content["range"])
        files = content["files"]
        known = {"path", "kind", "images", "dtype", "shape", "last"}
        good = low < high and all(isinstance(each, dict) and known <= each.keys() for each in files)
    except (ValueError, TypeError, KeyError):
        good, low, high, files = False, 0.0, 0.0, []
    check(
        good, "load_observations", f"{ORIGIN} in {path}", "to tell a range and files", "a damaged text", "Import anew"
    )
    return Origin(Range(low, high), files)


def range_of_note(note: Mapping[str, Any]) -> Range | None:
    """Returns the range that the note beside a model holds, None if it holds none."""
    found = note.get("range")
    good = isinstance(found, list) and len(found) == 2 and all(isinstance(end, int | float) for end in found)
    return Range(float(found[0]), float(found[1])) if isinstance(found, list) and good else None


def check_range(
    function: str, path: str | os.PathLike[str], found: Range | None, wanted: Range | None, of: str
) -> None:
    """Raises a ValueError unless values of a file are in the range of others.

    Arguments:
        function: The public function the caller used.
        path: The file.
        found: Its range; None if it was not imported, and is in data units by what its maker says.
        wanted: The range of the others.
        of: What these are.
    """
    if found != wanted:
        has, needs = ("none" if each is None else str(each) for each in (found, wanted))
        fix = f"Import it with `emfast import ... --range={wanted.low:.9g},{wanted.high:.9g}`" if wanted else None
        raise ValueError(message(function, f"the range of {path}", f"to be that of {of}, {needs}", has, fix))


def rows_by_name(
    function: str, path: str | os.PathLike[str], found: Origin | None, wanted: Origin | None, count: int
) -> tuple[list[int] | None, str | None]:
    """Returns which rows of a file belong to those of another, by the names of the files that both were imported from.

    Of as many files whose names have other words, such as obs_01 and gt_01, the numbers in the names count.

    Arguments:
        function: The public function the caller used.
        path: The file.
        found: Its origin.
        wanted: That of the others.
        count: How many of the others are looked up, from the first.
    Returns:
        A row for each of them; None if names tell nothing: of what was not imported, or came from a single file. And an
        example of a pair, where it is by numbers that they were found.
    Raises:
        ValueError: If there is none for one of them; the sentence names it.
    """
    if found is None or wanted is None or min(len(found.files), len(wanted.files)) < 2:
        return None, None
    for naming in NAMINGS:
        names, others = found.names(naming), wanted.names(naming)
        if len(set(names)) == len(names) and len(set(others)) == len(others):
            break
    else:
        return None, None
    example, own, their = None, _by_number(names), _by_number(others)
    if own is not None and their is not None and not set(names) & set(others) and set(own) == set(their):
        example, names, others = f"{names[own.index(their[0])][0]} for {others[0][0]}", own, their
    place = {name: row for row, name in enumerate(names)}
    absent = next(((name, row) for row, name in enumerate(others[:count]) if name not in place), None)
    if absent is not None:
        (name, number), row = absent
        image = f"image {number + 1} of {name}" if (name, 1) in others else name
        there = f"{names[row][0]} in its place" if row < len(names) else "none of that name"
        fix = "Give the files of both the same names, and import them again"
        raise ValueError(message(function, str(path), f"to hold one for {image}", there, fix))
    return [place[name] for name in others[:count]], example


def _by_number(names: list[Name]) -> list[Name] | None:
    """Returns names by their numbers alone, digit for digit; None unless that tells all of them apart.

    The words around the numbers must be the same in all names: where these differ too, a number may mean another thing.
    """
    parts = [re.split(r"(\d+)", name) for name, _ in names]
    found = [("-".join(part[1::2]), place) for part, (_, place) in zip(parts, names, strict=True)]
    good = len({tuple(part[::2]) for part in parts}) == 1 and len(set(found)) == len(found)
    return found if good else None
