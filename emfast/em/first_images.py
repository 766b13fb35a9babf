"""The reconstructions that a run without a model to begin with has: under a Gaussian, which is fitted once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emfast._check import check, check_finite
from emfast._files import read_tensors, write_tensors
from emfast.data.file_rows import collect
from emfast.data.rows import Rows
from emfast.em.initialisation import GaussianPrior, fit_gaussian
from emfast.em.observing_operator import shows_pixels
from emfast.em.state import Stopwatch

if TYPE_CHECKING:
    from emfast.em.run import Run
    from emfast.em.work import Guest


def begins_with_images(run: Run | Guest) -> bool:
    """Returns whether there are reconstructions to begin with, beside clean images or without any."""
    beside = run.config.gaussian.always
    if beside == "auto":
        beside = shows_pixels(run.observations.operator)
    return run.config.model is None and (run.inputs.clean is None or beside)


def first_images(run: Run | Guest) -> tuple[Tensor | Rows, Tensor, float]:
    """Returns reconstructions of the first observations under a Gaussian fitted to them, their ids, and the seconds.

    Where the operator can only be simulated they are what the observations show.

    Arguments:
        run: The run; its main process fits the Gaussian, unless that is done.
    """
    watch, path, config = Stopwatch(), run.folder.round(0) / "gaussian.safetensors", run.config.gaussian
    ids = run.observations.ids[: config.images]
    if run.observations.operator.is_simulated:
        return collect(run.observations.as_images(part) for part in ids.split(1024)), ids, watch.seconds
    if run.processes.main and not path.exists():
        prior = fit_gaussian(
            run.observations,
            ids,
            rank=config.rank,
            rounds=config.rounds,
            seed=run.config.seed,
            clean=None if run.inputs.clean is None else run.inputs.clean.floats[: config.images],
            device=run.device,
            callback=run.progress("gaussian", 0),
        )
        tensors = dataclasses.asdict(prior.to("cpu"))
        check_finite(tensors, "train", "the Gaussian prior", "Give data.clean instead", RuntimeError)
        write_tensors(path, tensors | {"seconds": torch.tensor(watch.seconds)})
    run.processes.wait()
    tensors = read_tensors(path)
    names = ["seconds", *(field.name for field in dataclasses.fields(GaussianPrior))]
    fix = "Delete the file: the Gaussian is fitted again"
    check(set(names) == set(tensors), "train", str(path), f"to hold {', '.join(names)}", ", ".join(tensors), fix)
    seconds = float(tensors.pop("seconds"))
    prior, key = GaussianPrior(**tensors).to(run.device), run.seed("round", 0, "e_step")
    images = collect(prior.posterior(run.observations, part, seed=key).float().cpu() for part in prior.batches(ids))
    return images, ids, seconds
