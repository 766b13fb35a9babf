"""What is told of a training while it goes on: sums over some steps stay on its device until they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emfast.diffusion import Schedule

EDGES = (0.1, 0.5, 2.0, 10.0)  # of noise levels sigma / alpha: the loss is told below, between and above them
LEVELS = ("<0.1", "0.1-0.5", "0.5-2", "2-10", ">10")


def by_noise_level(schedule: Schedule, t: Tensor, losses: Tensor) -> Tensor:
    """Returns the sums of the losses at each range of noise levels, and how many they are, per image: (2, len(LEVELS)).

    Arguments:
        schedule: The noise schedule.
        t: (B,) times.
        losses: (B,) the loss of each image.
    """
    level = schedule.sigma(t) / schedule.alpha(t)
    place = torch.zeros_like(t, dtype=torch.int64)
    for edge in EDGES:  # numbers of the program: a tensor of them would come from the CPU, which no graph holds
        place += level >= edge
    # Sums of a fixed order, where index_add has atomics
    here = place[:, None] == torch.arange(len(LEVELS), device=t.device)
    losses = losses.detach().float()[:, None]
    return torch.stack((torch.where(here, losses, 0).mean(0), here.float().mean(0)))


class Meter:
    """Sums of what each step gives; does not wait for the device but when it is read.

    Arguments:
        device: The device of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2 + 2 * len(LEVELS), device=device)
        self.steps = 0

    def add(self, loss: Tensor, norm: Tensor, levels: Tensor | None) -> None:
        """Takes in a step.

        Arguments:
            loss: Its loss, 0-dimensional.
            norm: The norm of its gradient before it is clipped, 0-dimensional.
            levels: What `by_noise_level` gives; None: not known.
        """
        parts = [torch.stack((loss.detach().float(), norm.detach().float()))]
        parts.append(self.sums.new_zeros(2 * len(LEVELS)) if levels is None else levels.flatten())
        self.sums += torch.cat(parts)
        self.steps += 1

    def read(self) -> dict[str, Any]:
        """Returns the means since the last reading, and begins anew; waits for the device."""
        loss, norm, *levels = self.sums.tolist()
        sums, counts = levels[: len(LEVELS)], levels[len(LEVELS) :]
        means = [value / count if count else None for value, count in zip(sums, counts, strict=True)]
        found = {"loss": loss / self.steps, "gradient_norm": norm / self.steps, "loss_by_noise": means}
        self.sums.zero_()
        self.steps = 0
        return found


def summary(log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the log of a training as one row for the metrics of its round: means over its steps, and what was last.

    Arguments:
        log: Its rows; none, if there was no training.
    """
    if not log:
        return dict.fromkeys(("loss", "gradient_norm", "learning_rate", "images_per_second", "loss_by_noise"))

    def mean(values: Sequence[float | None]) -> float | None:
        pairs = [(value, row["steps"]) for value, row in zip(values, log, strict=True) if value is not None]
        return sum(value * steps for value, steps in pairs) / sum(steps for _, steps in pairs) if pairs else None

    images = sum(row["images_per_second"] * row["seconds"] for row in log)
    return {
        "loss": mean([row["loss"] for row in log]),
        "gradient_norm": mean([row["gradient_norm"] for row in log]),
        "learning_rate": log[-1]["learning_rate"],
        "images_per_second": images / max(math.fsum(row["seconds"] for row in log), 1e-9),
        "loss_by_noise": [mean([row["loss_by_noise"][k] for row in log]) for k in range(len(LEVELS))],
    }
