"""Observations from the files of others: one tensor in data units, the masks, and what is needed to write them back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emfast._check import check, message
from emfast.data.arrays import split_key
from emfast.data.files import distinct, files_below
from emfast.data.observations import SUFFIXES as IMPORTED
from emfast.data.origin import Origin, Range, read_origin
from emfast.data.raw import SUFFIXES, Planes, Raw, common_folder, read_raw

PERCENTILES = (0.1, 99.9)
SAMPLE = 10_000_000  # values that percentiles are taken of, at most


class Imported(NamedTuple):
    """Observations that were imported.

    Arguments:
        y: (N, C, H, W) float32 in data units, 0 where a pixel is missing.
        mask: (N, 1, H, W) uint8, 1 where a pixel is observed.
        origin: Their files and their range.
        outside: The share of the observed values that lies outside the range.
        left_out: How many files of a folder were of no kind that is read.
        read: The names of the arrays of files that were read, as `y` and `mask`.
        unread: The names of the others in the same files.
    """

    y: Tensor
    mask: Tensor
    origin: Origin
    outside: float
    left_out: int
    read: list[str]
    unread: list[str]


def import_observations(
    sources: str | Sequence[str],
    *,
    masks: str | None = None,
    missing: float | None = None,
    range: Range | None = None,
    limit: int | None = None,
    planes: Planes = "auto",
) -> Imported:
    """Returns the observations of files: pictures, TIFF, FITS, NumPy or HDF5, all of one size.

    A pixel is missing where it is NaN or infinite, where it has the value for missing ones, or where its mask is 0, in
    any of its channels.

    Arguments:
        sources: A folder (searched recursively, sorted by path), a file, `file:key`, a .txt file with a path in every
            line, or several of them. What was imported before is none: in a folder it is left out.
        masks: A folder of masks, each by the name of its observation (a `mask` in the name does not count) and, where
            several have one name, by its folder; or one file for all; not 0 where a pixel was observed.
        missing: The value of missing pixels.
        range: The range that stands for [-1, 1]; None takes percentiles 0.1 and 99.9 of what is observed.
        limit: Only the first so many files.
        planes: What the pages, planes and rows of a file are: see `read_raw`.
    Raises:
        ValueError: If there is nothing to read, a file is damaged, sizes differ, masks do not fit, or the range is not
            one of the values.
        RuntimeError: If a package that reads the files is not installed.
    """
    named, left_out = _files(sources)
    named = named[:limit]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        raws = list(pool.map(lambda each: read_raw(each[0], each[1], planes), named))
    paths = [path for path, _ in named]
    _check_shapes(paths, raws)
    if range is None:
        _check_kinds(paths, raws)
    values = np.concatenate([raw.values for raw in raws])
    observed = np.isfinite(values)
    if missing is not None:
        observed &= np.concatenate([raw.values != _of_kind(missing, raw.values) for raw in raws])
    seen = observed.all(1, keepdims=True)
    seen &= _masks(masks, paths, raws, planes)[:, None]
    empty = np.flatnonzero(~seen.any((1, 2, 3)))
    if len(empty):
        file = np.repeat(np.arange(len(paths)), [len(raw.values) for raw in raws])[empty[0]]
        fix = "Leave it out, or check masks: pixels are observed where all their channels are not 0"
        raise ValueError(message("import", str(paths[file]), "to have an observed pixel", "none", fix))
    known = values.transpose(0, 2, 3, 1)[seen[:, 0]]
    range = range or _robust(known)
    outside = float(((known < range.low) | (known > range.high)).mean())
    found, fix = f"values from {known.min():g} to {known.max():g}", "Leave range out, or give one of these values"
    check(outside < 0.5, "import", f"range {range}", "to hold most of the values", found, fix)
    y = torch.from_numpy(np.where(seen, values, range.low))
    base = common_folder(paths)
    files = [
        {**raw.layout, "path": path.absolute().relative_to(base).as_posix()}
        for path, raw in zip(paths, raws, strict=True)
    ]
    mask = torch.from_numpy(seen.astype(np.uint8))
    y = torch.where(mask != 0, range.to_data(y), 0)
    return Imported(y, mask, Origin(range, files), outside, left_out, *_arrays(raws, masks is not None))


def _files(sources: str | Sequence[str]) -> tuple[list[tuple[Path, str | None]], int]:
    """Returns the files of sources, each with the key of the array in it, and how many of folders were left out."""
    found: list[tuple[Path, str | None]] = []
    left_out = 0
    for source in [sources] if isinstance(sources, str) else sources:
        path, key = split_key(source)
        if path.is_dir():
            every = list(files_below(path))
            known = (file for file in every if file.name.lower().endswith(SUFFIXES) and not _imported(file))
            paths = distinct(sorted(known))
            requirement = f"to hold files of a known kind ({', '.join(SUFFIXES)})"
            check(len(paths) > 0, "import", str(path), requirement, f"{len(every)} others" if every else "none")
            found += [(file, None) for file in paths]
            left_out += len(every) - len(paths)
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [split_key(line.strip()) for line in lines if line.strip()]
        else:
            found.append((path, key))
    check(len(found) > 0, "import", "sources", "to name files", "none", "Check the path")
    absent = next((path for path, _ in found if not path.is_file()), None)
    check(absent is None, "import", str(absent), "to exist", "nothing there", "Check the path")
    again = next((path for path, _ in found if _imported(path)), None)
    fix = "Name the files that it was made of"
    check(again is None, "import", str(again), "to hold values in their own units", "what was imported before", fix)
    return found, left_out


def _arrays(raws: list[Raw], masked: bool) -> tuple[list[str], list[str]]:
    """Returns the names of the arrays in files that are read and of those that are not, as a mask beside others is."""
    read = {raw.layout["key"] for raw in raws if "key" in raw.layout}
    unread = {name for raw in raws for name in raw.unread}
    if any(raw.mask is not None for raw in raws):
        (unread if masked else read).add("mask")
    return sorted(read, key=lambda name: (name == "mask", name)), sorted(unread)


def _imported(path: Path) -> bool:
    return path.suffix.lower() in IMPORTED and read_origin(path) is not None


def _check_kinds(paths: list[Path], raws: list[Raw]) -> None:
    """Raises a ValueError unless all images are of one kind of numbers, for which one range can stand."""
    kinds = ["float" if raw.values.dtype.kind == "f" else str(raw.values.dtype) for raw in raws]
    usual = Counter(kinds).most_common(1)[0][0]
    for path, kind in zip(paths, kinds, strict=True):
        fix = "Import them apart, or give the range of all of them"
        check(kind == usual, "import", str(path), f"to hold {usual} values as the others do", kind, fix)


def _check_shapes(paths: list[Path], raws: list[Raw]) -> None:
    """Raises a ValueError unless all images have one shape; the first file that differs from most is named."""
    shapes = [raw.values.shape[1:] for raw in raws]
    usual = Counter(shapes).most_common(1)[0][0]
    for path, shape in zip(paths, shapes, strict=True):
        fix = "Import images of one size at a time, or leave the file out"
        requirement = f"to have the {_shape(usual)} of the others"
        check(shape == usual, "import", str(path), requirement, _shape(shape), fix)


def _shape(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height} x {width} pixels" + (f" in {channels} channels" if channels > 1 else "")


def _robust(known: NDArray[np.generic]) -> Range:
    """Returns the range between two percentiles."""
    flat = known.reshape(-1)
    flat = flat[:: -(-flat.size // SAMPLE)]
    low, high = (float(end) for end in np.percentile(flat.astype(np.float64), PERCENTILES))
    if known.dtype.kind in "iub":
        low, high = float(np.floor(low)), float(np.ceil(high))
    if low == high:  # nearly all are of one value
        low, high = float(flat.min()), float(flat.max())
    check(low < high, "import", "the observations", "to have several values", f"{low:g} everywhere", "Check the files")
    return Range(low, high)


def _masks(source: str | None, paths: list[Path], raws: list[Raw], planes: Planes) -> NDArray[np.bool_]:
    """Returns what masks let be seen, (N, H, W)."""
    shape = raws[0].values.shape[2:]
    parts = []
    files = None if source is None else _mask_files(source, paths)
    cache: dict[tuple[Path, str | None], NDArray[np.generic]] = {}
    for index, raw in enumerate(raws):
        mask, name = raw.mask, f"the mask in {paths[index]}"
        if files is not None:
            name = str(files[index][0])
            if files[index] not in cache:
                cache = {files[index]: read_raw(*files[index], planes=planes).values}
            mask = cache[files[index]]
        if mask is None:
            parts.append(np.ones((len(raw.values), *shape), dtype=bool))
            continue
        mask = mask.reshape(-1, *mask.shape[-2:]) if mask.ndim != 4 else mask
        mask = np.nan_to_num(mask, nan=0)  # what is no number shows nothing
        found = "x".join(map(str, mask.shape[-2:]))
        requirement = f"to have the {shape[0]} x {shape[1]} pixels of {paths[index].name}"
        check(mask.shape[-2:] == shape, "import", name, requirement, found, "Give a mask of the same size")
        few = np.unique(mask)
        requirement = "to have two values, 0 for missing pixels"
        check(len(few[few != 0]) <= 1, "import", name, requirement, f"{len(few)} values", "Give masks, not images")
        seen = (mask != 0).all(1) if mask.ndim == 4 else mask != 0
        requirement = f"to hold one mask, or one for each of the {len(raw.values)} images of {paths[index].name}"
        fix = "Give a folder with a mask for each file"
        check(len(seen) in (1, len(raw.values)), "import", name, requirement, f"{len(seen)} masks", fix)
        parts.append(np.broadcast_to(seen, (len(raw.values), *shape)))
    return np.concatenate(parts)


def _of_kind(missing: float, values: NDArray[Any]) -> float:
    """Returns a value as numbers of a kind have it: -99.9 in float32 is another number than in float64."""
    return float(values.dtype.type(missing)) if values.dtype.kind == "f" else missing


def _mask_files(source: str, paths: list[Path]) -> list[tuple[Path, str | None]]:
    """Returns the mask file of each observation, with the key of the array in it."""
    found = _files(source)[0]
    if len(found) == 1 and split_key(source)[0].is_file():
        return found * len(paths)
    own = sorted(set(paths))  # several arrays of one file have its mask
    unique = all(len({_stem(path) for path in each}) == len(each) for each in ([path for path, _ in found], own))
    bases = [common_folder(each) for each in ([path for path, _ in found], paths)]

    def name(path: Path, base: Path) -> tuple[str, str]:
        return "" if unique else path.absolute().relative_to(base).parent.as_posix(), _stem(path)

    by_name = {name(each[0], bases[0]): each for each in found}
    check(len(by_name) == len(found), "import", f"masks {source}", "to have names of their own", "two of one name")
    same = len({name(path, bases[1]) for path in own}) < len(own)
    fix = "Rename them: capitals do not count"
    check(not same, "import", "the observations", "to have names of their own beside masks", "two of one name", fix)
    absent = next((path for path in paths if name(path, bases[1]) not in by_name), None)
    fix = f"Name them alike, as in {found[0][0].name}"
    none = "none of that name" + ("" if unique else " in that folder")
    check(absent is None, "import", f"masks {source}", f"to hold one for {absent and absent.name}", none, fix)
    return [by_name[name(path, bases[1])] for path in paths]


def _stem(path: Path) -> str:
    """Returns the name of an observation or of its mask: a1.tif, a1_mask.png and mask-a1.npy are a1."""
    name = path.stem.lower()
    for sign in "_-. ":
        name = name.removesuffix(f"{sign}mask").removeprefix(f"mask{sign}")
    return name
