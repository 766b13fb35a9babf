"""A detector that saturates and has few levels."""

import math

import torch
from torch import Tensor

from emfast._check import check, check_numbers, check_whole
from emfast.operators.base import Operator, Parameters
from emfast.random import Generator


class Detector(Operator):
    r"""A detector whose readings stop at a lowest and a highest value, with few levels between them.

    .. math:: y = \mathrm{round}_{\mathrm{levels}} \left( \mathrm{clip}(x + n, \mathrm{low}, \mathrm{high}) \right),
        \quad n \sim \mathcal N(0, \sigma^2)

    It can only be simulated: the sampler is `Conditional`. Observations are in data units.

    Arguments:
        high: Where it saturates, in data units: everything brighter reads the same.
        low: The lowest reading: everything darker reads the same.
        levels: The number of readings from low to high, evenly spaced, 2 or more; none: it does not quantise.
    """

    observes_images = True

    def __init__(self, high: float = 0.0, low: float = -1.0, levels: int | None = 16) -> None:
        check_numbers("Detector", high=high, low=low)
        check_whole("Detector", levels=levels)
        good = -math.inf < low < high < math.inf
        check(good, "Detector", "low and high", "to be finite, low below high", f"{low} and {high}")
        check(levels is None or levels > 1, "Detector", "levels", "to be 2 or more", levels)
        self.high, self.low, self.levels = high, low, levels

    def simulate(self, x: Tensor, parameters: Parameters, generator: Generator, sigma: float = 0.0) -> Tensor:
        """Returns readings, in data units."""
        if sigma > 0:
            x = x + sigma * generator.normal(tuple(x.shape[1:])).to(x)
        y = x.clamp(self.low, self.high)
        if self.levels is None:
            return y
        step = (self.high - self.low) / (self.levels - 1)
        return self.low + step * torch.round((y - self.low) / step)
