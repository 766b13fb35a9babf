"""The typed experiment config: YAML file, command-line flags, their documentation and the argument of emfast.train."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from emfast._check import MANY, MOST, check, check_positive, check_sigma
from emfast._classes import check_fields
from emfast._e_step_config import EStepConfig
from emfast._m_step_config import MStepConfig
from emfast._settings import read_file, read_settings
from emfast._yaml import to_yaml
from emfast.operators import Mask, Operator
from emfast.presets import expanded, preset
from emfast.samplers import DPS, Sampler, default_sampler
from emfast.samplers.defaults import check_fits, check_posterior, usual_classes


@dataclass
class DataConfig:
    """Where the images come from.

    Args:
        images: Clean images to corrupt in simulation, so that the truth is known: a folder of pictures, .npz/.npy, IDX,
            HDF5 or CIFAR binary files, or "sample:train" / "sample:test" (Fashion-MNIST, part of the package).
        observations: Corrupted observations instead of images: a file with `y` and the operator's parameters, such as
            `emfast import` writes.
        clean: Clean images for the initial model; `clean_count` of them are taken, and left out of the observations
            that are simulated. auto: `images`, or null where observations are given.
        clean_count: How many clean images the initial model is trained on; 0: none, it is trained on reconstructions
            under a Gaussian fitted to the observations.
        reference: Clean images the Frechet distance compares samples with; null: no distance. auto: `images`, of the
            sample its other part; null where observations are given.
        size: Resize to this many pixels a side.
        crop: Centre crop of this many pixels before resizing (CelebA: 140).
        sigma: The noise that is added to simulated observations, where the `sigma` of the run is another, or auto.
        limit: Use only the first so many observations.
        held_out: Keep so many observations, spread evenly, from all training. After every round they tell without the
            truth how good the model is on new ones, and whether it is too sure: `held_out_psnr`, `held_out_variance`.
            Of a mask, or with noise, only.
        patch: Cut images into patches of this many pixels a side, and learn from those (observations: those of a Mask
            or the Identity only). Whole ones are then restored by tiles.
    """

    images: str | None = "sample:train"
    observations: str | None = None
    clean: str | None = "auto"
    clean_count: int = 50
    reference: str | None = "auto"
    size: int | None = None
    crop: int | None = None
    sigma: float | None = None
    limit: int | None = None
    held_out: int = 0
    patch: int | None = None

    def __post_init__(self) -> None:
        check_fields("data", self)
        check_positive("data", self, "size", "crop", "limit", "patch")
        check_sigma(self.sigma or 0.0, "config")
        good = 0 <= self.clean_count <= MANY
        check(good, "config", "data.clean_count", f"to be in 0 ... {MANY}", self.clean_count)
        check(0 <= self.held_out <= MANY, "config", "data.held_out", f"to be in 0 ... {MANY}", self.held_out)


@dataclass
class NetworkConfig:
    """The U-Net (diffusers UNet2DModel) and its noise schedule.

    Args:
        channels: The width of each resolution; each but the last halves the image.
        layers: Residual blocks per resolution.
        attention: Which resolutions have attention, counted from 0 (full size).
        head_dim: Channels per attention head; none: a single head.
        groups: Groups of the group normalisation.
        dropout: Dropout in the residual blocks, active in training only.
        schedule: The noise schedule.
        schedule_steps: Its number of steps T.
        prediction: What the network predicts.
    """

    channels: list[int] = field(default_factory=lambda: [128, 256, 256, 256])
    layers: int = 2
    attention: list[int] = field(default_factory=lambda: [1])
    head_dim: int | None = 64
    groups: int = 32
    dropout: float = 0.0
    schedule: Literal["linear", "cosine"] = "linear"
    schedule_steps: int = 1000
    prediction: Literal["eps", "v", "x0"] = "eps"

    def __post_init__(self) -> None:
        check_fields("network", self)
        check_positive("network", self, "layers", "head_dim", "groups")
        check(len(self.channels) > 0, "config", "network.channels", "to name at least one width", self.channels)
        good = 0 < min(self.channels) <= max(self.channels) <= 100_000
        check(good, "config", "network.channels", "to be in 1 ... 100000", self.channels)
        check(0 <= self.dropout < 1, "config", "network.dropout", "to be in [0, 1)", self.dropout)
        good = 1 < self.schedule_steps <= 1_000_000
        check(good, "config", "network.schedule_steps", "to be in 2 ... 1000000", self.schedule_steps)


@dataclass
class GaussianConfig:
    """The Gaussian prior that gives the first reconstructions, fitted to the observations and to what is clean.

    Args:
        rank: The rank of its covariance; none: 2 sqrt(C H W), at most 128 and a quarter of the number of images.
        rounds: Its EM rounds.
        images: Observations it is fitted to, and the initial model then trained on; no more clean images; none: all.
        always: Where there are clean images too: the initial model is trained on both. Not where observations leave
            detail out, as a blur does: there the clean images alone are the better beginning. auto: where the
            operator is Mask or Identity.
    """

    rank: int | None = None
    rounds: int = 16
    images: int | None = 5000
    always: bool | Literal["auto"] = False

    def __post_init__(self) -> None:
        check_fields("gaussian", self)
        check_positive("gaussian", self, "rank", "rounds", "images")


@dataclass
class EvaluationConfig:
    """What is measured after every round.

    Args:
        samples: Images sampled from the model for the Frechet distance and the pictures, 2 or more; 0: none. Without a
            distance no more than the pictures show.
        steps: Deterministic sampling steps for them.
        order: 2 extrapolates each step from the one before: at as many evaluations far closer to what the model has
            learned. 1 does not.
        features: Feature space of the distance; auto: "fashion-mnist" for one channel, "efficientnet-lite0" for RGB.
        weights: Path of the weights where the feature space needs a file ("inception").
        pictures: Images per row of the pictures.
    """

    samples: int = 512
    steps: int = 50
    order: int = 1
    features: Literal["auto", "fashion-mnist", "efficientnet-lite0", "inception", "none"] = "auto"
    weights: str | None = None
    pictures: int = 8

    def __post_init__(self) -> None:
        check_fields("evaluation", self)
        check_positive("evaluation", self, "steps", "pictures")
        good = self.samples == 0 or 1 < self.samples <= MANY
        check(good, "config", "evaluation.samples", f"to be 0, or in 2 ... {MANY}", self.samples)
        check(self.order in (1, 2), "config", "evaluation.order", "to be 1 or 2", self.order)


@dataclass
class Config:
    """One EM run.

    Args:
        output: The folder of the run; the same command again resumes it.
        preset: Sizes of network and training to begin with, from the shape of the images: tiny (minutes on a CPU),
            small (hours), paper (a large GPU). What else is given goes before it. In Python: `Config.with_preset`.
        model: A diffusers model folder as the initial model, instead of training one on clean images.
        data: Where the images come from.
        operator: The measurement operator A. By default Mask(missing=0.6) where observations are simulated, and where
            they are given that of the parameters in the file (`mask`, `kernel`).
        sigma: Standard deviation of the measurement noise, in data units ([-1, 1]); of observations that were imported
            (`emfast import`), in the units of their files. auto: estimated before every round, from samples under the
            model of the round before.
        sigma_start: Where the estimate begins, in the units of sigma; rather too much than too little, up to 3 times.
        sampler: The posterior sampler of the E-step; by default the best one for the operator.
        network: The U-Net.
        gaussian: The first prior where there are no clean images.
        e_step: The E-step.
        m_step: The M-step.
        evaluation: What is measured after every round.
        schedule: rounds: each E-step is made by the finished model of the round before, and each M-step begins anew.
            continuous: the store of reconstructions is renewed part by part by the averaged model while its training
            goes on, and a round is one sweep through all parts; optimizer and average last from the first to the last.
        rounds: Warm-started rounds, at most.
        final_rounds: From-scratch rounds on all observations after them.
        switch: Go to the final rounds early by the paper's rule: the best scale has not fallen for 3 rounds or is
            below `switch_scale`. Needs `e_step.scales`.
        switch_scale: The paper's 1 belongs to a residual norm over its whole batch; per image it is 1 over the root of
            the batch size.
        seed: The seed of everything random.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        accelerate: Computes the network with emfast's kernels; none: where they were measured to be faster, on CPUs
            and, in bfloat16, on GPUs.
        precision: Compute precision; auto: bfloat16 where the hardware is good at it.
        keep: Of how many of the last rounds the reconstructions stay on disk; the models of all rounds do.
        trackers: Also write to these trackers of experiments, with commas between: tensorboard, wandb, mlflow and what
            else accelerate knows. Each is a package of its own.
    """

    output: str = "runs/emfast"
    preset: Literal["tiny", "small", "paper"] | None = None
    model: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    operator: Operator | None = None
    sigma: float | Literal["auto"] = 0.0
    sigma_start: float = 0.1
    sampler: Sampler | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    gaussian: GaussianConfig = field(default_factory=GaussianConfig)
    e_step: EStepConfig = field(default_factory=EStepConfig)
    m_step: MStepConfig = field(default_factory=MStepConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    schedule: Literal["rounds", "continuous"] = "rounds"
    rounds: int = 8
    final_rounds: int = 3
    switch: bool = True
    switch_scale: float = 1.0
    seed: int = 0
    device: str = "auto"
    accelerate: bool | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    keep: int = 2
    trackers: str = ""

    @staticmethod
    def usual(tree: dict[str, Any]) -> dict[str, Any]:
        """Returns what a file or a command line means beside what it says: a preset, classes of arguments alone.

        Arguments:
            tree: What they say; the name of a preset is taken out.
        """
        return {**expanded(tree), **usual_classes(tree)}

    def __post_init__(self) -> None:
        fix = "Give operators.Linear(function, shape=(C, H, W)) for a function"
        function = callable(self.operator) and not isinstance(self.operator, type | Operator)
        check(not function, "config", "operator", "to be an Operator", self.operator, fix)
        check_fields("", self)
        fix = f"Write Config.with_preset({self.preset!r}, shape, ...)"
        check(self.preset is None, "config", "preset", "to be read from a file or a command line", self.preset, fix)
        if self.operator is None and self.data.observations is None:
            self.operator = Mask(missing=0.6)
        self.sampler = self.sampler or default_sampler(type(self.operator) if self.operator else Operator)
        check_posterior(self.sampler, "config")
        check_fits(self.sampler, self.operator, self.sigma, "config")
        # That of observations, which may be in units of their own, is checked with them.
        check_sigma(self.first_sigma if self.data.observations is None else min(self.first_sigma, 1), "config")
        check(self.sigma_start > 0, "config", "sigma_start", "to be > 0", self.sigma_start)
        known = self.sigma != "auto" or self.data.observations is not None or self.data.sigma is not None
        check(known, "config", "data.sigma", "to be given where observations are simulated and sigma is auto", None)
        most = MOST["rounds"]
        check(0 <= self.rounds <= most, "config", "rounds", f"to be in 0 ... {most}", self.rounds)
        check(0 <= self.final_rounds <= most, "config", "final_rounds", f"to be in 0 ... {most}", self.final_rounds)
        good = 0 <= self.switch_scale < math.inf
        check(good, "config", "switch_scale", "to be >= 0 and finite", self.switch_scale)
        check(0 < self.keep <= most, "config", "keep", f"to be in 1 ... {most}", self.keep)
        check(bool(self.output), "config", "output", "to be a folder", repr(self.output))
        steps = getattr(self.sampler, "steps", 1)
        check(steps > 0, "config", "sampler.steps", "to be positive", steps)
        if self.model is None:
            top = self.network.schedule_steps
            spaced = not isinstance(self.sampler, DPS)
            check(spaced or steps <= top, "config", "sampler.steps", f"to be <= {top}, those of the schedule", steps)
            steps = self.evaluation.steps
            check(steps <= top, "config", "evaluation.steps", f"to be <= {top}, those of the schedule", steps)

    @property
    def first_sigma(self) -> float:
        """The noise level that the run begins with."""
        return self.sigma_start if self.sigma == "auto" else self.sigma

    @classmethod
    def with_preset(cls, name: str, shape: tuple[int, int, int], **settings: Any) -> Config:
        """Returns a config with the network and training of a preset.

        Arguments:
            name: tiny, small or paper.
            shape: (C, H, W) of the images.
            settings: The other fields; a group that is given replaces that of the preset.
        Raises:
            ValueError: If there is no such preset, or a setting is not good.
        """
        config: Config = read_settings(cls, preset(name, shape), "config")
        return replace(config, **settings)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Config:
        """Returns the config of a file, as `emfast train --config FILE` reads it.

        Arguments:
            path: The file; what it does not name has its default.
        Raises:
            ValueError: If there is a mistake in it; one sentence.
        """
        config: Config = read_settings(cls, read_file(os.fspath(path), cls, "config"), "config")
        return config

    def to_yaml(self) -> str:
        """Returns the complete config as YAML, which gives the same again."""
        return to_yaml(self)
