"""Published methods that the benchmark of whole methods compares with, one a file.

Each names its reference, says how faithful it is, and has `TASKS`, those it is for (None: all), and `SETTINGS`, what
differs from the config of the task. One that is not EM in rounds has `points` too: a function of the config and its
inputs that yields the models on its way.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emfast import Config
from emfast.diffusion import Denoiser
from emfast.em import prepare
from emfast.em.device import resolve_device
from emfast.em.m_step import Batches, m_step
from emfast.em.model import build_model
from emfast.em.trainer import Trainer

STEPS = 1350  # of a training that is not part of a round: no fewer than any method in rounds has in all


class Point(NamedTuple):
    """A model on the way of a method, and what was spent until it was there.

    `own` are the first observations as the method itself restores them, where that is not by posterior samples.
    """

    round: int
    evaluations: int
    seconds: float | None
    cpu_seconds: float | None
    denoiser: Denoiser
    own: Tensor | None = None


def training(**changes: Any) -> dict[str, Any]:
    """Returns the M-step that emfast's demo had before the continuous schedule, with changes."""
    plain = {
        "initial_steps": 250,
        "steps": 250,
        "batch_size": 64,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "decay": 0.0,
        "noise_levels": "schedule",
        "noise_mean": -1.2,
        "noise_std": 1.2,
        "schedule_share": 0.0,
        "target_images": 0,
    }
    return {**plain, **changes}


def e_step(**changes: Any) -> dict[str, Any]:
    """Returns its E-step on all observations, from pure noise, with changes."""
    return {"warm_start": None, "shard_size": 128, "subset": None, **changes}


def ready(denoiser: Denoiser, config: Config) -> Denoiser:
    """Returns a denoiser on the device of a config, computing as that asks for."""
    return prepare(denoiser, resolve_device(config.device), config.precision)


def prior(config: Config, images: Tensor, folder: Path) -> Denoiser:
    """Returns a prior trained on images (N, C, H, W) by the M-step of a config, in so many steps as the bounds have."""
    denoiser = ready(build_model(config.network, tuple(images.shape[1:]), config.seed)[0], config)
    path = folder / "prior.safetensors"
    trainer = m_step(denoiser, images, steps=STEPS, config=config.m_step, seed=config.seed, checkpoint=path)
    trainer.save(path)
    return denoiser


def fit(
    denoiser: Denoiser,
    count: int,
    loss: Callable[[Tensor, int], Tensor],
    *,
    config: Config,
    steps: int,
    checkpoint: Path,
) -> Denoiser:
    """Returns the denoiser, its network trained by another loss than the library's, with the averaged weights.

    Arguments:
        denoiser: The denoiser, ready.
        count: How many images there are to learn from.
        loss: Returns the loss of images, by their rows, at a step.
        config: Its M-step's optimizer, batches and average are used.
        steps: The training steps.
        checkpoint: A file to go on from.
    """
    trainer = Trainer(denoiser.network, config.m_step, f"seed {config.seed} steps {steps}", steps)
    if checkpoint.exists():
        trainer.load(checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    batches = Batches(count, config.m_step.batch_size, config.seed)
    denoiser.network.train()
    while trainer.step < steps:
        value = loss(batches.ids(trainer.step), trainer.step)
        trainer.update(value.detach(), torch.autograd.grad(value, trainer.parameters))
        if trainer.step % config.m_step.checkpoint == 0 or trainer.step == steps:
            trainer.look()
            trainer.save(checkpoint)
    trainer.finish()
    denoiser.network.eval()
    return denoiser


@contextmanager
def timed(folder: Path) -> Iterator[dict[str, float | None]]:
    """A block whose cost, `seconds` and those of this process's CPU, is kept in the folder.

    Unknown (None) where an earlier process had begun with it.
    """
    path = folder / "cost.json"
    cost: dict[str, float | None] = json.loads(path.read_text()) if path.exists() else {}
    fresh, seconds, cpu = not any(folder.glob("*.safetensors")), time.perf_counter(), time.process_time()
    yield cost
    if not cost:
        spent = (time.perf_counter() - seconds, time.process_time() - cpu)
        cost.update(zip(("seconds", "cpu_seconds"), spent if fresh else (None, None), strict=True))
        path.write_text(json.dumps(cost))
