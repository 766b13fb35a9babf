"""Images as they lie in files, in the units of the files: TIFF, FITS, arrays and pictures, read and written alike."""

from __future__ import annotations

import importlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from emfast._check import check, message
from emfast._files import write_bytes, write_tensors
from emfast.data.arrays import ArrayFile, channels_first, require_h5py
from emfast.data.files import ARRAYS, PICTURES, format_of
from emfast.data.picture import read_picture

FITS = (".fits", ".fit", ".fts")
SUFFIXES = (*PICTURES, *ARRAYS, *FITS)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
Planes = Literal["auto", "images", "bands"]
OPTIONAL = {"tifffile": "TIFF", "astropy.io.fits": "FITS"}


class Raw(NamedTuple):
    """The images of a file.

    Arguments:
        values: (n, C, H, W), in the dtype and units of the file.
        layout: What is needed to write others alike, as JSON has it: `kind`, `dtype`, `shape`, `last` (whether the
            channels are the last axis), and what the kind has beside.
        mask: (n, H, W) of 0 and 1 if the file brings one along.
        unread: The names of the other arrays in the file.
    """

    values: NDArray[Any]
    layout: dict[str, Any]
    mask: NDArray[Any] | None = None
    unread: tuple[str, ...] = ()


def read_raw(path: Path, key: str | None = None, planes: Planes = "auto") -> Raw:
    """Returns the images of a file: pages of a TIFF file, planes of a FITS cube and rows of an array are images each.

    Arguments:
        path: The file.
        key: The array in it, where there are several.
        planes: What these are instead: bands make one image. auto: images, unless an array may be one in colours.
    Raises:
        ValueError: If it is damaged, or holds no images.
        RuntimeError: If the package that reads it is not installed; the sentence says how to install it.
    """
    kind = _kind(path)
    try:
        if kind == "tiff":
            return _read_tiff(path, planes)
        if kind == "fits":
            return _read_fits(path, planes)
        return _read_array(path, key, planes) if kind in ARRAYS.values() else _read_picture(path)
    except _Refusal as refusal:
        raise refusal.error from None
    except Exception as error:  # tifffile and astropy raise a dozen kinds for damaged files
        if kind not in ("tiff", "fits"):
            raise
        fix = "Install it with: pip install imagecodecs" if "imagecodecs" in str(error) else "It is damaged: remove it"
        raise ValueError(message("import", str(path), f"to be a whole {kind.upper()} file", error, fix)) from error


def write_raw(path: Path, values: NDArray[Any], layout: dict[str, Any]) -> None:
    """Writes images as the file that a layout describes lies on disk, atomically.

    Arguments:
        path: The file.
        values: (n, C, H, W) float64, in the units of the file; rounded and limited where it holds whole numbers.
        layout: That of `read_raw`; `dtype` may be another.
    """
    dtype = np.dtype(layout["dtype"])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    values = values >= 0.5 if dtype.kind == "b" else values
    array = values.astype(dtype)
    array = np.moveaxis(array, 1, -1) if layout["last"] else array
    whole = list(layout["shape"])
    # Of a file that was not restored to its end there are fewer images.
    array = np.ascontiguousarray(array.reshape(whole) if len(values) == layout["images"] else array)
    kind = layout["kind"]
    if kind == "safetensors":
        write_tensors(path, {layout["key"]: torch.from_numpy(array)})
        return
    writers = {"tiff": _write_tiff, "fits": _write_fits, "npy": _write_npy, "npz": _write_npz, "hdf5": _write_hdf5}
    write = writers.get(kind, _write_picture)
    # Not to the file itself: the libraries close, reopen and name what they are given.
    buffer = io.BytesIO()
    try:
        write(buffer, array, layout)
    except _Refusal as refusal:
        raise refusal.error from None
    write_bytes(path, buffer.getvalue())


class _Refusal(Exception):
    """Carries a sentence of our own past what the libraries raise."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _require(name: str) -> Any:
    """Returns a module that is not a dependency, or says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        fix = "Install it with: pip install 'emfast[formats]'"
        raise _Refusal(
            RuntimeError(message("import", f"the package {package}", f"for {OPTIONAL[name]} files", "none", fix))
        ) from None


def _kind(path: Path) -> str:
    """Returns the kind of a file, by its first bytes."""
    kind = format_of(path)
    with path.open("rb") as file:
        start = file.read(9)
    kind = "tiff" if start.startswith(TIFF_STARTS) else "fits" if start == b"SIMPLE  =" else kind
    good = kind in ("tiff", "fits", "picture", *ARRAYS.values())
    check(
        good, "import", str(path), f"to be of a known kind ({', '.join(SUFFIXES)})", "another content", "Leave it out"
    )
    return str(kind)


def _raw(array: NDArray[Any], channels: int | None, layout: dict[str, Any], path: Path) -> Raw:
    """Returns an array as images.

    Arguments:
        array: (..., H, W), or with an axis of channels.
        channels: The axis of the channels from the end, -1 or -3; None if there is none.
        layout: What else is known.
        path: The file.
    """
    good = array.dtype.kind in "biuf" and array.size > 0 and array.ndim >= (3 if channels else 2)
    found, fix = f"{array.shape} {array.dtype}", "Leave the file out"
    if not good:
        raise _Refusal(ValueError(message("import", str(path), "to hold images of real numbers", found, fix)))
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    shape, last = list(array.shape), channels == -1
    array = np.moveaxis(array, -1, -3) if last else array
    array = array[..., None, :, :] if channels is None else array
    values = array.reshape(-1, *array.shape[-3:])
    known = {"dtype": str(array.dtype), "shape": shape, "last": last, "images": len(values)}
    return Raw(values, {**layout, **known})


def _read_tiff(path: Path, planes: Planes) -> Raw:
    with _require("tifffile").TiffFile(path) as file:
        if len(file.series) != 1:
            found, fix = f"{len(file.series)} shapes", "It is damaged, or store them as files of their own"
            raise _Refusal(ValueError(message("import", str(path), "to have pages of one shape", found, fix)))
        axes, array, page = file.series[0].axes, file.series[0].asarray(), file.pages[0]
        kind, fix = getattr(page.photometric, "name", ""), "Store grey or RGB values"
        palettes = {each.colormap.tobytes() for each in file.series[0].pages} if kind == "PALETTE" else set()
        if kind == "SEPARATED" or len(palettes) > 1 or (palettes and axes.endswith("S")):
            found = "numbers of colours" if palettes else "inks"
            raise _Refusal(ValueError(message("import", str(path), "to hold intensities", found, fix)))
        if palettes:  # the colours have 16 bits each, of which the first 8 count, as in a PNG file
            array, axes = np.moveaxis(page.colormap[:, array] >> 8, 0, -1).astype(np.uint8), f"{axes}S"
        text = str(page.description or "")
        layout: dict[str, Any] = {"kind": "tiff", "description": text if text.isascii() else ""}
        layout["negative"] = kind == "MINISWHITE"
        transparent = any(kind in (1, 2) for kind in page.extrasamples[-1:])
        tags = page.tags
        if "XResolution" in tags and "YResolution" in tags:
            layout["resolution"] = [list(tags[name].value) for name in ("XResolution", "YResolution")]
            layout["unit"] = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 1
    if axes.endswith("S"):
        array = array[..., : array.shape[-1] - 1] if transparent else array
        return _raw(array, -1, layout, path)
    fix = "Store it with the axes ...CYX, or say --planes images if each plane is one"
    if "C" in axes[:-3] and planes != "images":
        raise _Refusal(ValueError(message("import", str(path), "to have its channels beside its rows", axes, fix)))
    bands = planes != "images" and (axes[-3:] in ("CYX", "SYX") or (planes == "bands" and array.ndim > 2))
    return _raw(array, -3 if bands else None, layout, path)


def _write_tiff(file: BinaryIO, array: NDArray[Any], layout: dict[str, Any]) -> None:
    grey = "miniswhite" if layout.get("negative") else "minisblack"
    options: dict[str, Any] = {"photometric": "rgb" if layout["last"] and array.shape[-1] == 3 else grey}
    if layout["last"]:
        options["planarconfig"] = "contig"
    if "resolution" in layout:
        options |= {"resolution": tuple(map(tuple, layout["resolution"])), "resolutionunit": layout["unit"]}
    tifffile = _require("tifffile")
    tifffile.imwrite(file, array, description=layout["description"] or None, metadata=None, **options)


def _read_fits(path: Path, planes: Planes) -> Raw:
    with _require("astropy.io.fits").open(path, memmap=False) as units:
        for index, unit in enumerate(units):
            if unit.is_image and unit.header.get("NAXIS", 0) >= 2:
                header = unit.header.tostring(sep="\n")
                array, layout = np.asarray(unit.data), {"kind": "fits", "header": header, "unit": index}
                return _raw(array, -3 if planes == "bands" and array.ndim > 2 else None, layout, path)
    raise _Refusal(ValueError(message("import", str(path), "to hold an image", "none", "Leave the file out")))


def _write_fits(file: BinaryIO, array: NDArray[Any], layout: dict[str, Any]) -> None:
    fits = _require("astropy.io.fits")
    header = fits.Header.fromstring(layout["header"], sep="\n")
    for key in ("BSCALE", "BZERO", "BLANK", "XTENSION", "PCOUNT", "GCOUNT"):
        header.remove(key, ignore_missing=True)
    fits.PrimaryHDU(array, header).writeto(file, output_verify="silentfix")


def _read_array(path: Path, key: str | None, planes: Planes) -> Raw:
    arrays = ArrayFile(path)
    key = arrays.choose(key, "y" if "y" in arrays.names else "images")
    tensor = arrays.read(key)
    label, one = f"{path}:{key}", planes == "bands" and tensor.ndim == 3
    whole = tensor[None] if one else tensor
    last = False
    if whole.ndim == 4:
        last = channels_first(whole, tuple(whole.shape), label).shape != whole.shape
    elif whole.ndim == 3 and planes == "auto":
        fix = "Say --planes bands if it is, else --planes images"
        channels_first(whole, tuple(whole.shape), label, fix)
    raw = _raw(tensor.numpy(), (-1 if last else -3) if whole.ndim == 4 else None, {"kind": arrays.format}, path)
    mask = arrays.read("mask").numpy() if "mask" in arrays.names and key != "mask" else None
    if mask is not None and one and mask.ndim == 3:  # of one image, as y is
        mask = np.moveaxis(mask, -1, 0)[None] if last else mask[None]
    unread = tuple(name for name in arrays.names if name not in (key, "mask"))
    return Raw(raw.values, {**raw.layout, "key": key}, mask, unread)


def _write_npy(file: BinaryIO, array: NDArray[Any], layout: dict[str, Any]) -> None:
    np.save(file, array)


def _write_npz(file: BinaryIO, array: NDArray[Any], layout: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {layout["key"]: array}
    np.savez(file, **arrays)


def _write_hdf5(file: BinaryIO, array: NDArray[Any], layout: dict[str, Any]) -> None:
    with require_h5py(Path("the observations")).File(file, "w") as content:
        content.create_dataset(layout["key"], data=array)


def _read_picture(path: Path) -> Raw:
    from PIL import Image

    picture = read_picture(path)
    values = picture.images.numpy()
    if values.dtype == np.float32 and not picture.floats:
        values = np.rint((values + 1) * 32767.5).astype(np.uint16)  # they had 16 bits
    with Image.open(path) as file:
        kind = str(file.format)
    if len(values) == 1 and values.shape[1] == 1:
        return _raw(values[0, 0], None, {"kind": kind}, path)
    return _raw(np.moveaxis(values, 1, -1)[0], -1, {"kind": kind}, path)


def _write_picture(file: BinaryIO, array: NDArray[Any], layout: dict[str, Any]) -> None:
    from PIL import Image

    if layout["kind"] == "PNG" and array.dtype == np.uint16:
        file.write(_deep_png(array))
        return
    options = {"quality": 95} if layout["kind"] == "JPEG" else {}
    Image.fromarray(array).save(file, format=layout["kind"], **options)


def _deep_png(array: NDArray[np.uint16]) -> bytes:
    """Returns a PNG of 16 bits, grey (H, W) or in colours (H, W, 3), which pillow does not write."""
    height, width = array.shape[:2]
    lines = array.astype(">u2").reshape(height, -1)
    pixels = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if array.ndim == 2 else 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def common_folder(paths: list[Path]) -> Path:
    """Returns the folder that files have in common."""
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))
