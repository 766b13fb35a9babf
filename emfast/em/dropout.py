"""Dropout that depends on the place of an image in the batch, not on the process that trains on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from emfast import random
from emfast._check import check

# How many axes of a feature, from the batch on, are dropped one by one; the rest goes with them.
AXES: dict[Any, int | None] = {F.dropout: None, F.dropout1d: 2, F.dropout2d: 2, F.dropout3d: 2}


class Dropout(TorchFunctionMode):
    """A context in which every dropout of a network draws from Philox at (seed, layer; place, step, element).

    It stays on the device and reads the step from a tensor there, so that a CUDA graph can hold it. The layers are
    counted as they are called, from the beginning of the context on.

    Arguments:
        place: (B,) int64, the images' places in the batch of all processes, on the device.
        seed: The key of the training.
        step: The step, a 0-dimensional int64 tensor on the device.
    """

    def __init__(self, place: Tensor, seed: int, step: Tensor) -> None:
        super().__init__()
        self.place, self.seed, self.step, self.layer = place, seed, step, 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in AXES:
            return self._drop(AXES[function], *args, **kwargs)
        return function(*args, **kwargs)

    def _drop(
        self, axes: int | None, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """Returns a feature, some numbers zero and the others scaled up; its names are those of torch."""
        if not training or p == 0:
            return input
        if p == 1:
            return torch.zeros_like(input)
        whole = len(input) % len(self.place) == 0
        requirement = f"to drop features of {len(self.place)} images, one after the other"
        check(whole, "m_step", "the network", requirement, input, "Train it without dropout")
        shape = input.shape if axes is None else (*input.shape[:axes], *[1] * (input.dim() - axes))
        key = random.derive(self.seed, "dropout", self.layer)
        self.layer += 1
        z = random.normal((math.prod(shape) // len(self.place),), ids=self.place, seed=key, step=self.step)
        # Normal numbers, since there is a kernel for them: below this one they are with probability p.
        return torch.where(z.reshape(shape) >= NormalDist().inv_cdf(p), input * (1 / (1 - p)), 0)
