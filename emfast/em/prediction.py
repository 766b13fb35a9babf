"""What a run will take, from a few timed steps before it begins."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch

from emfast.em import evaluation
from emfast.em.batch_size import step_seconds, timed
from emfast.em.events import Predicted
from emfast.em.first_images import begins_with_images
from emfast.em.held_out import DRAWS, splits_of, usual_sampler
from emfast.em.m_step import Training
from emfast.em.trainer import Trainer
from emfast.graph import graphs
from emfast.samplers import Prior, WarmStart

if TYPE_CHECKING:
    from emfast.config import Config
    from emfast.diffusion import Denoiser
    from emfast.em.run import Run

BATCH = 16  # images of the first timed step on a CPU
LONG = 5.0  # seconds that a timed step may take, or that of a larger batch is not tried
USUAL = 64  # observations together in the E-step, where the number is found by trying
REST = {"e-step": "sampler.steps or e_step.subset", "m-step": "m_step.steps or network.channels"}
REST |= {"evaluation": "evaluation.samples or evaluation.steps"}


class Rate(NamedTuple):
    """What a step takes."""

    seconds: float  # for an image
    size: int  # how many images were timed together


def predict(run: Run, clock: Callable[[], float] = time.perf_counter) -> Predicted:
    """Returns what a run will take on this device; the weights and everything random are as before.

    Training, posterior sampling and sampling for the evaluation are timed for themselves, each with as many images as
    the run takes together: the optimizer's share of a small batch is large, and a small network wants many images.

    Arguments:
        run: The run, begun; a network that is timed is prepared as the run prepares it.
        clock: What tells the time, in seconds.
    """
    config, denoiser = run.config, run.prepare(run.denoiser)
    with _kept(denoiser):
        memory, trained = _time_training(run, denoiser, clock)
        sampled = _time_sampling(run, denoiser, clock)
        drawn = _time_drawing(run, denoiser, clock)
    count, network = len(run.observations), denoiser.network
    subset = count if config.schedule == "continuous" else min(config.e_step.subset or count, count)
    sampler, evaluations = config.sampler, float(getattr(config.sampler, "evaluations", 1))
    warm = evaluations
    if config.e_step.warm_start is not None and sampler is not None and sampler.begins_at_noise:
        first = torch.zeros(1, *run.observations.shape)
        begun = WarmStart(sampler, first, torch.arange(1), config.e_step.warm_start)
        warm = begun.evaluations_when_warm(denoiser.schedule, run.observations.sigma)
    per_step = trained * config.m_step.batch_size / run.processes.world
    measured = run.evaluator.count * config.evaluation.steps * drawn / run.processes.world
    if held := len(run.observations.held_out):
        measured += held * splits_of(held) * DRAWS * sampled / evaluations * usual_sampler(run.observations).evaluations
    e_step = subset * sampled * warm / evaluations / run.processes.world
    # The first E-step has nothing to begin at but where a Gaussian gave reconstructions of all.
    begun_warm = config.rounds == 0 or (config.schedule == "continuous" and begins_with_images(run))
    cold = 0.0 if begun_warm else subset * sampled / run.processes.world - e_step
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
        total=initial + measured + cold + config.rounds * sum(parts.values()) + config.final_rounds * final,
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


def rate(seconds: Callable[[int], float], whole: int, first: int = BATCH) -> Rate:
    """Returns what a step takes for an image in a batch as large as the run has it.

    A larger batch than the first is timed if that will not take too long; if it will, the network is so large that an
    image takes as long in either. Where a GPU has no memory for the first, half of it is timed: the E-step halves its
    batches too.

    Arguments:
        seconds: Returns the seconds of a step of so many images.
        whole: Images that the run takes together.
        first: Images that are timed first.
    """
    size = min(whole, first)
    while True:
        try:
            taken = seconds(size)
            break
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            whole = size = size // 2
    if size < whole and taken * whole / size <= LONG:
        size, taken = whole, seconds(whole)
    return Rate(taken / size, size)


def _time_training(run: Run, denoiser: Denoiser, clock: Callable[[], float]) -> tuple[int, float]:
    """Returns the bytes of memory that training takes, and the seconds of a training step for an image."""
    config, cuda = run.config.m_step, run.device.type == "cuda"
    whole = max(1, config.batch_size // run.processes.world)
    before = _memory(run.device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(run.device)

    def seconds(size: int) -> float:
        settings = dataclasses.replace(config, batch_size=size)
        trainer = Trainer(denoiser.network, settings, "a few timed steps")
        count = max(size, min(len(run.observations), config.target_images + 1))  # targets are means over images
        images = torch.zeros(count, *run.observations.shape)
        training = Training(trainer, denoiser, images, seed=0, checkpoint="", last=0)
        denoiser.network.train()
        marks = [clock()]
        for k in range(4 if cuda else 3):  # the first prepares weights and memory, and a graph
            trainer.update(*training.step(k))
            float(trainer.total)  # waits for a GPU
            marks.append(clock())
        return min(b - a for a, b in pairwise(marks[1:]))

    found = rate(seconds, whole, whole if cuda else BATCH)
    after = _memory(run.device)
    return int(before + (after - before) * whole / found.size), found.seconds


def _time_sampling(run: Run, denoiser: Denoiser, clock: Callable[[], float]) -> float:
    """Returns the seconds that a posterior sample from pure noise takes."""
    denoiser.network.eval()
    wanted = run.config.e_step.batch_size
    whole = min(USUAL if wanted == "auto" else wanted, len(run.observations))
    steps = 1

    def seconds(size: int) -> float:
        nonlocal steps
        found, steps = step_seconds(run.config.sampler, denoiser, run.observations, torch.arange(size), clock)  # type: ignore[arg-type]
        return found

    with graphs():
        return rate(seconds, whole, whole if run.device.type == "cuda" else BATCH).seconds * steps


def _time_drawing(run: Run, denoiser: Denoiser, clock: Callable[[], float]) -> float:
    """Returns the seconds that a step of sampling for the evaluation takes for an image."""
    config = run.config.evaluation
    if config.samples == 0:
        return 0.0
    denoiser.network.eval()
    sampler, shape = Prior(steps=config.steps, order=config.order), run.observations.shape

    def seconds(size: int) -> float:
        ids = torch.arange(size, device=run.device)
        return timed(lambda callback: sampler.sample(denoiser, shape, ids=ids, callback=callback), run.device, clock)[0]

    whole = min(evaluation.BATCH, run.evaluator.count)
    with graphs():
        return rate(seconds, whole, whole if run.device.type == "cuda" else BATCH).seconds


def _memory(device: torch.device) -> int:
    """Returns the most memory that was in use so far, on the device, in bytes; 0 if the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return 0
