r"""Noise schedules: how much signal and noise is left at time t.

.. math:: x_t = \alpha_t x_0 + \sigma_t \epsilon, \quad \epsilon \sim \mathcal N(0, I)

Time t is the index 0 ... T-1 of the training steps for VP (DDPM) schedules, fractions included; for VE (EDM) schedules
it is sigma itself, in data units; for flow matching it is T sigma. Every formula of emfast uses alpha_t and sigma_t
only.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from emfast._check import check

# Noise levels sigma_t / alpha_t, in data units, beyond which few steps are not spent: above, nothing of an image in
# [-1, 1] is left to see; below, the posterior mean is the image. From 157 to 0.01, the ends of a linear schedule, MMPS
# reaches 29.27 dB with 20 steps and 27.19 with 10 (mask, `benchmarks/samplers.py`); from 40 to 0.03 29.51 and 28.71.
NOISIEST, CLEANEST = 40.0, 0.03
ROUNDING = 1e-6  # by how much a table of float32 numbers may leave its range or fail to decrease
LEAST = 1e-12  # alpha^2 and sigma^2 of a table: no signal (a terminal ratio of zero) and no noise have no logarithm

Prediction = Literal["eps", "v", "x0", "flow", "edm"]


class Schedule:
    """What samplers and training need of a noise schedule; all values are float64 tensors shaped like t."""

    prediction: Prediction | None = "eps"  # of its networks, where nothing else is said; None: it has to be said

    def alpha(self, t: Tensor) -> Tensor:
        """Returns the scale alpha_t of the signal."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Returns the standard deviation sigma_t of the noise in x_t."""
        raise NotImplementedError

    def times(self, steps: int) -> Tensor:
        """Returns (steps,) decreasing times, from pure noise to the last step before the clean image."""
        raise NotImplementedError

    def times_by_noise(self, steps: int) -> Tensor:
        r"""Returns (steps,) decreasing times, evenly spaced in the logarithm of their noise level sigma_t / alpha_t.

        Between `NOISIEST` and `CLEANEST`, or the ends of `times` where these are closer. Few steps are better spent
        this way: evenly spaced times leave the low noise levels, where the details are made, to one or two of them.

        Arguments:
            steps: The number of times.

        References:
            | DPM-Solver: A Fast ODE Solver for Diffusion Model Sampling (Lu et al., 2022), arXiv 2206.00927
        """
        check(steps >= 1, "times_by_noise", "steps", "to be >= 1", steps)
        ends = self.times(2)
        first, last = (self.sigma(ends) / self.alpha(ends)).tolist()
        high, low = min(first, NOISIEST), max(last, CLEANEST)
        ratios = high * (low / high) ** torch.linspace(0, 1, steps, dtype=torch.float64)
        return torch.tensor([self.time_of(min(max(r, low), high)) for r in ratios.tolist()], dtype=torch.float64)

    def time_of(self, ratio: float) -> float:
        """Returns the time t at which sigma_t / alpha_t is the given noise level."""
        raise NotImplementedError

    def times_of(self, log_ratio: Tensor) -> Tensor:
        """Returns the times at which log(sigma_t / alpha_t) is as given, on its device; the nearest of the schedule."""
        raise NotImplementedError

    def training_times(self, u: Tensor) -> Tensor:
        """Returns times to train at from uniform numbers u in [0, 1)."""
        raise NotImplementedError


class VPSchedule(Schedule):
    """A variance-preserving (DDPM) schedule given by its table of cumulative products; linear in log sigma between.

    Arguments:
        alphas_cumprod: (T,) decreasing squares of alpha_t, in [0, 1] but for rounding.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020), arXiv 2006.11239
        | Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021), arXiv 2102.09672
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        check(table.ndim == 1 and len(table) > 1, "VPSchedule", "alphas_cumprod", "to have shape (T,), T > 1", table)
        falls = bool((table.diff() <= ROUNDING).all()) and bool(table[-1] < table[0])
        inside = bool((table >= -ROUNDING).all()) and bool((table <= 1 + ROUNDING).all())
        ends = f"{float(table[0])} ... {float(table[-1])}"
        check(falls and inside, "VPSchedule", "alphas_cumprod", "to decrease inside [0, 1]", ends)
        table = table.clamp(LEAST, 1 - LEAST).cummin(0).values
        self.alphas_cumprod = table
        self._log_ratio = {torch.device("cpu"): 0.5 * (torch.log1p(-table) - torch.log(table))}  # log(sigma / alpha)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> VPSchedule:
        """Returns the DDPM schedule with linear betas.

        Arguments:
            steps: T.
            beta_start, beta_end: The first and the last beta.
        """
        return cls(torch.cumprod(1 - torch.linspace(beta_start, beta_end, steps, dtype=torch.float64), 0))

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> VPSchedule:
        """Returns the cosine schedule, its betas clipped at beta_max.

        Arguments:
            steps: T.
            offset: What keeps the first betas from being too small.
            beta_max: The largest beta.
        """
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        bar = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls(torch.cumprod(1 - (1 - bar[1:] / bar[:-1]).clamp_max(beta_max), 0))

    def _table(self, device: torch.device) -> Tensor:
        table = self._log_ratio.get(device)
        if table is None:
            table = self._log_ratio.setdefault(device, self._log_ratio[torch.device("cpu")].to(device))
        return table

    def _log_ratio_at(self, t: Tensor) -> Tensor:
        table = self._table(t.device)
        t = t.to(torch.float64).clamp(0, len(table) - 1)
        low = t.floor().long()
        high = (low + 1).clamp_max(len(table) - 1)
        return torch.lerp(table.take(low), table.take(high), t - low)  # table[low] of one number waits for the device

    def alpha(self, t: Tensor) -> Tensor:
        """Returns sqrt(alphas_cumprod[t])."""
        return torch.sigmoid(-2 * self._log_ratio_at(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Returns sqrt(1 - alphas_cumprod[t])."""
        return torch.sigmoid(2 * self._log_ratio_at(t)).sqrt()

    def times(self, steps: int) -> Tensor:
        """Returns `steps` of the indices T-1 ... 0, evenly spaced."""
        total = len(self.alphas_cumprod)
        check(1 <= steps <= total, "times", "steps", f"to be in 1 ... {total}", steps)
        return torch.linspace(total - 1, 0, steps, dtype=torch.float64).round()

    def time_of(self, ratio: float) -> float:
        """Returns the fractional index t at which sigma_t / alpha_t is the given ratio."""
        table = self._log_ratio[torch.device("cpu")]
        target = torch.tensor(math.log(max(ratio, 1e-300)), dtype=torch.float64)
        check(
            bool(table[0] <= target) and bool(target <= table[-1]),
            "time_of",
            "ratio",
            f"to be in [{float(table[0].exp()):.3g}, {float(table[-1].exp()):.3g}], the noise levels of the schedule",
            ratio,
        )
        return float(self.times_of(target))

    def times_of(self, log_ratio: Tensor) -> Tensor:
        """Returns fractional indices."""
        table = self._table(log_ratio.device)
        target = log_ratio.to(torch.float64)
        high = torch.searchsorted(table, target).clamp(1, len(table) - 1)
        low = table.take(high - 1)
        gap = (table.take(high) - low).clamp_min(1e-300)  # neighbours may be equal
        return high - 1 + ((target - low) / gap).clamp(0, 1)

    def training_times(self, u: Tensor) -> Tensor:
        """Returns uniform indices."""
        return (u * len(self.alphas_cumprod)).floor()


class EDMSchedule(Schedule):
    """A variance-exploding schedule with t = sigma_t and alpha_t = 1.

    Arguments:
        sigma_min, sigma_max, rho: The noise levels a sampler visits.
        mean, std: The training distribution, log sigma ~ N(mean, std^2).

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), arXiv 2206.00364
    """

    prediction = None  # "edm" for a raw network, "x0" for one that applies the preconditioning itself

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, mean: float = -1.2, std: float = 1.2
    ) -> None:
        check(0 < sigma_min < sigma_max, "EDMSchedule", "sigma_min", f"to be in (0, {sigma_max})", sigma_min)
        self.sigma_min, self.sigma_max, self.rho, self.mean, self.std = sigma_min, sigma_max, rho, mean, std

    def alpha(self, t: Tensor) -> Tensor:
        """Returns one."""
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        """Returns t."""
        return t.to(torch.float64)

    def times(self, steps: int) -> Tensor:
        """Returns the noise levels of the paper's equation 5."""
        check(steps >= 1, "times", "steps", "to be >= 1", steps)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return torch.linspace(high, low, steps, dtype=torch.float64) ** self.rho

    def time_of(self, ratio: float) -> float:
        """Returns the ratio."""
        check(0 < ratio <= self.sigma_max, "time_of", "ratio", f"to be in (0, {self.sigma_max}]", ratio)
        return ratio

    def times_of(self, log_ratio: Tensor) -> Tensor:
        """Returns the ratios."""
        return log_ratio.to(torch.float64).exp()

    def training_times(self, u: Tensor) -> Tensor:
        """Returns log-normal noise levels."""
        normal = torch.special.ndtri(u.to(torch.float64).clamp(1e-9, 1 - 1e-9))
        return torch.exp(self.mean + self.std * normal)


class FlowSchedule(Schedule):
    r"""The straight path of flow matching, :math:`x_t = (1 - u) x_0 + u \epsilon` with u = t / T.

    Arguments:
        steps: T: networks are told the time u as T u. 1 for networks that are told u itself.
        shift: Moves the times that samplers and training visit towards noise (shift > 1): u becomes
            shift u / (1 + (shift - 1) u). Large images ask for it.

    References:
        | Flow Matching for Generative Modeling (Lipman et al., 2023), arXiv 2210.02747
        | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024), arXiv 2403.03206
    """

    prediction = "flow"

    def __init__(self, steps: float = 1000, shift: float = 1.0) -> None:
        check(steps > 0, "FlowSchedule", "steps", "to be positive", steps)
        check(shift > 0, "FlowSchedule", "shift", "to be positive", shift)
        self.steps, self.shift = steps, shift

    def alpha(self, t: Tensor) -> Tensor:
        """Returns 1 - t / T."""
        return 1 - t.to(torch.float64) / self.steps

    def sigma(self, t: Tensor) -> Tensor:
        """Returns t / T."""
        return t.to(torch.float64) / self.steps

    def times(self, steps: int) -> Tensor:
        """Returns shifted times, evenly spaced before the shift, from pure noise to a thousandth of it."""
        check(steps >= 1, "times", "steps", "to be >= 1", steps)
        return self._shifted(torch.linspace(1, 1e-3, steps, dtype=torch.float64))

    def time_of(self, ratio: float) -> float:
        """Returns T ratio / (1 + ratio)."""
        check(ratio > 0, "time_of", "ratio", "to be > 0", ratio)
        return self.steps * ratio / (1 + ratio)

    def times_of(self, log_ratio: Tensor) -> Tensor:
        """Returns T ratio / (1 + ratio)."""
        return self.steps * torch.sigmoid(log_ratio.to(torch.float64))

    def training_times(self, u: Tensor) -> Tensor:
        """Returns shifted uniform times."""
        return self._shifted(u.to(torch.float64))

    def _shifted(self, u: Tensor) -> Tensor:
        return (self.steps * self.shift * u / (1 + (self.shift - 1) * u)).clamp_max(self.steps)  # 1 may round up
