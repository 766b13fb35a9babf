"""Expectation-maximization: E-step and M-step in turn until the plan is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from emfast._check import check
from emfast.em.device import resolve_device
from emfast.em.events import Event
from emfast.em.given import take
from emfast.em.lock import held
from emfast.em.plan import next_phase
from emfast.em.prediction import predict
from emfast.em.processes import is_main, join
from emfast.em.run import Run

if TYPE_CHECKING:
    from emfast.config import Config

INITIAL = "initial"


@torch.enable_grad()  # whatever the caller has
def train(
    config: Config,
    callback: Callable[[Event], None] | None = None,
    *,
    images: Any = None,
    observations: Any = None,
    clean: Any = None,
    model: Any = None,
    network: Any = None,
) -> Path:
    """Runs EM, or goes on with it where an earlier process was interrupted, and returns the folder of the model.

    As `emfast train`, without its tables and pictures: `emfast.reporting.draw_run(config.output)` draws those.

    Arguments:
        config: The run. It is kept in the folder as `config.yaml`, and must not change on resuming.
        callback: Called with `Predicted`, `Progress`, `TrainingLogged` and `RoundFinished` events, in the main process
            only.
        images: Instead of `data.images`: clean images to corrupt in simulation, a tensor (N, C, H, W) in [-1, 1] or
            uint8, or a Dataset of such images (or of tuples that begin with one).
        observations: Instead of `data.observations`: a tensor y (N, ...) in data units, or tensors by name, {"y": y,
            "mask": mask}, with parameters of the operator. The config names the operator unless they do.
        clean: Instead of `data.clean`: clean images for the initial model, all of them.
        model: Instead of `config.model`: the initial model, already trained: a diffusers pipeline, a `Denoiser`, or a
            module, called as network(x_t, t), with the schedule and the prediction of `config.network`.
        network: A module called so that is not trained yet, instead of the U-Net of `config.network`, whose schedule
            and prediction hold for it. A copy of it is trained; what diffusers cannot build is loaded again by
            `emfast.em.load_network(folder, network)`.
    Returns:
        The folder of the model.
    Raises:
        ValueError: If config and data do not fit together, or the folder belongs to another run.
        RuntimeError: If another process runs in the folder.
        OSError: If the folder cannot be written.

    References:
        | An Expectation-Maximization Algorithm for Training Clean Diffusion Models from Corrupted Observations
        | (Bai et al., 2024), arXiv 2407.01014
    """
    fix = "Give emfast.Config(...), or Config.from_yaml(file)"
    check(hasattr(config, "to_yaml"), "train", "config", "to be an emfast.Config", type(config), fix, TypeError)
    on = torch.is_inference_mode_enabled()
    check(not on, "train", "torch.inference_mode", "to be off", "on", "Call it outside of that", RuntimeError)
    free = Path(config.output).is_dir() or not Path(config.output).exists()  # a file is refused by the run itself
    device = resolve_device(config.device)
    with _plain(device):
        config, given = take(
            config, images=images, observations=observations, clean=clean, model=model, network=network
        )
    holding = held(config.output) if is_main() and free else nullcontext()
    with _plain(device), holding, join(device, config.output) as processes:
        return _go_on(Run(config, callback, device, processes, given))


def _go_on(run: Run) -> Path:
    """Makes all rounds that are not finished; returns the folder of the model."""
    while step := run.processes.agree(_next(run.folder.rows(), run.config)):
        number, phase = step.split()
        if phase == INITIAL:
            if run.callback is not None and run.processes.main and not (run.folder.round(0) / "model").exists():
                run.callback(predict(run))
            run.initial_round()
        else:
            run.round(int(number), phase)
    run.publish()
    return run.folder.model


@contextmanager
def _plain(device: torch.device) -> Iterator[None]:
    """A block without what else the caller has set, which would change the results, or where new tensors lie."""
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.autocast(device.type, enabled=False), torch.device("cpu") if elsewhere else nullcontext():
        yield


def _next(rows: list[dict[str, Any]], config: Config) -> str:
    """Returns the number and the phase of the round after those that are finished; nothing at the end."""
    phase = next_phase(rows, config) if rows else INITIAL
    return f"{len(rows)} {phase}" if phase else ""
