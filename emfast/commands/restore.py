"""`emfast restore`: a trained model on new observations."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml as pyyaml
from torch import Tensor

from emfast import random
from emfast._check import check, message
from emfast._files import is_unused, write_text
from emfast._safetensors import checksum
from emfast._settings import choice
from emfast._yaml import defaults
from emfast.commands.display import Display
from emfast.commands.restored import agree, write_results
from emfast.commands.run_settings import describe, is_ours, make, run_of, run_settings
from emfast.data import Store, load
from emfast.data.origin import Range, check_range, range_of_note, read_origin, rows_by_name
from emfast.data.rows import Rows
from emfast.diffusion import Denoiser, TiledDenoiser
from emfast.diffusion.loading import model_folder
from emfast.em import Observations, e_step, load_model, prepare
from emfast.em.device import resolve_device
from emfast.em.model import read_note
from emfast.operators import Given, Operator
from emfast.reporting import COLUMNS, plain_table, write_report
from emfast.samplers import Sampler, default_sampler
from emfast.samplers.defaults import check_fits, usual_sampler

STORE = "reconstructions"
# May differ when the same job goes on.
FREE = ("output", "device", "batch_size", "pictures", "model", "config", "samples", "truth")


@dataclass
class Options:
    """A trained model on new observations.

    Args:
        model: The folder of a run, of its model, or of any diffusers UNet2DModel.
        observations: Corrupted observations: a file with `y` and the operator's parameters, such as `emfast import`
            writes; the results are then files like those imported, too.
        images: Clean images to corrupt in simulation instead, so that the truth is known.
        operator: The measurement operator A; by default that of the run, and where observations are given, that of the
            parameters in the file (`mask`, `kernel`) if the run's draws them at random.
        sigma: Standard deviation of the measurement noise: in the units of the files that were imported, else in data
            units ([-1, 1]); by default that of the run.
        sampler: The posterior sampler; by default the best one for the operator.
        truth: The clean images of the observations, where they are known: for PSNR, SSIM and coverage. Import them in
            the range of the observations, from files of the same names, or with the same
            numbers in them; what has no names is taken row for row.
        samples: Posterior samples of each observation; of 2 or more their mean and standard deviation are written too.
        tile: Restore images larger than those of the model by overlapping tiles of this side; by default that of the
            patches that it was trained on.
        output: The folder of the results; the same command again resumes it.
        size: Resize the images to this many pixels a side.
        crop: Centre crop of this many pixels before resizing.
        limit: Use only the first so many.
        seed: The seed of the simulated noise and of the sampler.
        batch_size: Observations reconstructed together; auto: found by trying.
        shard_size: Observations in one file of the store: what an interruption costs at most.
        pictures: Images in the picture.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: Compute precision; auto: bfloat16 where the hardware is good at it.
    """

    model: str
    observations: str | None = None
    images: str | None = None
    operator: Operator | None = None
    sigma: float = 0.0
    sampler: Sampler | None = None
    truth: str | None = None
    samples: int = 1
    tile: int | None = None
    output: str = "restored"
    size: int | None = None
    crop: int | None = None
    limit: int | None = None
    seed: int = 0
    batch_size: int | Literal["auto"] = "auto"
    shard_size: int = 256
    pictures: int = 8
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        given = (self.observations is not None) + (self.images is not None)
        check(given == 1, "restore", "one of observations and images", "to be given", "both" if given else "neither")
        for name in ("size", "crop"):
            good = self.observations is None or getattr(self, name) is None
            fix = "Observations are neither cut nor resized"
            check(good, "restore", name, "to stand beside images", "observations", fix)
        check(self.sigma >= 0, "restore", "sigma", "to be >= 0", self.sigma)
        for name in ("limit", "batch_size", "shard_size", "pictures", "samples", "tile"):
            value = getattr(self, name)
            check(value in (None, "auto") or value > 0, "restore", name, "to be positive", value)

    @staticmethod
    def usual(given: dict[str, Any]) -> dict[str, Any]:
        """Returns what the run of the model gives; there is no operator for observations that are given.

        Arguments:
            given: What is given, as nested mappings.
        """
        model = str(given.get("model"))
        found, run = run_settings(model), run_of(model)
        theirs, operator = choice(found.pop("operator", None)), choice(given.get("operator"))
        observed = given.get("observations") not in (None, "null")
        if "sigma" in found:  # each is in the units of its files, which may be data units
            origin = read_origin(given["observations"]) if observed else None
            trained = range_of_note(read_note(model_folder(model)))
            found["sigma"] *= _half(getattr(origin, "range", None)) / _half(trained)
        fix = "Name it with --operator if its code may be run"
        good = is_ours(theirs) or theirs is None or operator is not None
        path = (theirs or {}).get("class_path")
        check(good, "restore", f"the operator of {run}", "to be one of emfast's", path, fix)
        theirs = theirs if is_ours(theirs) else None
        named = isinstance(operator, dict) and "class_path" in operator
        usual = theirs or (None if named else {"class_path": "Mask", "init_args": {"missing": 0.6}})
        taken = usual if operator is not None else None if observed else theirs
        return {**found, "operator": taken, "sampler": usual_sampler(operator if named else theirs)}


def _half(range: Range | None) -> float:
    """Returns the difference of values that stands for 1."""
    return 1.0 if range is None else range.half


def run(options: Options, yaml: str) -> None:
    """Reconstructs, or goes on with it, and writes the results.

    Arguments:
        options: The job.
        yaml: The options as text.
    """
    device = resolve_device(options.device)
    denoiser, shape = load_model(model_folder(options.model))
    prepare(denoiser, device, options.precision)
    observations = _observations(options)
    truth = _truth(options, observations)
    ids = torch.arange(len(observations))
    operator = observations.operator
    known = operator.operator if isinstance(operator, Given) else operator
    sampler = options.sampler or default_sampler(type(known))
    check_fits(sampler, known, observations.sigma, "restore")  # before anything is written
    identity = _identity(yaml, denoiser, observations)
    denoiser, tile = _fitted(options, denoiser, shape, observations)
    stores = _claim(options, yaml, identity, len(ids))
    with Display() as display:
        display.console.print(_said(options, yaml, observations, tile), soft_wrap=True)
        for number, store in enumerate(stores):
            names = ("restore", number) if number else ("restore",)
            label = f"sample {number + 1} of {len(stores)}" if len(stores) > 1 else "reconstructions"
            e_step(
                sampler,
                denoiser,
                observations,
                ids,
                store,
                batch_size=1 if tile and options.batch_size == "auto" else options.batch_size,
                seed=random.derive(options.seed, *names),
                callback=partial(display.advance, label),
            )
    row = write_results(Path(options.output), observations, ids, stores, options.pictures, truth)
    write_report([options.output])
    _show(display, row)
    display.console.print(f"Results: {options.output}", soft_wrap=True)
    if observations.origin is not None:
        folders = "images" if options.samples == 1 else f"mean, std, sample-1 ... sample-{options.samples}"
        text = f"Files:   {folders} in it, with the names and in the units of those imported"
        display.console.print(text, soft_wrap=True)


def _observations(options: Options) -> Observations:
    operator, sigma, limit = options.operator, options.sigma, options.limit
    if options.images is None:
        usual = make(run_settings(options.model).get("operator"))
        found = Observations.from_file(options.observations or "", operator, usual=usual, sigma=sigma, limit=limit)
        wanted = range_of_note(read_note(model_folder(options.model)))
        own = found.origin.range if found.origin is not None else None
        if wanted is not None:  # a model that knows none may have been trained anywhere
            check_range("restore", options.observations or "", own, wanted, f"the model {options.model}")
        return found
    if operator is None:
        fix = "Name it, as in --operator GaussianBlur"
        raise ValueError(message("restore", "the operator", "to be named, or the model to be of a run", "none", fix))
    images = load(options.images, crop=options.crop, size=options.size, limit=limit)
    return Observations(operator, sigma=sigma, images=images, seed=random.derive(options.seed, "observations"))


def _truth(options: Options, observations: Observations) -> Tensor | Rows | None:
    """Returns the clean images of the observations, None if they are not known."""
    if options.truth is None:
        return None if observations.images is None else observations.images.floats
    origins = read_origin(options.truth), observations.origin
    ranges = [getattr(each, "range", None) for each in origins]
    check_range("restore", options.truth, ranges[0], ranges[1], "the observations")
    rows, example = rows_by_name("restore", options.truth, *origins, len(observations))
    images = load(options.truth, limit=options.limit if rows is None else None)
    images = images if rows is None else images.subset(rows)
    found, wanted = (len(images), *images.shape), (len(observations), *observations.shape)
    check(found == wanted, "restore", "truth", f"to have the shape of the observed images, {wanted}", found)
    if example is not None:
        print(f"Truth:    by the numbers in the names, as in {example}")
    if (rows is None or example is not None) and not agree(images.floats, observations):
        requirement, fix = "to be nearer to their observations than to others", "Check that they have one order"
        print(message("restore", "the images of truth", requirement, "no difference", fix), file=sys.stderr)
    return images.floats


def _fitted(
    options: Options, denoiser: Denoiser, shape: tuple[int, int, int], observations: Observations
) -> tuple[Denoiser, int | None]:
    """Returns the denoiser for the images, by tiles if these are larger than its own, and the side of the tiles."""
    own = observations.shape
    shape = (shape[0], *own[1:]) if min(shape) == 0 else shape  # it does not say its sides
    tile = options.tile or read_note(model_folder(options.model)).get("patch")
    if own[0] == shape[0] and max(own[1] - shape[1], own[2] - shape[2]) > 0 and isinstance(tile, int):
        return TiledDenoiser(denoiser, tile), tile
    fix = "Set size, use the model of such images, or restore larger ones by tiles, as in --tile 64"
    check(own == shape, "restore", "the images", f"to have the model's shape {shape}", own, fix)
    return denoiser, None


def _said(options: Options, yaml: str, observations: Observations, tile: int | None) -> str:
    """What the observations are taken for, and which of it the run says."""
    operator, origin = observations.operator, observations.origin
    run = run_of(options.model)
    theirs = run_settings(options.model)
    setting = pyyaml.safe_load(yaml)["operator"]
    if setting is None and isinstance(operator, Given):
        name = f"{type(operator.operator).__name__} of {options.observations}"
    else:
        name = describe(setting or theirs["operator"]) + (
            f" of {run}" if setting in (None, theirs.get("operator")) else ""
        )
    of = f" of {run}" if options.sigma == theirs.get("sigma") else ""
    where = f", in the units of the files, {origin.range} for [-1, 1]" if origin is not None else ""
    lines = [f"Operator: {name}", f"Sigma:    {options.sigma:g}{of}{where}"]
    return "\n".join(lines if tile is None else [*lines, f"Tiles:    {tile} x {tile}"])


def _identity(yaml: str, denoiser: torch.nn.Module, observations: Observations) -> dict[str, Any]:
    """What the reconstructions depend on: another job may not go on in their folder."""
    job = {key: value for key, value in pyyaml.safe_load(yaml).items() if key not in FREE}
    data = f"{observations.fingerprint} {observations.operator_fingerprint}"
    return {**job, "model": checksum(denoiser.state_dict()), "data": data}


def _claim(options: Options, yaml: str, identity: Mapping[str, Any], count: int) -> list[Store]:
    """Opens or begins the output folder: a store for each sample."""
    output = Path(options.output)
    ours = (output / STORE / "manifest.json").exists()
    fix = "Choose another output"
    check(
        ours or is_unused(output),
        "restore",
        f"output {output}",
        "to be empty or an earlier `emfast restore`",
        "other files",
        fix,
    )

    def store(folder: Path, identity: Mapping[str, Any]) -> Store:
        size = options.shard_size
        return Store(folder, count=count, shard_size=size, identity=identity, defaults=defaults(options))

    stores = [store(output / STORE, identity)]
    for number in range(1, options.samples):
        stores.append(store(output / "samples" / str(number + 1), {**identity, "sample": number}))
    write_text(output / "config.yaml", yaml)
    return stores


def _show(display: Display, row: Mapping[str, Any]) -> None:
    """Prints the metrics as a table, and how often the samples cover the truth."""
    formats = {key: spec for _, key, spec in COLUMNS}
    names = ["observations", "reconstructions", "their mean"][: 3 if "psnr_mean" in row else 2]
    columns = [("", names)]
    for name, key in (("PSNR", "psnr"), ("SSIM", "ssim"), ("misfit", "misfit")):
        values = [row.get(f"{key}_observations"), row.get(key), row.get(f"{key}_mean")][: len(names)]
        columns.append((name, ["-" if value is None else format(value, formats[key]) for value in values]))
    display.console.print(plain_table(columns), soft_wrap=True)
    if "coverage" in row:
        text = "leave no pixel uncertain"
        if row["coverage"] is not None:
            text = f"enclose the truth in {row['coverage']:.0%} of the uncertain pixels, "
            text += f"{row['coverage_expected']:.0%} if they were exact"
        display.console.print(f"Coverage: the {row['samples']} samples {text}", soft_wrap=True)
