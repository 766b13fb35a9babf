"""What a step of a sampler reads beside x_t, and the coefficients of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from emfast import random
from emfast._check import check
from emfast.diffusion import Denoiser, Schedule
from emfast.operators import Operator
from emfast.operators.base import Parameters
from emfast.ops import sampler_update


class Coefficients(NamedTuple):
    r"""One step from x_t to x_s, as 0-dimensional tensors.

    .. math:: x_s = c_x x_t + c_0 \hat x_0 + \mathrm{std} \, z

    `slope` extrapolates x0-hat to the middle of the step from the one before: half the ratio of the two steps in
    log(sigma / alpha); 0 in the first step, which has none before it, and in the last, which ends at no noise at all.
    """

    t: Tensor
    alpha_t: Tensor
    sigma_t: Tensor
    c_x: Tensor
    c_0: Tensor
    std: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    slope: Tensor


def transitions(schedule: Schedule, times: Tensor, eta: float, zeta: float | None = None) -> Tensor:
    r"""Returns the table of `Coefficients`, (len(times), 9) float64, from each time to the next, the last to t = clean.

    .. math::
        \mathrm{std} = \eta \frac{\sigma_s}{\sigma_t} \sqrt{\sigma_t^2 - (\alpha_t / \alpha_s)^2 \sigma_s^2}, \quad
        c_x = \sqrt{\sigma_s^2 - \mathrm{std}^2} / \sigma_t, \quad c_0 = \alpha_s - c_x \alpha_t

    Arguments:
        schedule: The noise schedule.
        times: (n,) decreasing times.
        eta: 1 for ancestral (DDPM) steps, 0 for deterministic (DDIM) steps.
        zeta: The share of fresh noise in the variance instead: std^2 = zeta sigma_s^2.

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2020), arXiv 2010.02502
        | DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Models (Lu et al., 2022), arXiv 2211.01095
    """
    alpha_t, sigma_t = schedule.alpha(times), schedule.sigma(times)
    alpha_s = torch.cat((alpha_t[1:], torch.ones(1, dtype=torch.float64)))
    sigma_s = torch.cat((sigma_t[1:], torch.zeros(1, dtype=torch.float64)))
    fresh = (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).clamp_min(0).sqrt()
    std = eta * sigma_s / sigma_t * fresh if zeta is None else zeta**0.5 * sigma_s
    c_x = (sigma_s**2 - std**2).clamp_min(0).sqrt() / sigma_t
    length = (alpha_s / sigma_s * sigma_t / alpha_t).log()
    slope = torch.zeros_like(std)
    slope[1:] = 0.5 * length[1:] / length[:-1]
    slope = slope.nan_to_num(posinf=0.0).masked_fill(sigma_s == 0, 0.0)
    return torch.stack((times, alpha_t, sigma_t, c_x, alpha_s - c_x * alpha_t, std, alpha_s, sigma_s, slope), dim=1)


@dataclass(frozen=True)
class Problem:
    """What a step reads besides x_t: the observations, their operator and the tables, all on one device.

    Its methods take:
        k: The number of a step, 0-dimensional int64 on the device.
        c: The coefficients of a step; of `whiten` and `regularised_inverse` a 0-dimensional tensor.
        x, x_t, x_0, guidance, like: (B, C, H, W) images.
        y: (B, ...) observations.
        iterations: At most so many of conjugate gradients, where there is no closed form.
        stream: Whose noise it is.
    """

    denoiser: Denoiser
    y: Tensor
    operator: Operator
    parameters: Parameters
    sigma: float
    ids: Tensor
    seed: int
    table: Tensor  # (n, 9)

    def coefficients(self, k: Tensor, like: Tensor) -> Coefficients:
        """Returns the coefficients of step k, a 0-dimensional tensor, in the dtype of `like` (t in float64)."""
        row = self.table.index_select(0, k[None])[0]  # table[k] waits for the device
        return Coefficients(row[0], *row[1:].to(like.dtype).unbind())

    def denoise(self, x_t: Tensor, c: Coefficients, **condition: Tensor) -> Tensor:
        """Returns x0-hat at the time of some coefficients; emfast's own denoiser is told their noise level."""
        if type(self.denoiser).forward is not Denoiser.forward:
            return self.denoiser(x_t, c.t, **condition)
        return self.denoiser(x_t, c.t, levels=(c.alpha_t, c.sigma_t), **condition)

    def denoise_leaf(self, x_t: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
        """Returns a leaf with the values of x_t, and x0-hat of it, differentiable with respect to the leaf."""
        on, fix = torch.is_inference_mode_enabled(), "Use torch.no_grad(): this sampler takes gradients of the network"
        check(not on, "Sampler", "torch.inference_mode", "to be off", "on", fix, RuntimeError)
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            return leaf, self.denoise(leaf, c)

    def whiten(self, y: Tensor, c: Tensor) -> Tensor:
        """Returns (A A^T + c I)^{-1} y where the operator has a closed form; elsewhere y / c."""
        if not self.operator.closed_form:
            return y / c
        return (y - self.apply(self.regularised_inverse(y, c, 0))) / c

    def regularised_inverse(self, y: Tensor, c: Tensor, iterations: int) -> Tensor:
        """Returns the x that minimises |y - A x|^2 + c |x|^2."""
        return self.operator.regularised_inverse(y, c, self.parameters, iterations=iterations)

    def noise(self, stream: random.Stream, k: Tensor | int, like: Tensor) -> Tensor:
        """Returns the standard normal noise of step k in a stream, in the shape and dtype of `like`."""
        counter = k + stream * len(self.table)
        return random.normal(tuple(like.shape[1:]), ids=self.ids, seed=self.seed, step=counter).to(like.dtype)

    def apply(self, x: Tensor) -> Tensor:
        """Returns A x."""
        return self.operator.apply(x, self.parameters)

    def residual(self, x: Tensor) -> Tensor:
        """Returns y - A x."""
        return self.y - self.apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Returns A^T y."""
        return self.operator.adjoint(y, self.parameters)

    def misfit(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the residual r = y - A x, |r|^2 of each image (B,), and A^T r."""
        return self.operator.misfit(x, self.y, self.parameters)

    def update(self, k: Tensor, x_t: Tensor, x_0: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Returns x_s = c_x x_t + c_0 x_0 + std z + guidance, with the coefficients and the noise of step k."""
        return sampler_update(x_t, x_0, guidance, self.table, k, ids=self.ids, seed=self.seed)


def clip_values(x: Tensor, clip: bool) -> Tensor:
    """Returns x limited to the data range [-1, 1] if asked to.

    Arguments:
        x: (B, C, H, W) images.
        clip: Whether it is asked for.
    """
    return x.clamp(-1, 1) if clip else x
