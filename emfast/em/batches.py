"""What a training step draws: its images, their times and their noise."""

from __future__ import annotations

import torch
from torch import Tensor

from emfast import random


class Batches:
    """Which images make up each batch: every image once an epoch, in an order of (seed, epoch)."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.int64)

    def ids(self, k: int) -> Tensor:
        """Returns the (batch_size,) rows of batch k; one that crosses the end of an epoch goes on in the next."""
        position, last, parts = k * self.batch_size, (k + 1) * self.batch_size, []
        while position < last:
            epoch, start = divmod(position, self.count)
            stop = min(self.count, start + last - position)
            parts.append(self._order(epoch)[start:stop])
            position += stop - start
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(random.derive(self.seed, "epoch", epoch) % 2**63)
            self.epoch, self.order = epoch, torch.randperm(self.count, generator=generator)
        return self.order


def draws(shape: tuple[int, ...], place: Tensor, seed: int, k: int | Tensor) -> tuple[Tensor, Tensor]:
    """Returns what is random about training step k: uniform numbers (B, 2) for time and flip, and noise (B, *shape).

    Arguments:
        shape: (C, H, W) of an image.
        place: (B,) the images' places in the batch, on the device to use.
        seed: The key of the training.
        k: The step, a number or a 0-dimensional tensor on the device of place.
    """
    u = random.uniform((2,), ids=place, seed=random.derive(seed, "time"), step=k)
    return u, random.normal(shape, ids=place, seed=random.derive(seed, "noise"), step=k)
