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


@dataclass(frozen=True)
class Predicted:
    """What a new run will take, from a few timed steps, before anything long begins.

    `memory` is in bytes; `seconds` those of a round by "e-step", "m-step" and "evaluation"; `total` those of all.
    """

    parameters: int
    memory: int
    device: str
    seconds: dict[str, float]
    rounds: int
    total: float
    lower: str

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_duration(value)}" for name, value in self.seconds.items())
        model = f"{self.parameters / 1e6:.1f} million parameters, {self.memory / 1e9:.1f} GB of memory"
        rounds = f"about {_duration(sum(self.seconds.values()))} a round ({parts})" if self.rounds else ""
        whole = f"{_duration(self.total)} in all on {self.device}"
        fix = f"lower {self.lower}" + (", or try --preset tiny" if self.parameters > 2e6 else "")
        return f"{', '.join(filter(None, (model, rounds, whole)))}. If that is too long, {fix}."


def _duration(seconds: float) -> str:
    """Returns a duration in the unit that a reader would take."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"


Event = Predicted | Progress | RoundFinished | TrainingLogged
