"""The settings of training, a group of the config (`emfast.config`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from emfast._check import MANY, check, check_positive
from emfast._classes import check_fields


@dataclass
class MStepConfig:
    """The M-step: training on the reconstructions.

    Args:
        initial_steps: Training steps of the initial model on the clean images.
        steps: Training steps of a warm-started round.
        final_steps: Training steps of a from-scratch round.
        batch_size: Images per step, over all processes.
        optimizer: adamw; or muon, whose updates of matrices are orthogonal: fewer steps, each a little slower.
        learning_rate: The learning rate.
        warmup: Steps of linear warm-up of the learning rate.
        weight_decay: The weight decay.
        decay: The share of the training, or of all of a continuous run, over which the learning rate falls to 0 at its
            end.
        ema: Decay of the moving average of the weights, which is the model; it warms up over the first steps.
        ema_power: A power-function average instead, which keeps (1 - 1 / k)^(power + 1) at step k: about the last
            1 / (power + 2) of the steps. null: `ema`.
        clip_norm: Largest norm of the gradient.
        flip: Mirrors images at random (do not use where left and right differ).
        noise_levels: Which noise levels sigma / alpha are trained at: those of the schedule (uniform times), or
            log-normal ones, which spend more on the middle, where images are made.
        noise_mean: The mean of log(sigma / alpha), of log-normal ones.
        noise_std: Its standard deviation.
        schedule_share: The share of those of the schedule among log-normal ones.
        target_images: The network's target is the mean of what the noisy image may stem from among so many training
            images and those of the batch, and not the image that it stems from: less variance at high noise levels. 0:
            that image alone.
        prior_share: Of a network that is shown observations (sampler Conditional), the share of the images that it is
            shown without one: from them it learns the prior.
        checkpoint: Steps between checkpoints: what an interruption costs at most.
    """

    initial_steps: int = 2000
    steps: int = 5000
    final_steps: int = 20000
    batch_size: int = 128
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 2e-4
    warmup: int = 100
    weight_decay: float = 0.01
    decay: float = 0.0
    ema: float = 0.999
    ema_power: float | None = None
    clip_norm: float = 1.0
    flip: bool = False
    noise_levels: Literal["schedule", "log-normal"] = "schedule"
    noise_mean: float = -1.2
    noise_std: float = 1.2
    schedule_share: float = 0.0
    target_images: int = 0
    prior_share: float = 0.25
    checkpoint: int = 500

    def __post_init__(self) -> None:
        check_fields("m_step", self)
        check_positive("m_step", self, "initial_steps", "steps", "final_steps", "batch_size", "checkpoint")
        check_positive("m_step", self, "learning_rate", "clip_norm")
        check(0 <= self.warmup <= MANY, "config", "m_step.warmup", f"to be in 0 ... {MANY}", self.warmup)
        good = 0 <= self.weight_decay < math.inf
        check(good, "config", "m_step.weight_decay", "to be >= 0 and finite", self.weight_decay)
        check(0 <= self.ema < 1, "config", "m_step.ema", "to be in [0, 1)", self.ema)
        check(0 <= self.decay <= 1, "config", "m_step.decay", "to be in [0, 1]", self.decay)
        check_positive("m_step", self, "ema_power", "noise_std")
        check(math.isfinite(self.noise_mean), "config", "m_step.noise_mean", "to be finite", self.noise_mean)
        good = 0 <= self.target_images <= MANY
        check(good, "config", "m_step.target_images", f"to be in 0 ... {MANY}", self.target_images)
        good = 0 < self.prior_share < 1
        check(good, "config", "m_step.prior_share", "to be in (0, 1)", self.prior_share)
        good = 0 <= self.schedule_share < 1
        check(good, "config", "m_step.schedule_share", "to be in [0, 1)", self.schedule_share)
