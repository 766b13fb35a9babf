"""`emfast evaluate`: two sets of images compared."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from emfast._check import check, message
from emfast.commands.display import plain_console
from emfast.commands.files import scores
from emfast.data import Images, Store, load
from emfast.reporting import plain_table, read_metrics, round_folder

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
        b: The images to compare them with.
        features: Feature space of the distance; auto: "fashion-mnist" for one channel, "efficientnet-lite0" for RGB.
        weights: Path of the weights where the feature space needs a file ("inception").
        paired: Whether image i of A belongs to image i of B, so that PSNR and SSIM make sense; none: see above.
        size: Resize images read from files to this many pixels a side.
        crop: Centre crop of this many pixels before resizing.
        limit: Use only the first so many of both.
    """

    a: str
    b: str
    features: Literal["auto", "fashion-mnist", "efficientnet-lite0", "inception", "none"] = "auto"
    weights: str | None = None
    paired: bool | None = None
    size: int | None = None
    crop: int | None = None
    limit: int | None = None


def run(options: Options, yaml: str) -> None:
    """Prints the comparison.

    Arguments:
        options: What to compare.
        yaml: The options as text.
    """
    a, ids = _read(options.a, options)
    b, others = _read(options.b, options)
    check(a.shape == b.shape, "evaluate", "B", f"to have images of A's shape {a.shape}", b.shape, "Set size")
    pair = _pair(options, a, ids, b, others)
    if pair is not None and options.paired is None and not _belong(*pair):
        known = ids is not None or others is not None
        fix = "Check that B holds the images observed" if known else "Write --paired true if they are pairs"
        requirement = "to be nearer to their partners in B than to others"
        print(message("evaluate", "the images of A", requirement, "no difference", fix), file=sys.stderr)
        pair = pair if known else None
    means = scores(*pair) if pair is not None else {}
    name, distance = _distance(options, a, b)
    columns = [("images A", [str(len(a))]), ("images B", [str(len(b))])]
    for heading, key, spec in (("PSNR", "psnr", ".2f"), ("SSIM", "ssim", ".3f")):
        value = means.get(key)
        columns.append((heading, ["-" if value is None else format(value, spec)]))
    plain_console().print(plain_table([*columns, (name, [distance])]))


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
    return Images(store.load("images")[: options.limit]), store.load("ids")[: options.limit]


def _pair(
    options: Options, a: Images, ids: Tensor | None, b: Images, others: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """The images that belong together, as two batches; None if none do."""
    if options.paired is False:
        return None
    if ids is not None and others is not None:
        common, rows = _common(ids, others)
        check(len(common) > 0 or not options.paired, "evaluate", "A and B", "to share observations", "none")
        return (a[common], b[rows]) if len(common) else None
    if ids is not None and int(ids.max()) < len(b):
        return a[:], b[ids]
    if others is not None and int(others.max()) < len(a):
        return a[others], b[:]
    fix = "Leave paired out"
    check(len(a) == len(b) or not options.paired, "evaluate", "B", f"to have {len(a)} images like A", len(b), fix)
    return (a[:], b[:]) if len(a) == len(b) else None


def _belong(x: Tensor, y: Tensor) -> bool:
    """Whether images are nearer to their partners than to those of their neighbours, beyond three standard errors."""
    others = y.roll(1, 0)
    nearer = torch.cat(
        [
            ((x[rows] - others[rows]).square() - (x[rows] - y[rows]).square()).flatten(1).mean(1)
            for rows in torch.arange(len(x)).split(512)
        ]
    )
    return len(x) < 2 or bool(nearer.mean() >= 3 * nearer.std() / len(x) ** 0.5)


def _common(ids: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of two sets that have the same id."""
    where = {int(value): row for row, value in enumerate(others)}
    pairs = [(row, where[int(value)]) for row, value in enumerate(ids) if int(value) in where]
    return torch.tensor([row for row, _ in pairs], dtype=torch.long), torch.tensor(
        [row for _, row in pairs], dtype=torch.long
    )


def _distance(options: Options, a: Images, b: Images) -> tuple[str, str]:
    """The name of the Frechet distance and its value; a dash and the reason if "auto" finds no feature space."""
    if options.features == "none":
        return "FD", "-"
    from emfast.evaluation import default_features, features, frechet_distance

    if options.features == "auto":
        try:
            space = default_features(a.shape[0])
        except (ValueError, RuntimeError) as error:
            print(error, file=sys.stderr)
            return "FD", "-"
    else:
        space = features(options.features, options.weights)
    return space.metric, f"{float(frechet_distance(space.extract(a), space.extract(b))):.2f}"
