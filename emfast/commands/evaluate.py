"""`emfast evaluate`: two sets of images compared."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import yaml as pyyaml
from torch import Tensor

from emfast._check import check, message
from emfast.commands.display import plain_console
from emfast.commands.files import belong, check_output, scores
from emfast.config import Config
from emfast.data import Images, Store, load
from emfast.data.arrays import split_key
from emfast.data.files import ARRAYS
from emfast.data.origin import Range, check_range, range_of_note, read_origin
from emfast.data.rows import Rows, picked
from emfast.em.inputs import observed_images
from emfast.em.model import read_note
from emfast.evaluation import Features, default_features, features, frechet_distance, lpips
from emfast.evaluation.metrics import SIDE
from emfast.evaluation.statistics import (
    Statistics,
    distance_to,
    read_statistics,
    statistics_of,
    write_statistics,
)
from emfast.reporting import plain_table, read_metrics, round_folder
from emfast.reporting.tables import columns_of, read_rows, to_latex, to_markdown

STORE = "reconstructions"


@dataclass
class Options:
    """PSNR, SSIM and Frechet distance between two sets of images.

    A set is anything that `data.images` may be, a store of reconstructions, or the folder of a run or of
    `emfast restore`, which stands for its (last) reconstructions. Reconstructions know the ids of their observations:
    they are compared with the images of those ids. Other sets are compared image by image if they have equal counts and
    the images of one are nearer to their partners in the other than to the neighbours of those.

    Args:
        a: The images to judge.
        b: The images to compare them with; or a .npz file with statistics of their features (`mu` and `sigma`), for the
            distance alone.
        features: Feature space of the distance; auto: "fashion-mnist" for one channel, "efficientnet-lite0" for RGB.
        weights: Path of the weights where the feature space needs a file ("inception").
        paired: Whether image i of A belongs to image i of B, so that PSNR and SSIM make sense; none: see above.
        size: Resize images read from files to this many pixels a side.
        crop: Centre crop of this many pixels before resizing.
        limit: Use only the first so many of both.
        lpips: Also LPIPS, of pairs: the path of torchvision's weights of AlexNet (alexnet-owt-7be5be79.pth).
        samples: Images for the distance in the place of A: those that the model itself draws.
        reference: Images, or statistics, for the distance in the place of B; as many as they are.
        statistics: Write the statistics of B's features to this .npz file, to be given as B another time.
        table: How to write the table: plain, markdown or latex.
        name: What to call A in the table.
        beside: A CSV file with other rows of the table, whose first line names the columns: method,PSNR,FID.
    """

    a: str
    b: str
    features: Literal["auto", "fashion-mnist", "efficientnet-lite0", "inception", "none"] = "auto"
    weights: str | None = None
    paired: bool | None = None
    size: int | None = None
    crop: int | None = None
    limit: int | None = None
    lpips: str | None = None
    samples: str | None = None
    reference: str | None = None
    statistics: str | None = None
    table: Literal["plain", "markdown", "latex"] = "plain"
    name: str | None = None
    beside: str | None = None

    def __post_init__(self) -> None:
        good = self.limit is None or self.limit > 0
        check(good, "evaluate", "limit", "to be positive", self.limit)
        for name in ("weights", "samples", "reference", "statistics") if self.features == "none" else ():
            fix = f"Name a feature space, or leave {name} out"
            check(getattr(self, name) is None, "evaluate", name, "to be of features", "--features none", fix)


def run(options: Options, yaml: str) -> None:
    """Prints the comparison.

    Arguments:
        options: What to compare.
        yaml: The options as text.
    """
    if options.lpips is not None:  # what is missing is said before anything long begins
        lpips(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), weights=options.lpips)
    if options.statistics is not None:
        check_output("evaluate", options.statistics)
    others = read_rows(options.beside) if options.beside is not None else []
    reference = read_statistics(options.reference or options.b)
    fix = "They are in that file: leave statistics out"
    good = options.statistics is None or reference is None
    check(good, "evaluate", "statistics", "to be of images", options.reference or options.b, fix)
    space = _named_space(options, reference)
    a, ids = _read(options.a, options)
    if options.lpips is not None:
        good, fix = min(a.shape[1:]) >= SIDE, "Give --size, or leave --lpips out"
        check(good, "evaluate", "A", f"to have at least {SIDE} x {SIDE} pixels for LPIPS", a.shape[1:], fix)
    if space is None and options.features == "auto":
        space = _usual_space(a)
    row = {"method": options.name or Path(options.a).name, "images": str(len(a))}
    against: Images | Statistics | None = reference
    if reference is not None and options.reference is None:
        fix = "Give the images themselves as B for PSNR, SSIM and LPIPS"
        check(options.lpips is None and not options.paired, "evaluate", "B", "to be images", options.b, fix)
    else:
        b, known = _read(options.b, options)
        _check_range(options, a, options.b, b)
        check(a.shape == b.shape, "evaluate", "B", f"to have images of A's shape {a.shape}", b.shape, "Set size")
        row |= {"images B": str(len(b)), **_scores(options, a, ids, b, known)}
        against = reference or b
    if space is not None and against is not None:
        if options.reference is not None and reference is None:
            against = _all(options.reference, options)
            _check_range(options, a, options.reference, against)
        drawn = a if options.samples is None else _all(options.samples, options)
        _check_range(options, a, options.samples or options.a, drawn)
        if min(len(each) for each in (drawn, against) if isinstance(each, Images)) > 1:
            row[space.metric] = f"{_distance(options, space, drawn, against):.2f}"
        else:
            print("evaluate: a distance needs 2 images or more on both sides; it is left out.", file=sys.stderr)
    columns = columns_of([*others, row], ("PSNR", "SSIM", "LPIPS", space.metric if space is not None else "FD"))
    if options.table == "plain":
        plain_console().print(plain_table(columns), soft_wrap=True)
    else:
        print((to_markdown if options.table == "markdown" else to_latex)(columns))


def _scores(options: Options, a: Images, ids: Tensor | None, b: Images, known: Tensor | None) -> dict[str, str]:
    """The scores of the images that belong together, as the table shows them."""
    if ids is not None and known is None and options.paired is not False:
        try:
            b = _observed(options)
        except ValueError as error:
            if options.paired:
                raise
            print(f"{error} Scores are left out.", file=sys.stderr)
            return {}
    pair = _pair(options, a, ids, b, known)
    if pair is not None and options.paired is None and not belong(*pair):
        named = ids is not None or known is not None
        fix = "Check that B holds the images observed" if named else "Write --paired true if they are pairs"
        requirement = "to be nearer to their partners in B than to others"
        print(message("evaluate", "the images of A", requirement, "no difference", fix), file=sys.stderr)
        pair = pair if named else None
    means = scores(*pair, options.lpips) if pair is not None else {}
    formats = {"psnr": ".2f", "ssim": ".3f", "lpips": ".3f"}
    return {key.upper(): format(value, formats[key]) for key, value in means.items() if value is not None}


def _read(source: str, options: Options) -> tuple[Images, Tensor | None]:
    """The images of a set, and the ids of their observations if it is a store that knows them."""
    path = Path(source)
    if (path / "metrics.jsonl").is_file():
        last = read_metrics(path)[-1]["round"]
        fix = "The run has only its initial model: train a round, or compare `emfast sample` of it"
        check(last > 0, "evaluate", str(path), "to have reconstructions", "none", fix)
        path = round_folder(path, last) / STORE
    elif (path / STORE / "manifest.json").is_file():
        path = path / STORE
    if not (path / "manifest.json").is_file():
        return load(source, crop=options.crop, size=options.size, limit=options.limit), None
    store = Store.open(path)
    return Images(picked(store.rows("images"), slice(0, options.limit))), store.load("ids")[: options.limit]


def _range(source: str) -> Range | None:
    """The range that stands for [-1, 1] in a set; None if it was not imported, nor made of what was."""
    path = Path(source)
    if (path / "metrics.jsonl").is_file():
        last = round_folder(path, read_metrics(path)[-1]["round"])
        return range_of_note(read_note(last / "model"))
    if (path / STORE / "manifest.json").is_file() and (path / "config.yaml").is_file():
        found = pyyaml.safe_load((path / "config.yaml").read_text()).get("observations")
        return getattr(read_origin(found), "range", None) if found else None
    return getattr(read_origin(path), "range", None)


def _check_range(options: Options, a: Images, source: str, images: Images) -> None:
    """Refuses a set whose range is another than that of A, where both are of files with ranges."""
    if not any(_in_data_units(*each) for each in ((options.a, a), (source, images))):
        check_range("evaluate", source, _range(source), _range(options.a), "A")


def _observed(options: Options) -> Images:
    """The images of B that the ids of A are rows of: of a run those without the ones that it began with."""
    b, path = _all(options.b, options), Path(options.a) / "config.yaml"
    of_run = (Path(options.a) / "metrics.jsonl").is_file() and path.is_file()
    return observed_images(Config.from_yaml(path), b) if of_run else b


def _in_data_units(source: str, images: Images) -> bool:
    """Whether a set is in [-1, 1] by what its maker says: floats of a file that was not imported, such as samples."""
    path = split_key(source)[0]
    return path.suffix.lower() in ARRAYS and images.tensor.dtype.is_floating_point and read_origin(path) is None


def _all(source: str, options: Options) -> Images:
    """The images of a set, all of them."""
    return _read(source, replace(options, limit=None))[0]


def _pair(
    options: Options, a: Images, ids: Tensor | None, b: Images, others: Tensor | None
) -> tuple[Tensor | Rows, Tensor | Rows] | None:
    """The images that belong together, as two of equal length; None if none do."""
    if options.paired is False:
        return None
    if ids is not None and others is not None:
        common, rows = _common(ids, others)
        check(len(common) > 0 or not options.paired, "evaluate", "A and B", "to share observations", "none")
        return (picked(a.floats, common), picked(b.floats, rows)) if len(common) else None
    for known, count, name in ((ids, len(b), "B"), (others, len(a), "A")):
        enough = known is None or int(known.max()) < count
        requirement = f"to hold the images observed, {0 if known is None else int(known.max()) + 1} or more"
        check(enough or not options.paired, "evaluate", name, requirement, count)
        if not enough:  # their order says nothing
            return None
    if ids is not None:
        return a.floats, picked(b.floats, ids)
    if others is not None:
        return picked(a.floats, others), b.floats
    fix = "Leave paired out"
    check(len(a) == len(b) or not options.paired, "evaluate", "B", f"to have {len(a)} images like A", len(b), fix)
    return (a.floats, b.floats) if len(a) == len(b) else None


def _common(ids: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of two sets that have the same id."""
    where = {int(value): row for row, value in enumerate(others)}
    pairs = [(row, where[int(value)]) for row, value in enumerate(ids) if int(value) in where]
    return torch.tensor([row for row, _ in pairs], dtype=torch.long), torch.tensor(
        [row for _, row in pairs], dtype=torch.long
    )


def _named_space(options: Options, reference: Statistics | None) -> Features | None:
    """The feature space that is asked for, or of which there are statistics."""
    if options.features not in ("auto", "none"):
        return features(options.features, options.weights)
    if options.features == "auto" and reference is not None and reference.space is not None:
        return features(reference.space, options.weights)
    return None


def _usual_space(a: Images) -> Features | None:
    """The feature space for images of their channels; none, and the reason is told, if there is none."""
    try:
        return default_features(a.shape[0])
    except (ValueError, RuntimeError) as error:
        print(f"{error} The distance is left out; so it is, without a word, by --features none.", file=sys.stderr)
        return None


def _distance(options: Options, space: Features, a: Images, b: Images | Statistics) -> float:
    """The Frechet distance of A from images or statistics; those of images are written where that is asked for."""
    ours = space.extract(a)
    if isinstance(b, Statistics):
        return distance_to(ours, b)
    theirs = space.extract(b)
    if options.statistics is not None:
        write_statistics(options.statistics, statistics_of(theirs, space.name))
    return float(frechet_distance(ours, theirs))
