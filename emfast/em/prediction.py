"""What a run will take, from a few timed steps before it begins."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch

from emfast.em.batch_size import step_seconds
from emfast.em.events import Predicted
from emfast.em.m_step import Training
from emfast.em.trainer import Trainer
from emfast.graph import graphs
from emfast.samplers import WarmStart

if TYPE_CHECKING:
    from emfast.config import Config
    from emfast.diffusion import Denoiser
    from emfast.em.run import Run

BATCH = 16  # images of a timed step on a CPU, where the time of a step is proportional to them
REST = {"e-step": "sampler.steps or e_step.subset", "m-step": "m_step.steps or network.channels"}
REST |= {"evaluation": "evaluation.samples or evaluation.steps"}


def predict(run: Run) -> Predicted:
    """Returns what a run will take on this device; the weights and everything random are as before.

    Arguments:
        run: The run, begun; a network that is timed is prepared as the run prepares it.
    """
    config, denoiser = run.config, run.prepare(run.denoiser)
    with _kept(denoiser):
        memory, trained = _time_training(run, denoiser)
        sampled = _time_sampling(run, denoiser)
    count, network = len(run.observations), denoiser.network
    subset = count if config.schedule == "continuous" else min(config.e_step.subset or count, count)
    sampler, evaluations = config.sampler, float(getattr(config.sampler, "evaluations", 1))
    warm = evaluations
    if config.e_step.warm_start is not None and sampler is not None and sampler.begins_at_noise:
        first = torch.zeros(1, *run.observations.shape)
        begun = WarmStart(sampler, first, torch.arange(1), config.e_step.warm_start)
        warm = begun.evaluations_when_warm(denoiser.schedule, run.observations.sigma)
    per_step = trained * config.m_step.batch_size / run.processes.world
    measured = config.evaluation.samples * config.evaluation.steps * trained / 3  # forward only
    e_step = subset * sampled * warm / evaluations / run.processes.world
    m_step = config.m_step.steps * per_step
    final = count * sampled / run.processes.world + config.m_step.final_steps * per_step + measured
    initial = 0.0 if config.model is not None else config.m_step.initial_steps * per_step
    parts = {"e-step": e_step, "m-step": m_step, "evaluation": measured}
    return Predicted(
        parameters=sum(p.numel() for p in network.parameters()),
        memory=memory,
        device=str(run.device),
        seconds=parts,
        rounds=config.rounds,
        total=initial + measured + config.rounds * sum(parts.values()) + config.final_rounds * final,
        lower=_rest(config, parts),
    )


def _rest(config: Config, parts: dict[str, float]) -> str:
    """Returns what to lower for the part that takes longest."""
    longest = max(parts, key=lambda name: parts[name])
    if longest == "e-step" and config.schedule == "continuous":
        return "sampler.steps or data.limit"
    return REST[longest]


@contextmanager
def _kept(denoiser: Denoiser) -> Iterator[None]:
    """A block after which weights, mode and generators are as before."""
    network, device = denoiser.network, next(denoiser.parameters()).device
    state = {name: value.clone() for name, value in network.state_dict().items()}
    training = network.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_(state[name])
    for p in network.parameters():
        p.grad = None
    network.train(training)


def _time_training(run: Run, denoiser: Denoiser) -> tuple[int, float]:
    """Returns the bytes of memory that training takes, and the seconds of a training step for an image."""
    config, cuda = run.config.m_step, run.device.type == "cuda"
    whole = max(1, config.batch_size // run.processes.world)
    size = whole if cuda else min(whole, BATCH)
    trainer = Trainer(denoiser.network, dataclasses.replace(config, batch_size=size), "a few timed steps")
    images = torch.zeros(size, *run.observations.shape)
    training = Training(trainer, denoiser, images, seed=0, checkpoint="", last=0)
    denoiser.network.train()
    before, seconds = _memory(run.device), float("inf")
    if cuda:
        torch.cuda.reset_peak_memory_stats(run.device)
    for k in range(4 if cuda else 2):  # the first prepares weights and memory, and a graph
        start = time.perf_counter()
        trainer.update(*training.step(k))
        float(trainer.total)  # waits for a GPU
        seconds = time.perf_counter() - start if k == 0 else min(seconds, time.perf_counter() - start)
    after = _memory(run.device)
    return int(before + (after - before) * whole / size), seconds / size


def _time_sampling(run: Run, denoiser: Denoiser) -> float:
    """Returns the seconds that a posterior sample from pure noise takes."""
    denoiser.network.eval()
    wanted = run.config.e_step.batch_size
    most = BATCH if run.device.type != "cuda" else 64 if wanted == "auto" else wanted
    ids = torch.arange(min(most, len(run.observations)))
    sampler = run.config.sampler
    with graphs():
        seconds, steps = step_seconds(sampler, denoiser, run.observations, ids)  # type: ignore[arg-type]
    return seconds * steps / len(ids)


def _memory(device: torch.device) -> int:
    """Returns the most memory that was in use so far, on the device, in bytes; 0 if the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return 0
