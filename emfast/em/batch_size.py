"""The number of observations that are reconstructed together fastest, found by trying."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import torch
from torch import Tensor

from emfast.diffusion import Denoiser
from emfast.em.observations import Observations
from emfast.samplers import Sampler

SIZES = (16, 32, 64, 128, 256)
LARGEST = 1024  # on a GPU: beyond it nothing gets faster
MEMORY = 0.8  # the share of a GPU's free memory to use
GAIN = 1.03  # a larger batch must be faster by this factor: it needs more memory


class _Enough(Exception):
    """Ends a sampler after the steps that are measured."""


def choose_batch_size(sampler: Sampler, denoiser: Denoiser, observations: Observations, ids: Tensor) -> int:
    """Returns the batch size of the E-step: by throughput on a CPU, the largest that fits in memory on a GPU.

    Arguments:
        sampler: The posterior sampler.
        denoiser: The prior, on the device to use.
        observations: The observations.
        ids: (N,) ids of those to reconstruct; the batch size is at most N.
    """
    device = next(denoiser.parameters()).device
    if device.type == "cuda":
        return _largest(sampler, denoiser, observations, ids)
    best, fastest = len(ids), 0.0
    for size in [size for size in SIZES if size <= len(ids)]:
        rate = size / step_seconds(sampler, denoiser, observations, ids[:size])[0]
        if rate < fastest * GAIN:
            break
        best, fastest = size, rate
    return best


def step_seconds(
    sampler: Sampler,
    denoiser: Denoiser,
    observations: Observations,
    ids: Tensor,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, int]:
    """Returns the time of a step of a sampler, in seconds, and all its steps.

    Arguments:
        sampler: The posterior sampler.
        denoiser: The prior, on the device to use.
        observations: The observations.
        ids: (N,) ids of those to take together.
        clock: What tells the time, in seconds.
    """
    device = next(denoiser.parameters()).device
    y, operator, sigma = observations.read(ids).to(device), observations.operator, observations.sigma

    def sample(callback: Callable[[int, int], None]) -> None:
        sampler(denoiser, y, operator, sigma=sigma, ids=ids.to(device), callback=callback)

    return timed(sample, device, clock)


def timed(
    sample: Callable[[Callable[[int, int], None]], object],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, int]:
    """Returns the time of the faster of the second and third step, in seconds, and all steps.

    The first one prepares weights and memory.

    Arguments:
        sample: Called as sample(callback), it begins to sample and calls callback(steps done, steps in all).
        device: Where it does.
        clock: What tells the time, in seconds.
    """
    marks: list[float] = []
    count = 1

    def stop(done: int, steps: int) -> None:
        nonlocal count
        count = steps
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(clock())
        if done >= min(3, steps):
            raise _Enough

    start = clock()
    with suppress(_Enough):
        sample(stop)
    # A sampler of one step has no second one.
    return (min(b - a for a, b in pairwise(marks)) if len(marks) > 1 else marks[0] - start), count


def _largest(sampler: Sampler, denoiser: Denoiser, observations: Observations, ids: Tensor) -> int:
    """Returns the largest batch size that fits, from the memory that two small batches take."""
    device = next(denoiser.parameters()).device
    sizes, peaks = (8, 32), []
    if len(ids) <= sizes[1]:
        return len(ids)
    for size in sizes:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        try:
            step_seconds(sampler, denoiser, observations, ids[:size])
        except torch.OutOfMemoryError:  # whoever draws a batch for which there is no memory halves it
            return sizes[0]
        peaks.append(torch.cuda.max_memory_reserved(device) - before)
    torch.cuda.empty_cache()
    each = max(1.0, (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]))
    room = MEMORY * torch.cuda.mem_get_info(device)[0] - peaks[0]
    fitting = sizes[0] + int(room / each)
    return max(1, min(fitting // 8 * 8, LARGEST, len(ids)))
