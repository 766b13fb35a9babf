"""`emfast import`: a folder of observations as one file for training and restoring."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emfast._check import check, message
from emfast.commands.display import plain_console
from emfast.commands.files import check_output, gather
from emfast.data.arrays import split_key
from emfast.data.importing import Imported, import_observations
from emfast.data.observations import SUFFIXES, save_observations
from emfast.data.origin import Range, range_of_note, read_origin
from emfast.diffusion.loading import model_folder
from emfast.em.model import read_note


@dataclass
class Options:
    """A folder of observations as one file for training and restoring.

    Args:
        sources: Folders or files, of TIFF (8, 16, 32 bits, float, several pages), FITS, PNG (8 or 16 bits), JPEG, NPY,
            NPZ or HDF5; or a .txt file with a path in every line.
        output: The file: .h5, .npz or .safetensors.
        masks: A folder of masks by the names of the observations, or one file for all: not 0 where a pixel was
            observed. NaN is missing too.
        missing: The value of missing pixels in the observations themselves.
        range: The values LOW,HIGH that stand for [-1, 1], written --range=LOW,HIGH; auto: percentiles 0.1 and 99.9 of
            the observed pixels; or a run, or an imported file, whose range is taken: what a model is to restore must
            have the range of its training.
        limit: Use only the first so many files.
        planes: What the pages of a TIFF file, the planes of a FITS cube and the rows of an array (N, H, W) are: images,
            or bands, the channels of one image. auto: images, unless an array may be one image in colours, which is
            refused.
    """

    sources: list[str]
    output: str = "observations.h5"
    masks: str | None = None
    missing: float | None = None
    range: str = "auto"
    limit: int | None = None
    planes: Literal["auto", "images", "bands"] = "auto"

    def __post_init__(self) -> None:
        suffix = Path(self.output).suffix.lower()
        check(suffix in SUFFIXES, "import", "output", f"to end in one of {', '.join(SUFFIXES)}", self.output)
        check(self.limit is None or self.limit > 0, "import", "limit", "to be positive", self.limit)


arrange = gather


def run(options: Options, yaml: str) -> None:
    """Reads the observations, writes the file, and says what it holds.

    Arguments:
        options: What to read.
        yaml: The options as text.
    """
    check_output("import", options.output)
    output = Path(options.output).expanduser().absolute()
    same = any(split_key(source)[0].absolute() == output for source in [*options.sources, options.masks or ""])
    check(not same, "import", "output", "to be another file than the sources", options.output, "Name a new file")
    found = import_observations(
        options.sources,
        masks=options.masks,
        missing=options.missing,
        range=_range(options.range),
        limit=options.limit,
        planes=options.planes,
    )
    whole = bool(found.mask.all())
    save_observations(options.output, found.y, {} if whole else {"mask": found.mask}, found.origin)
    plain_console().print(_said(options, found, whole), soft_wrap=True)


def _range(text: str) -> Range | None:
    """Returns the range that an option names; None for auto."""
    if text == "auto":
        return None
    try:
        low, high = map(float, text.strip("[]()").split(","))
    except ValueError:
        path, found = Path(text), None
        if path.is_dir():
            found = range_of_note(read_note(model_folder(path)))
        elif path.is_file():
            found = getattr(read_origin(path), "range", None)
        if found is not None:
            return found
        fix = "Write --range=0,65535, or name a run that was trained on imported observations"
        raise ValueError(message("import", "range", "to be LOW,HIGH, auto, or a run with one", text, fix)) from None
    check(low < high, "import", "range", "to have LOW < HIGH, both finite", text)
    check(abs(low) + abs(high) < float("inf"), "import", "range", "to be finite", text)
    return Range(low, high)


def _said(options: Options, found: Imported, whole: bool) -> str:
    """Returns what was read, in the order in which a reader would ask."""
    count, channels, height, width = found.y.shape
    files = found.origin.files
    kinds = ", ".join(sorted({f"{file['kind'].lower()} {file['dtype']}" for file in files}))
    colours = f" in {channels} channels" if channels > 1 else ""
    left = f"; {found.left_out} other files left out" if found.left_out else ""
    how = " (percentiles 0.1 and 99.9)" if options.range == "auto" else ""
    share = float(found.mask.float().mean())
    command = f"emfast train --data.observations {shlex.quote(options.output)} --sigma SIGMA --preset tiny"
    command += (" --operator Identity" if whole else "") + " --output runs/mine"
    if options.planes == "auto" and any(file["images"] > 1 and len(file["shape"]) == 3 for file in files):
        left += "; each plane of a file is an image, unless you say --planes bands"
    arrays = f"Arrays:   {' and '.join(found.read)} read, {', '.join(found.unread)} not; FILE:KEY reads another"
    return "\n".join(
        [
            f"Read:     {len(files)} files, {count} images of {height} x {width}{colours} ({kinds}){left}",
            *([arrays] if found.unread else []),
            f"Range:    {found.origin.range} for [-1, 1]{how}; {found.outside:.2%} of the values lie outside",
            f"Observed: {share:.1%} of the pixels",
            f"Written:  {options.output}",
            f"Train:    {command}",
        ]
    )
