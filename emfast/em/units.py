"""Whether observations are in the units of the images, [-1, 1]: EM would learn nothing from others, without a word."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from emfast._check import check
from emfast.data.origin import Range
from emfast.data.rows import Rows, not_finite, rows_at_a_time
from emfast.operators import Operator

MANY = 16  # observations, by which their units are judged


def check_values(operator: Operator, y: Tensor | Rows, name: str, sigma: float, imported: bool = False) -> None:
    """Finds values that no detector gives, and y in other units than those of the images.

    Arguments:
        operator: The operator.
        y: (N, ...) all observations.
        name: What the errors call them.
        sigma: The standard deviation of their noise; infinite if it is not known.
        imported: Whether they were imported, in a range that somebody has looked at.
    """
    low, high, square, count = 0.0, 0.0, 0.0, 0
    gains: list[float | None] = []
    for ids in torch.arange(len(y)).split(min(256, rows_at_a_time(y))):
        parameters = operator.parameters(ids, tuple(y.shape[1:]))
        part = operator.project(y[ids], parameters)
        bad = not_finite(part)
        found = f"NaN or inf in row {int(ids[bad][0])}" if bad.any() else ""
        fix = "Repair or remove that observation"
        check(not found, "Observations", name, "to be finite wherever the operator observes something", found, fix)
        least, most = part.aminmax()
        low, high = min(low, float(least)), max(high, float(most))
        square += float(torch.linalg.vector_norm(part)) ** 2
        count += int(part.count_nonzero())  # what is not recorded is zero now
        gains.append(operator.gain(parameters))
    if sigma < math.inf and count > 0:  # the mean square is sigma^2 at least
        size, fix = math.sqrt(square / count), "Give the noise in the units of the observations"
        found = f"{sigma:g}, where values have a root mean square of {size:.2g}"
        check(sigma <= 4 * size, "Observations", "sigma", f"to be the noise in {name}", found, fix)
    known = [gain for gain in gains if gain is not None]
    if len(known) < len(gains):
        return
    # The mean square is at most gain^2 + sigma^2. Twice the range, and noise half as strong again, may be meant.
    limit = (2 * max(known)) ** 2 + (1.5 * sigma) ** 2
    expected = f"to hold floats in [-{max(known):.4g}, {max(known):.4g}] and noise of sigma = {sigma:g}"
    fix = "Scale y and sigma to images in [-1, 1] (x / 127.5 - 1 from 0 ... 255)"
    found = f"values from {low:.4g} to {high:.4g}"
    check(square <= limit * count, "Observations", name, expected, found, fix)
    # Many images that are nowhere darker than mid-grey, but for the noise, are images in [0, 1].
    dark = imported or len(y) < MANY or 6 * sigma > 0.5 or low < -6 * sigma or high == 0
    fix = "Scale y and sigma to images in [-1, 1] (x * 2 - 1 from [0, 1])"
    check(dark, "Observations", name, expected, found, fix)


def check_files(operator: Operator, y: Tensor, parameters: Mapping[str, Tensor], range: Range) -> None:
    """Finds operators for which values of files do not stand for values of images by the same range.

    With y = A x + n in the units of the files and x = half (x' + 1) + low, y' = (y - low) / half - 1 is A x' + n' only
    if A 1 = 1 or half + low = 0.

    Arguments:
        operator: The operator.
        y: (B, ...) an observation, in data units.
        parameters: Its parameters.
        range: The values of the files that stand for -1 and 1.
    """
    name, ones = type(getattr(operator, "operator", operator)).__name__, torch.ones_like(y)
    fix = "Scale y to images in [-1, 1] yourself, in a file of your own"
    if operator.is_simulated:
        own = not torch.equal(operator.as_image(y, parameters), y)
        check(not own, name, "imported files", "to be images", "an operator whose observations have other units", fix)
    elif abs(range.low + range.half) > 1e-3 * range.half:
        grey = operator.project(operator.apply(ones, parameters), parameters)
        same = torch.allclose(grey, operator.project(ones, parameters), atol=1e-3)
        fix = f"Import with a range about 0, such as --range=-{range.high:g},{range.high:g}"
        requirement = f"to leave the value of even images as it is, for files in the range {range}"
        check(same, name, "A", requirement, f"{float(grey.mean()):.4g} of 1", fix)
