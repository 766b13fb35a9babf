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


Event = Progress | RoundFinished
