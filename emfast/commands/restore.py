"""`emfast restore`: a trained model on new observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml as pyyaml
from torch import Tensor

from emfast import random
from emfast._check import check, message
from emfast._files import checksum, is_unused, write_file, write_json, write_text
from emfast._settings import choice
from emfast.commands.display import Display
from emfast.commands.files import model_folder, scores, write_images
from emfast.commands.run_settings import describe, is_ours, make, run_of, run_settings
from emfast.data import Store, load, save_observations
from emfast.em import Observations, e_step, load_model, prepare
from emfast.em.model import resolve_device
from emfast.operators import Given, Operator
from emfast.reporting import COLUMNS, Row, draw_rows, plain_table
from emfast.samplers import Sampler, data_misfit, default_sampler
from emfast.samplers.defaults import usual_sampler

STORE = "reconstructions"
FREE = ("output", "device", "batch_size", "pictures", "model", "config")  # may differ when the same job goes on


@dataclass
class Options:
    """A trained model on new observations.

    Args:
        model: The folder of a run, of its model, or of any diffusers UNet2DModel.
        observations: Corrupted observations: a file with `y` and the operator's parameters.
        images: Clean images to corrupt in simulation instead, so that the truth is known.
        operator: The measurement operator A; by default that of the run, and where observations are given, that of the
            parameters in the file (`mask`, `kernel`) if the run's draws them at random.
        sigma: Standard deviation of the measurement noise, in data units ([-1, 1]); by default that of the run.
        sampler: The posterior sampler; by default the best one for the operator.
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
        for name in ("limit", "batch_size", "shard_size", "pictures"):
            value = getattr(self, name)
            check(value in (None, "auto") or value > 0, "restore", name, "to be positive", value)

    @staticmethod
    def usual(given: dict[str, Any]) -> dict[str, Any]:
        """Returns what the run of the model gives; there is no operator for observations that are given.

        Arguments:
            given: What is given, as nested mappings.
        """
        found = run_settings(run := run_of(given.get("model")))
        theirs, operator = choice(found.pop("operator", None)), choice(given.get("operator"))
        observed = given.get("observations") not in (None, "null")
        fix = "Name it with --operator if its code may be run"
        good = is_ours(theirs) or theirs is None or operator is not None or observed
        path = (theirs or {}).get("class_path")
        check(good, "restore", f"the operator of {run}", "to be one of emfast's", path, fix)
        theirs = theirs if is_ours(theirs) else None
        named = isinstance(operator, dict) and "class_path" in operator
        usual = theirs or (None if named else {"class_path": "Mask", "init_args": {"missing": 0.6}})
        taken = usual if operator is not None else None if observed else theirs
        return {**found, "operator": taken, "sampler": usual_sampler(operator if named else theirs)}


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
    shape = (shape[0], *observations.shape[1:]) if min(shape) == 0 else shape  # it does not say its sides
    fix = "Set size, or use the model of such images"
    check(
        observations.shape == shape,
        "restore",
        "the images",
        f"to have the model's shape {shape}",
        observations.shape,
        fix,
    )
    ids = torch.arange(len(observations))
    store = _claim(options, yaml, _identity(yaml, denoiser, observations), len(ids))
    operator = observations.operator
    kind = type(operator.operator if isinstance(operator, Given) else operator)
    with Display() as display:
        display.console.print(_said(options, yaml, operator), soft_wrap=True)
        e_step(
            options.sampler or default_sampler(kind),
            denoiser,
            observations,
            ids,
            store,
            batch_size=options.batch_size,
            seed=random.derive(options.seed, "restore"),
            callback=lambda done, total: display.advance("reconstructions", done, total),
        )
    row = _write(options, observations, ids, store.load("images"))
    _show(display, row)
    display.console.print(f"Results: {options.output}", soft_wrap=True)


def _observations(options: Options) -> Observations:
    operator, sigma, limit = options.operator, options.sigma, options.limit
    if options.images is None:
        usual = make(run_settings(run_of(options.model)).get("operator"))
        return Observations.from_file(options.observations or "", operator, usual=usual, sigma=sigma, limit=limit)
    if operator is None:
        fix = "Name it, as in --operator GaussianBlur"
        raise ValueError(message("restore", "the operator", "to be named, or the model to be of a run", "none", fix))
    images = load(options.images, crop=options.crop, size=options.size, limit=limit)
    return Observations(operator, sigma=sigma, images=images, seed=random.derive(options.seed, "observations"))


def _said(options: Options, yaml: str, operator: Operator) -> str:
    """What the observations are taken for, and which of it the run says."""
    run = run_of(options.model)
    theirs = run_settings(run)
    setting = pyyaml.safe_load(yaml)["operator"]
    if setting is None and isinstance(operator, Given):
        name = f"{type(operator.operator).__name__} of {options.observations}"
    else:
        name = describe(setting or theirs["operator"]) + (
            f" of {run}" if setting in (None, theirs.get("operator")) else ""
        )
    of = f" of {run}" if options.sigma == theirs.get("sigma") else ""
    return f"Operator: {name}\nSigma:    {options.sigma:g}{of}"


def _identity(yaml: str, denoiser: torch.nn.Module, observations: Observations) -> dict[str, Any]:
    """What the reconstructions depend on: another job may not go on in their folder."""
    job = {key: value for key, value in pyyaml.safe_load(yaml).items() if key not in FREE}
    return {**job, "model": checksum(denoiser.state_dict()), "data": observations.fingerprint}


def _claim(options: Options, yaml: str, identity: Mapping[str, Any], count: int) -> Store:
    """Opens or begins the output folder."""
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
    store = Store(output / STORE, count=count, shard_size=options.shard_size, identity=identity)
    write_text(output / "config.yaml", yaml)
    return store


def _write(options: Options, observations: Observations, ids: Tensor, images: Tensor) -> dict[str, Any]:
    """Writes observations, reconstructions, picture and metrics; returns the metrics."""
    output = Path(options.output)
    y, truth = observations.read(ids), observations.truth(ids)
    parameters = observations.operator.parameters(ids, tuple(y.shape[1:]))
    own = {name: value for name, value in parameters.items() if len(value) == len(ids)}
    save_observations(output / "observations.npz", y, own)
    write_images(output / "reconstructions.npz", images)
    shown = slice(0, options.pictures)
    rows = [Row("observation", y[shown]), Row("reconstruction", images[shown])]
    rows = [Row("truth", truth[shown]), *rows] if truth is not None else rows
    drawable = [row for row in rows if row.drawable]
    write_file(output / "reconstructions.png", lambda file: draw_rows(drawable, file))
    row: dict[str, Any] = {"images": len(ids), "psnr": None, "ssim": None}
    row["misfit"] = float(data_misfit(images, y, observations.operator, ids).mean())
    if truth is not None:
        row |= scores(images, truth)
        if y.shape == truth.shape:
            row |= {f"{key}_observations": value for key, value in scores(y, truth).items()}
    write_json(output / "metrics.json", row)
    return row


def _show(display: Display, row: Mapping[str, Any]) -> None:
    """Prints the metrics as a table."""
    formats = {key: spec for _, key, spec in COLUMNS}
    columns = [("", ["observations", "reconstructions"])]
    for name, key in (("PSNR", "psnr"), ("SSIM", "ssim"), ("misfit", "misfit")):
        values = [row.get(f"{key}_observations"), row.get(key)]
        columns.append((name, ["-" if value is None else format(value, formats[key]) for value in values]))
    display.console.print(plain_table(columns))
