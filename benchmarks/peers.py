"""Samplers of other libraries, each around the same diffusers U-Net and run by the library's own loop.

Each function returns a function that runs a whole sampler of so many steps. ImportError says what is not installed.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from emfast.diffusion import VPSchedule

Run = Callable[[int], Tensor]
SIGMA = 0.01  # of the measurement noise that MMPS assumes


class Backbone(nn.Module):
    """The U-Net as a network that returns a tensor."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, y: None = None) -> Tensor:
        """Returns the predicted noise."""
        return self.unet(x, t).sample


def azula_dps(unet: nn.Module, y: Tensor, mask: Tensor) -> Run:
    """azula's DPS."""
    from azula.guidance.dps import DPSSampler

    denoiser = azula_denoiser(unet)
    observed = (mask * y).flatten(1)

    def run(steps: int) -> Tensor:
        sampler = DPSSampler(denoiser, observed, lambda x: (mask * x).flatten(1), steps=steps, silent=True)
        return sampler(torch.randn_like(y))

    return run


def azula_mmps(unet: nn.Module, y: Tensor, mask: Tensor, iterations: int = 2) -> Run:
    """azula's MMPS, ancestral steps, its default solver."""
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.sample import DDPMSampler

    noise = IsotropicCovariance(SIGMA**2)
    observed = (mask * y).flatten(1)  # its solver takes inner products over the last dimension
    operator = lambda x: (mask * x).flatten(1)  # noqa: E731
    guided = MMPSDenoiser(azula_denoiser(unet), observed, operator, noise, iterations=iterations)
    return lambda steps: DDPMSampler(guided, steps=steps, silent=True)(torch.randn_like(y))


def azula_denoiser(unet: nn.Module) -> Any:
    """Returns azula's denoiser for networks that predict the noise of the linear DDPM schedule."""
    from azula.plugins.adm import AblatedDenoiser

    return AblatedDenoiser(Backbone(unet), clip_mean=True).eval().to(next(unet.parameters()).device)


def deepinv_dps(unet: nn.Module, y: Tensor, mask: Tensor) -> Run:
    """deepinv's DPS, its solver in float64 as it comes; observations in its range [0, 1]."""
    import deepinv

    scale = VPSchedule.linear().alphas_cumprod.sqrt().float()
    about = {"scale_t": scale, "variance_preserving": True, "takes_integer_time": True}
    denoiser = deepinv.models.ScoreModelWrapper(Backbone(unet), **about, device=y.device)
    physics = deepinv.physics.Inpainting(tuple(y.shape[1:]), mask=mask, device=y.device)
    observed = mask * (y + 1) / 2

    def run(steps: int) -> Tensor:
        # It counts the times, not the steps between; its norm asks for a weight of hundreds.
        sampler = deepinv.sampling.DPS(denoiser, num_steps=steps + 1, weight=300.0, device=y.device)
        return sampler(observed, physics, x_init=tuple(y.shape))

    return run


def settle_torchvision() -> None:
    """Makes torchvision importable beside a torch of another build; before diffusers and deepinv are imported.

    Its operators are missing then; what imports it needs the schemas of two of them, and calls none.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
