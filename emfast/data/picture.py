"""One file of pictures (PNG, JPEG, TIFF, ...), read with pillow."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emfast._check import check, check_regular, message

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")  # grey, 16 bits
OTHER = "B" if sys.byteorder == "little" else "L"  # than the order of this machine, which is "N"
# The raw modes of colours with 16 bits, and those that take the other byte of each.
SWAPPED = {
    f"{kind};16{order}": f"{kind};16{other}"
    for kind in ("RGB", "RGBA", "RGBX")
    for order, other in (("L", "B"), ("B", "L"), ("N", OTHER))
}
ORIENTATION = 274  # the tag of EXIF and TIFF
BITS, PHOTOMETRIC, DESCRIPTION, PLANES, SAMPLES = 258, 262, 270, 284, 339  # tags of TIFF
WHITE_IS_ZERO, APART, SIGNED = 0, 2, 2  # values of three of them
# How a camera was held, by the value of the tag from 2 on: the name of pillow's transposition that rights the picture.
TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")


class Picture(NamedTuple):
    """The images of a file.

    Arguments:
        images: (N, C, H, W), C 1 or 3: uint8, or float32 in data units.
        floats: Whether the file held floats, whose units nothing tells.
    """

    images: Tensor
    floats: bool


def read_picture(path: Path, limit: int | None = None) -> Picture:
    """Returns the pictures of a file, upright as its EXIF data have it: one, or all pages of a TIFF file.

    8 bits stay 8 bits; 16 bits become floats, 0 ... 65535 standing for [-1, 1] as 0 ... 255 does; floats stay as they
    are. An alpha channel is dropped. Of the pictures that a camera puts into one JPEG file it is the main one.

    Arguments:
        path: The file.
        limit: Only the first so many pages.
    Raises:
        ValueError: If it cannot be read, is an animation, or its pages have several sizes.
        TypeError: If it has another number of bits.
    """
    from PIL import UnidentifiedImageError

    check_regular("load", path)
    try:
        with _opened(path) as picture, _opened(path) as twin:
            count = _count(picture, path)
            pages = [_page(picture, twin, index, path) for index in range(min(count, limit or count))]
    except _Refusal as refusal:
        raise refusal.error from None
    except Exception as error:  # pillow raises a dozen kinds for damaged files
        fix = "It is damaged or no picture that pillow reads: remove it"
        found = "none that pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(message("load", str(path), "to be a picture", found, fix)) from error
    kinds = sorted({f"{page.shape} {page.dtype}" for page in pages})
    fix = "Store them as files of their own"
    check(len(kinds) == 1, "load", str(path), "to have pages of one shape and dtype", " and ".join(kinds), fix)
    pixels = torch.from_numpy(np.stack(pages))
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    if pixels.dtype == torch.uint16:
        return Picture(pixels.to(torch.float32) / 32767.5 - 1, False)
    return Picture(pixels, pixels.dtype != torch.uint8)


class _Refusal(Exception):
    """Carries a sentence of our own past what pillow raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    """A context with a picture, opened as a file: what pillow maps into memory by path it transposes wrongly."""
    from PIL import Image

    with path.open("rb") as file, Image.open(file) as picture:
        yield picture


def _count(picture: ImageFile, path: Path) -> int:
    """How many pictures a file holds; animations are refused."""
    count = getattr(picture, "n_frames", 1)
    if picture.format == "MPO":
        return 1
    if picture.format == "TIFF":
        _silence_libtiff()
    else:
        fix = "Store its frames as pictures of their own"
        _require(count == 1, path, "to be one picture", f"{count} frames", fix)
        return count
    # ImageJ writes large stacks as one page with the others behind it, of which only the text knows.
    text = str(_tags(picture).get(DESCRIPTION, ""))
    stack = re.search(r"^images=(\d+)", text, re.MULTILINE) if text.startswith("ImageJ") else None
    images = int(stack[1]) if stack else count
    _require(images == count, path, f"to have the {images} pages that ImageJ names", count, "Store it as OME-TIFF")
    return count


@cache
def _silence_libtiff() -> None:
    """Keeps libtiff, where it is a library of its own, from writing to stderr what pillow raises anyway."""
    try:
        places = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libtiff" in line}
        for library in map(ctypes.CDLL, places):
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)
    except (OSError, AttributeError):
        return  # no Linux, or another libtiff: its lines are harmless


def _page(picture: ImageFile, twin: ImageFile, index: int, path: Path) -> NDArray[Any]:
    """The pixels of a page, (H, W) or (H, W, 3): uint8, uint16 or float32. The file is open twice."""
    if index:
        picture.seek(index)
    mode, raw, tags = picture.mode, _raw_mode(picture), _tags(picture)
    bits = max(np.atleast_1d(tags.get(BITS, 8)))
    plain = mode in GREY + COLOUR and bits <= 8 and ";16" not in raw
    grey = mode in DEEP and ";16" in raw
    colours = mode in ("RGB", "RGBA") and raw in SWAPPED and tags.get(PLANES) != APART
    known = (plain and SIGNED not in np.atleast_1d(tags.get(SAMPLES, 1))) or grey or colours or mode == "F"
    fix = "Store such data as floats in [-1, 1] in a .npz or .h5 file"
    found = f"pillow modes {mode} and {raw}"
    _require(known, path, "to have 8 or 16 bits per channel, or floats", found, fix, TypeError)
    if grey:
        pixels = _pixels(picture).astype(np.uint16)  # in the byte order of this machine
        return 65535 - pixels if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else pixels
    if colours:
        return _deep_colours(picture, twin, index)
    return _pixels(picture) if mode == "F" else _pixels(picture, "L" if mode in GREY else "RGB")


def _require(condition: bool, path: Path, requirement: str, found: object, fix: str, kind: Any = ValueError) -> None:
    if not condition:
        raise _Refusal(kind(message("load", str(path), requirement, found, fix)))


def _tags(picture: ImageFile) -> Any:
    return getattr(picture, "tag_v2", {})  # of TIFF files


def _raw_mode(picture: ImageFile) -> str:
    """How the pixels lie in the file, by pillow's name of it; ";16" in it stands for 16 bits."""
    if not picture.tile:
        return picture.mode
    codec, arguments = picture.tile[0][0], cast("Any", picture.tile[0][3])
    raw = arguments if isinstance(arguments, str) else str(arguments[0])
    deep = codec.startswith("ppm") and arguments[-1] > 255
    return f"{raw};16 of PPM" if deep else raw


def _deep_colours(picture: ImageFile, twin: ImageFile, index: int) -> NDArray[np.uint16]:
    """The pixels (H, W, 3) of a page in colours of 16 bits.

    Pillow keeps the high byte of each. Told that the file has the other byte order, it keeps the low one.
    """
    if index:
        twin.seek(index)
    twin.tile = [_in_other_order(tile) for tile in twin.tile]
    high, low = (_pixels(each)[..., :3].astype(np.uint16) for each in (picture, twin))
    return (high << 8 | low).astype(np.uint16)


def _in_other_order(tile: Any) -> Any:
    arguments = tile.args
    if isinstance(arguments, str):
        return tile._replace(args=SWAPPED[arguments])
    return tile._replace(args=(SWAPPED[arguments[0]], *arguments[1:]))


def _pixels(picture: ImageFile, mode: str | None = None) -> NDArray[Any]:
    """The pixels of the page, upright, in another mode if asked to."""
    from PIL.Image import Transpose

    picture.load()  # turns TIFF by itself, and forgets its orientation
    turn = picture.getexif().get(ORIENTATION, 1)
    upright: Image = picture.convert(mode) if mode else picture
    if turn in range(2, 9):
        upright = upright.transpose(Transpose[TURNS[turn - 2]])
    return np.array(upright)
