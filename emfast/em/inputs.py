"""The data of a run, from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emfast import random
from emfast._check import check
from emfast.data import Images, load
from emfast.em.observations import Observations

if TYPE_CHECKING:
    from emfast.config import Config


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
        clean = {"clean images": self.clean.fingerprint} if self.clean is not None else {}
        return {"observations": self.observations.fingerprint, **clean}


def read_inputs(config: Config) -> Inputs:
    """Returns the data of a run, checked to fit together.

    Raises:
        ValueError: If a file is missing, damaged or of another shape than the rest.
    """
    data = config.data
    clean = None
    wanted = config.model is None and data.clean is not None and data.clean_count > 0
    seed = random.derive(config.seed, "observations")
    if data.observations is None:
        check(data.images is not None, "train", "data.images or data.observations", "to be given", "neither")
        images = load(data.images or "", crop=data.crop, size=data.size)
        if wanted and data.clean == data.images:
            images, clean = _split(images, data.clean_count)
        if data.limit is not None:
            images = images.subset(slice(0, data.limit))
        observations = Observations(config.operator, sigma=config.sigma, images=images, seed=seed)
    else:
        observations = Observations.from_file(data.observations, config.operator, sigma=config.sigma, limit=data.limit)
        fix = "Observations are neither cut nor resized: leave it out, or make them of smaller images"
        good = data.size is None or (data.size, data.size) == observations.shape[1:]
        check(
            good, "train", "data.size", f"to be the side of the observed images, {observations.shape}", data.size, fix
        )
    if wanted and clean is None:
        clean = load(data.clean or "", crop=data.crop, size=data.size)
        clean = _split(clean, data.clean_count)[1]
    compared = data.reference is not None and config.evaluation.samples > 0
    reference = load(data.reference or "", crop=data.crop, size=data.size) if compared else None
    for name, images_ in (("data.clean", clean), ("data.reference", reference)):
        if images_ is not None:
            shape = observations.shape
            fix = "Set data.size, or give other images"
            few = name == "data.reference" and len(images_) < 2
            check(not few, "train", name, "to hold 2 images or more", len(images_), "Set it to null for no distance")
            check(images_.shape == shape, "train", name, f"to have the observations' shape {shape}", images_.shape, fix)
    return Inputs(observations, clean, reference)


def _split(images: Images, count: int) -> tuple[Images, Images]:
    """Returns all but the last `count` images, and those."""
    fix = "Give more images, or a smaller clean_count"
    check(0 < count < len(images), "train", "data.clean_count", f"to be in 1 ... {len(images) - 1}", count, fix)
    return images.subset(slice(0, len(images) - count)), images.subset(slice(len(images) - count, None))
