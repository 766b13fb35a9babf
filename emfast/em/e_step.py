"""The E-step: one posterior sample for every observation, shard by shard into a store."""

from collections.abc import Callable

import torch
from torch import Tensor

from emfast import random
from emfast.data.store import Store
from emfast.diffusion import Denoiser
from emfast.em.observations import Observations
from emfast.em.processes import Processes
from emfast.em.state import Stopwatch
from emfast.samplers import Sampler


def e_step(
    sampler: Sampler,
    denoiser: Denoiser,
    observations: Observations,
    ids: Tensor,
    store: Store,
    *,
    batch_size: int = 64,
    seed: int = 0,
    processes: Processes | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> None:
    """Reconstructs observations into the shards that the store still lacks.

    A sample depends on the model, the observation, its id and the seed alone: neither on the batch, nor the shard, nor
    the number of processes, nor on what an interruption left to do.

    Arguments:
        sampler: The posterior sampler.
        denoiser: The prior, on the device to use.
        observations: The observations.
        ids: (N,) ids of those to reconstruct, N = the store's count; row i of the store belongs to ids[i].
        store: The store; each shard gets `images`, `ids` and the `seconds` that each took.
        batch_size: Observations reconstructed together.
        seed: The key of the sampler's noise.
        processes: The processes that share the shards; this one alone by default.
        callback: Called as callback(sampler steps done, in all) of this process's work.
    Raises:
        RuntimeError: If a sample diverges twice; its id is named.
    """
    processes = processes or Processes()
    todo = [shard for shard in store.shards[processes.rank :: processes.world] if not store.has(shard[0])]
    batches = sum(-(-(stop - start) // batch_size) for _, start, stop in todo)
    finished = 0

    def progress(done: int, steps: int) -> None:
        if callback is not None:
            callback(finished * steps + done, batches * steps)

    for index, start, stop in todo:
        watch = Stopwatch()
        images = []
        for part in ids[start:stop].split(batch_size):
            images.append(reconstruct(sampler, denoiser, observations, part, seed=seed, callback=progress))
            finished += 1
        seconds = torch.full((stop - start,), watch.seconds / (stop - start))
        shard = {"images": torch.cat(images), "ids": ids[start:stop], "seconds": seconds}
        store.write(index, shard)
    processes.wait()


def reconstruct(
    sampler: Sampler,
    denoiser: Denoiser,
    observations: Observations,
    ids: Tensor,
    *,
    seed: int = 0,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Returns one posterior sample for each id, (B, C, H, W) float32 on the CPU; a diverged one is drawn once more.

    Arguments:
        sampler: The posterior sampler.
        denoiser: The prior, on the device to use.
        observations: The observations.
        ids: (B,) ids of the observations.
        seed: The key of the sampler's noise.
        callback: Called as callback(steps done, steps in all).
    Raises:
        RuntimeError: If a sample diverges twice; its id is named.
    """
    device = next(denoiser.parameters()).device

    def draw(ids: Tensor, key: int, callback: Callable[[int, int], None] | None) -> Tensor:
        y = observations.read(ids).to(device)
        where = ids.to(device)
        operator, sigma = observations.operator, observations.sigma
        return sampler(denoiser, y, operator, sigma=sigma, ids=where, seed=key, callback=callback).float().cpu()

    x = draw(ids, seed, callback)
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        x[bad] = draw(ids[bad], random.derive(seed, "redraw"), None)
        bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        name = type(sampler).__name__
        raise RuntimeError(
            f"{name}: expected finite samples, got NaN or infinity for observations {ids[bad].tolist()[:8]}. "
            "Lower the sampler's scale, or raise its number of steps."
        )
    return x
