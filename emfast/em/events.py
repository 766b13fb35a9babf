"""What a run reports while it goes on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How far a phase of a round is: "gaussian", "initial training", "scale", "e-step", "m-step" or "samples"."""

    phase: str
    round: int
    done: int
    total: int


@dataclass(frozen=True)
class RoundFinished:
    """A finished round: its metrics and its folder."""

    row: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class TrainingLogged:
    """How the training goes: means over the steps since the event before.

    `row` holds step (of the whole run), steps, loss, gradient_norm, learning_rate, images_per_second, seconds and
    loss_by_noise, the loss at noise levels sigma / alpha between `emfast.em.training_log.EDGES`.
    """

    round: int
    row: dict[str, Any]


Event = Progress | RoundFinished | TrainingLogged
