"""Counting photons: Poisson noise, which no Gaussian is where there are few of them."""

import torch
from torch import Tensor

from emfast._check import check, check_numbers
from emfast.operators.base import Operator, Parameters
from emfast.random import Generator


class PoissonCounts(Operator):
    r"""Photons counted in every pixel, of which a white one sends `peak` on average and a black one none.

    .. math:: y \sim \mathrm{Poisson} \left( \mathrm{peak} \, \frac{x + 1}{2} + \mathrm{dark} \right)

    It can only be simulated: the sampler is `Conditional`. Observations are counts, and `sigma` stays 0.

    Arguments:
        peak: The mean count of a white pixel, > 0.
        dark: The mean count of a pixel without any light, >= 0.
    """

    observes_images = True

    def __init__(self, peak: float = 10.0, dark: float = 0.0) -> None:
        check_numbers("PoissonCounts", peak=peak, dark=dark)
        check(0 < peak <= 1e6, "PoissonCounts", "peak", "to be in (0, 1e6]", peak)
        check(0 <= dark <= 1e6, "PoissonCounts", "dark", "to be in [0, 1e6]", dark)
        self.peak, self.dark = peak, dark

    def simulate(self, x: Tensor, parameters: Parameters, generator: Generator, sigma: float = 0.0) -> Tensor:
        """Returns counts, in the dtype of x."""
        check(sigma == 0, "PoissonCounts", "sigma", "to be 0: counts have the noise of counting", sigma)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # float16 ends at 65504
        return generator.poisson(self.peak * (wide.clamp(-1, 1) + 1) / 2 + self.dark).to(x.dtype)

    def as_image(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns the images whose mean counts they are: 2 (y - dark) / peak - 1."""
        return 2 * (y - self.dark) / self.peak - 1
