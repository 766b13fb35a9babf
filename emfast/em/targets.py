"""Training targets of less variance: what an image could have been, in the place of the one that it was."""

from __future__ import annotations

import torch
from torch import Tensor

from emfast.diffusion import Schedule


def stable_targets(schedule: Schedule, x_0: Tensor, t: Tensor, noise: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the mean of the clean image given x_t, were it one of some images, and the noise that is left to it.

    A network learns the mean of its target. Where there is much noise, x_t may stem from many images, and that one of
    them is the target says little; their mean is what is to be learned, at once. Where there is little noise it is the
    image itself.

    .. math::
        x_t = \alpha_t x_0 + \sigma_t \epsilon = \alpha_t \bar x_0 + \sigma_t \bar \epsilon, \quad
        \bar x_0 = \sum_i \mathrm{softmax}_i \left( -\frac{|x_t - \alpha_t x_i|^2}{2 \sigma_t^2} \right) x_i

    Arguments:
        schedule: The noise schedule.
        x_0: (B, C, H, W) clean images, among the others.
        t: (B,) times.
        noise: (B, C, H, W) standard normal noise.
        images: (N, C, H, W) the images.

    References:
        | Stable Target Field for Reduced Variance Score Estimation in Diffusion Models (Xu et al., 2023),
        | arXiv 2302.00670
    """
    alpha, sigma = (level(t).to(x_0.dtype)[:, None] for level in (schedule.alpha, schedule.sigma))
    flat = images.flatten(1)
    x_t = alpha * x_0.flatten(1) + sigma * noise.flatten(1)
    logits = (x_t @ flat.T - 0.5 * alpha * flat.square().sum(1)) * (alpha / sigma**2)  # but for what all share
    mean = torch.softmax(logits, 1) @ flat
    return mean.reshape(x_0.shape), ((x_t - alpha * mean) / sigma).reshape(x_0.shape)
