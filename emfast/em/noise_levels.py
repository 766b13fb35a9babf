"""The noise levels that a model is trained at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emfast.diffusion import Schedule

if TYPE_CHECKING:
    from emfast._m_step_config import MStepConfig


def training_times(schedule: Schedule, u: Tensor, config: MStepConfig) -> Tensor:
    r"""Returns times to train at from uniform numbers u in [0, 1); stays on their device.

    Those of the schedule, or log-normal ones but for a share of those of the schedule:

    .. math:: \log(\sigma_t / \alpha_t) \sim \mathcal N(\mathrm{mean}, \mathrm{std}^2)

    Arguments:
        schedule: The noise schedule.
        u: (B,) uniform numbers.
        config: The M-step's settings.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), arXiv 2206.00364
    """
    if config.noise_levels == "schedule":
        return schedule.training_times(u)
    u, share = u.to(torch.float64), config.schedule_share
    normal = torch.special.ndtri(((u - share) / (1 - share)).clamp(1e-9, 1 - 1e-9))
    times = schedule.times_of(config.noise_mean + config.noise_std * normal)
    return torch.where(u < share, schedule.training_times(u / share), times) if share > 0 else times
