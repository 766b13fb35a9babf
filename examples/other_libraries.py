"""Denoisers and pipelines of other libraries as the prior: azula, deepinv, diffusers.

    python examples/other_libraries.py azula
    python examples/other_libraries.py deepinv
    python examples/other_libraries.py diffusers FOLDER

The first two take a closed-form prior of that library, made of the embedded sample, in the place of a trained network;
FOLDER is a diffusers pipeline of 16 x 16 grey images, such as `make demo` leaves in runs/demo/model. Writes
restored.png: the truth, the observations with 60 % of their pixels missing, and one posterior sample of each.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from emfast.data import load
from emfast.diffusion import Denoiser, EDMSchedule, Schedule
from emfast.evaluation import psnr
from emfast.operators import Mask, Operator
from emfast.reporting import save_grid
from emfast.samplers import MMPS

SIZE = 16


class AzulaNetwork(nn.Module):
    """An azula denoiser, called as denoiser(x_t, t), as a network that predicts x_0."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the posterior mean; samplers visit one time at once, which every azula denoiser takes as a scalar."""
        return self.denoiser(x_t, t if self.training else t[0]).mean


class AzulaSchedule(Schedule):
    """An azula schedule, t in [0, 1] to alpha_t and sigma_t."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def alpha(self, t: Tensor) -> Tensor:
        """Returns alpha_t."""
        return self.schedule(t.to(torch.float64))[0]

    def sigma(self, t: Tensor) -> Tensor:
        """Returns sigma_t."""
        return self.schedule(t.to(torch.float64))[1]

    def times(self, steps: int) -> Tensor:
        """Returns even steps from 1 to 0, where azula's schedules have a little noise left."""
        return torch.linspace(1, 0, steps, dtype=torch.float64)

    def time_of(self, ratio: float) -> float:
        """Returns t with sigma_t = ratio alpha_t, by a table. Needed by warm starts and ReverseFromObservation only."""
        t = torch.linspace(0, 1, 10001, dtype=torch.float64)
        return float(t[(self.sigma(t) >= ratio * self.alpha(t)).int().argmax()])

    def training_times(self, u: Tensor) -> Tensor:
        """Returns u. Needed by training only."""
        return u


class DeepinvNetwork(nn.Module):
    """A deepinv denoiser, called as denoiser(x, sigma) on images in [0, 1], as a network that predicts x_0."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Returns the denoised images in [-1, 1], where noise is twice as large."""
        return 2 * self.denoiser((x_t + 1) / 2, sigma / 2) - 1


def from_azula(denoiser: Any) -> Denoiser:
    """Returns an azula denoiser as ours."""
    return Denoiser(AzulaNetwork(denoiser), AzulaSchedule(denoiser.schedule), "x0").eval()


def from_deepinv(denoiser: Any, sigma_max: float = 80.0) -> Denoiser:
    """Returns a deepinv denoiser as ours; it must be good up to the noise level sigma_max / 2."""
    return Denoiser(DeepinvNetwork(denoiser), EDMSchedule(sigma_max=sigma_max), "x0").eval()


def from_pipeline(pipeline: Any) -> Denoiser:
    """Returns the U-Net and scheduler of a diffusers pipeline, or of its folder, as a denoiser."""
    return Denoiser.from_pretrained(pipeline)


def azula_example() -> Denoiser:
    """Returns a Gaussian with the mean and variances of the sample's pixels."""
    from azula.denoise import GaussianDenoiser
    from azula.linalg.covariance import FullCovariance
    from azula.noise import VPSchedule

    x = load("sample:train", size=SIZE)[:]
    return from_azula(GaussianDenoiser(x.mean(0), FullCovariance.from_data(x), VPSchedule()))


def deepinv_example() -> Denoiser:
    """Returns the prior that knows no images but those of the sample, here in [0, 1]."""
    from deepinv.models import MMSE

    x = load("sample:train", size=SIZE)[:]
    return from_deepinv(MMSE((x + 1) / 2, device=x.device))


def diffusers_example(folder: str) -> Denoiser:
    """Returns the model of a pipeline folder; `emfast restore FOLDER` takes it too."""
    from diffusers import DDPMPipeline

    return from_pipeline(DDPMPipeline.from_pretrained(folder))


def restore(denoiser: Denoiser, operator: Operator) -> None:
    """Restores images of the embedded sample, and draws them."""
    truth = load("sample:test", size=SIZE, limit=8)[:]
    y = operator.observe(truth, sigma=0.05)
    x = MMPS(steps=20, iterations=2)(denoiser, y, operator, sigma=0.05)
    print(f"PSNR: observations {psnr(y, truth).mean():.2f} dB, samples {psnr(x, truth).mean():.2f} dB")
    print(save_grid("restored.png", torch.cat((truth, y, x)), columns=8))


def main(library: str, *folder: str) -> None:
    """Runs the example of one library."""
    examples = {"azula": azula_example, "deepinv": deepinv_example, "diffusers": diffusers_example}
    restore(examples[library](*folder), Mask(missing=0.6))


if __name__ == "__main__":
    main(*sys.argv[1:])
