"""The settings of the E-step, a group of the config (`emfast.config`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from emfast._check import check, check_positive
from emfast._classes import check_fields


@dataclass
class EStepConfig:
    """The E-step: one posterior sample for every observation.

    Args:
        batch_size: Observations reconstructed together; auto: found by trying, once for the run.
        shard_size: Observations in one file of the store: what an interruption costs at most.
        reconstructions: What they are kept in on disk. bfloat16 takes half of it, and rounds a value by 1/512 at most,
            a quarter of a grey level of 8 bits.
        warm_start: From the second round on, begin at the reconstruction of the round before, brought to this noise
            level (in data units), instead of at pure noise: fewer steps. Nothing changes for a sampler that begins at
            the observation. null: always at pure noise.
        subset: Random observations per warm-started round; none: all.
        scales: Candidates for the sampler's scale, tried each round, the smallest data misfit wins; empty: keep it.
        scale_images: Observations the candidates are tried on.
        parts: With the continuous schedule, in how many parts the store is renewed over a round.
    """

    batch_size: int | Literal["auto"] = "auto"
    shard_size: int = 256
    reconstructions: Literal["float32", "bfloat16"] = "float32"
    warm_start: float | None = 3.0
    subset: int | None = 5000
    scales: list[float] = field(default_factory=list)
    scale_images: int = 16
    parts: int = 8

    def __post_init__(self) -> None:
        check_fields("e_step", self)
        check_positive("e_step", self, "shard_size", "warm_start", "subset", "scale_images", "parts")
        if self.batch_size != "auto":
            check_positive("e_step", self, "batch_size")
        good = all(0 < scale < math.inf for scale in self.scales)
        check(good, "config", "e_step.scales", "to be positive and finite", self.scales)
