"""The E-step: one posterior sample for every observation, shard by shard into a store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor

from emfast import random
from emfast.data.rows import not_finite
from emfast.data.store import Store
from emfast.diffusion import Denoiser
from emfast.em.batch_size import choose_batch_size
from emfast.em.filling import fill
from emfast.em.observations import Observations
from emfast.em.shards import Work
from emfast.samplers import Sampler
from emfast.samplers.defaults import check_posterior


def e_step(
    sampler: Sampler,
    denoiser: Denoiser,
    observations: Observations,
    ids: Tensor,
    store: Store,
    *,
    batch_size: int | Literal["auto"] = 64,
    seed: int = 0,
    work: Work | None = None,
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
        batch_size: Observations reconstructed together, of whatever shards; auto: see `choose_batch_size`. It is halved
            where a GPU has no memory for it.
        seed: The key of the sampler's noise.
        work: Where this process gets the shards to make; by default all that the store lacks.
        callback: Called as callback(sampler steps of single observations done, in all), by all processes.
    Raises:
        ValueError: If the sampler does not read the observations.
        RuntimeError: If a sample diverges twice; its id is named.
    """
    check_posterior(sampler, "e_step")
    if batch_size == "auto":
        todo = store.shards if work is None else work.missing
        batch_size = choose_batch_size(sampler, denoiser, observations, ids) if todo else 1
    draw = partial(reconstruct, sampler, denoiser, observations, seed=seed)
    device = next(denoiser.parameters()).device
    fill(store, ids, draw, device, batch_size=batch_size, work=work, callback=callback)


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
    bad = not_finite(x)
    if bad.any():
        x[bad] = draw(ids[bad], random.derive(seed, "redraw"), None)
        bad = not_finite(x)
    if bad.any():
        name = type(sampler).__name__
        raise RuntimeError(
            f"{name}: expected finite samples, got NaN or infinity for observations {ids[bad].tolist()[:8]}. "
            "Lower the sampler's scale, or raise its number of steps."
        )
    return x
