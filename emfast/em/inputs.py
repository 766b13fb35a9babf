"""The data of a run, from its config."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emfast import random
from emfast._check import check
from emfast.data import Images, load
from emfast.data.file_rows import collect
from emfast.data.origin import Range, check_range, read_origin
from emfast.data.patches import cut_patches, patch_places
from emfast.data.rows import Rows, pieces
from emfast.em.given import GIVEN, Given
from emfast.em.held_out import check_held_out
from emfast.em.observations import Observations, patches_of
from emfast.em.observing_operator import BY_PARAMETER, check_known, drawn, operator_of
from emfast.operators.given import checked

if TYPE_CHECKING:
    from emfast.config import Config, DataConfig

FAINT = 2e-3  # of half the range: no noise that an estimate begins with


@dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Arguments:
        observations: The observations.
        clean: Clean images for the initial model, None if it starts from a given model or without any.
        reference: Clean images the Frechet distance compares with, None if there are none.
    """

    observations: Observations
    clean: Images | None
    reference: Images | None

    @property
    def fingerprints(self) -> dict[str, str]:
        """Short hashes of the data by name."""
        others = {"clean images": self.clean, "reference images": self.reference}
        prints = {name: images.fingerprint for name, images in others.items() if images is not None}
        own = {"observations": self.observations.fingerprint, "operator": self.observations.operator_fingerprint}
        return {**own, **prints}


def read_inputs(config: Config, given: Given | None = None) -> Inputs:
    """Returns the data of a run, checked to fit together.

    Arguments:
        config: The run.
        given: What was given in Python.

    Raises:
        ValueError: If a file is missing, damaged or of another shape than the rest.
    """
    data, cut = config.data, {"crop": config.data.crop, "size": config.data.size}
    given = given or Given()
    _check_given(config, given)
    clean_source = _clean_source(config)

    @cache  # two of them may be of one source
    def images_of(source: str | None) -> Images:
        return given.images if source == GIVEN and given.images is not None else load(source or "", **cut)

    clean = given.clean or images_of(clean_source) if clean_source is not None else None
    images = None
    if data.observations is None:
        check(data.images is not None, "train", "data.images or data.observations", "to be given", "neither")
        images = images_of(data.images)
    if clean is not None:
        fix = "Give more images, or a smaller clean_count"
        check(
            data.clean_count <= len(clean), "train", "data.clean_count", f"to be <= {len(clean)}", data.clean_count, fix
        )
        clean = clean.subset(slice(len(clean) - data.clean_count, None))
        images = images and _without(images, clean)
    places = _places(images, data.patch)
    images, clean = (_cut(each, data.patch) for each in (images, clean))
    observations = _observations(config, images, given.observations)
    if places is not None:
        observations.places = places[: len(observations)]
    if data.held_out:
        check_held_out(observations, config.first_sigma)
        observations = observations.holding_out(data.held_out)
    source = _source(data, data.reference, "sample:test")
    reference = images_of(source) if source is not None and config.evaluation.samples > 0 else None
    reference = _cut(reference, data.patch)
    wanted_range = getattr(observations.origin, "range", None)
    named = (("data.clean", clean, clean_source), ("data.reference", reference, source))
    for name, images_, path in named:
        if images_ is not None:
            shape = observations.shape
            fix = "Set data.size, or give other images"
            few = name == "data.reference" and len(images_) < 2
            check(not few, "train", name, "to hold 2 images or more", len(images_), "Set it to null for no distance")
            check(images_.shape == shape, "train", name, f"to have the observations' shape {shape}", images_.shape, fix)
            found = getattr(read_origin(path or ""), "range", None)
            if found != wanted_range:
                check_range("train", f"{name} {path}", found, wanted_range, "the observations")
    return Inputs(observations, clean, reference)


def observed_images(config: Config, images: Images) -> Images:
    """Returns those of some images that a run on them observes, row id for observation id: without its clean images.

    Arguments:
        config: The run.
        images: The images, cut and resized as the run has them.
    Raises:
        ValueError: If its clean images are not to be had.
    """
    data, source = config.data, _clean_source(config)
    if data.images is None or source is None:
        return images
    fix = "Compare the reconstructions themselves, or sample with emfast restore"
    check(source != GIVEN, "evaluate", "the clean images of the run", "to be a file or a folder", GIVEN, fix)
    clean = load(source, crop=data.crop, size=data.size)
    return _without(images, clean.subset(slice(len(clean) - data.clean_count, None)))


def _check_given(config: Config, given: Given) -> None:
    """Raises a sentence where the config of a run in Python is used without what was given there."""
    data = config.data
    named: dict[str, tuple[str | None, object]]
    named = {"data.images": (data.images, given.images), "data.observations": (data.observations, given.observations)}
    named |= {"data.clean": (data.clean, given.clean), "model": (config.model, given.model)}
    for name, (path, there) in named.items():
        fix = "Run the program that this config is from again, or name a file"
        check(path != GIVEN or there is not None, "train", name, "to be a file or a folder", GIVEN, fix)


def _source(data: DataConfig, named: str | None, sample: str) -> str | None:
    """Returns where clean images come from: what is named; beside observations that are simulated, the same images.

    Of the sample it is the part of the given name.
    """
    if named != "auto":
        return named
    if data.observations is not None or data.images is None:
        return None
    return sample if data.images.startswith("sample:") else data.images


def _clean_source(config: Config) -> str | None:
    """Returns where the clean images of a run come from; None if it takes none."""
    takes = config.model is None and config.data.clean_count > 0
    return _source(config.data, config.data.clean, "sample:train") if takes else None


def _check_start(sigma: float, range: Range) -> None:
    """Refuses a first noise level that is not in the units of the files: an estimate would not come back from there."""
    fix = f"Give a guess that is less than 3 times off, such as --sigma_start {0.1 * range.half:.3g}"
    requirement = f"to be in the units of the files, which are of {range}"
    check(sigma >= FAINT * range.half, "config", "sigma_start", requirement, sigma, fix)


def _observations(config: Config, images: Images | None, given: dict[str, Tensor] | None) -> Observations:
    """Returns the observations of images, or without any those of the file."""
    data, operator, sigma = config.data, config.operator, config.first_sigma
    if given is not None:
        parameters: dict[str, Tensor | Rows] = {n: value[: data.limit] for n, value in given.items() if n != "y"}
        y = given["y"][: data.limit]
        others = operator is not None and drawn(operator, y) - parameters.keys()
        if operator is None or (others and BY_PARAMETER.keys() & parameters.keys()):  # not what observed them
            operator = operator_of(y, parameters, "observations")
        check_known(operator, y, parameters, "observations")
        rows: Tensor | Rows = y
        places = None
        if data.patch is not None:
            rows, parameters, places = patches_of(y, checked(operator, parameters), operator, data.patch)
        observations = Observations(
            operator, sigma=sigma, y=rows, given=parameters, name="observations", guessed=config.sigma == "auto"
        )
        observations.places = places
        return observations
    if images is None or operator is None:
        observations = Observations.from_file(
            data.observations or "",
            operator,
            sigma=sigma,
            guessed=config.sigma == "auto",
            limit=data.limit,
            patch=data.patch,
        )
        _check_size(data.size, observations.shape)
        if config.sigma == "auto" and observations.origin is not None:
            _check_start(config.sigma_start, observations.origin.range)
        return observations
    if data.limit is not None:
        images = images.subset(slice(0, data.limit))
    noise, seed = sigma if data.sigma is None else data.sigma, random.derive(config.seed, "observations")
    return Observations(operator, sigma=noise, images=images, seed=seed).assuming(sigma)


def _cut(images: Images | None, patch: int | None) -> Images | None:
    if images is None or patch is None:
        return images
    return Images(collect(cut_patches(part, patch, "train") for _, part in pieces(images.tensor)))


def _places(images: Images | None, patch: int | None) -> Tensor | None:
    """Returns where the patches of images are from."""
    return None if images is None or patch is None else patch_places(len(images), images.shape[1:], patch)


def _check_size(size: int | None, shape: tuple[int, int, int]) -> None:
    fix = "Observations are neither cut nor resized: leave it out, or make them of smaller images"
    good = size is None or (size, size) == shape[1:]
    check(good, "train", "data.size", f"to be the side of the observed images, {shape}", size, fix)


def _without(images: Images, others: Images) -> Images:
    """Returns the images that are not among others by their pixels, whatever files they are from."""
    coarse = images.tensor.dtype != others.tensor.dtype
    known = set(_hashes(others, coarse))
    rows = [row for row, value in enumerate(_hashes(images, coarse)) if value not in known]
    fix = "Give more images, or a smaller data.clean_count"
    check(len(rows) > 0, "train", "data.images", "to hold more than the clean images", f"{len(images)} of those", fix)
    return images.subset(rows) if len(rows) < len(images) else images


def _hashes(images: Images, coarse: bool) -> Iterator[bytes]:
    """Yields a hash of every image, as it is kept or, to be compared with one of another precision, in 8 bits."""
    for ids in torch.arange(len(images)).split(1024):
        part = ((images[ids] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) if coarse else images.tensor[ids]
        for image in part.contiguous().numpy():
            yield hashlib.blake2b(image.data, digest_size=16).digest()
