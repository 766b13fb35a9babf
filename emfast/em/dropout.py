"""Dropout that depends on the place of an image in the batch, not on the process that trains on it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cached_property
from statistics import NormalDist
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from emfast import random
from emfast._check import check, message

# How many axes of a feature, from the batch on, are dropped one by one; the rest goes with them.
AXES: dict[Any, int | None] = {F.dropout: None, F.dropout1d: 2, F.dropout2d: 2, F.dropout3d: 2}


class Dropout(TorchFunctionMode):
    """A context in which every dropout of a network draws from Philox at (seed, layer; place, step, element).

    It stays on the device and reads the step from a tensor there, so that a CUDA graph can hold it. The layer is the
    module that drops, and where in its code: gradient checkpointing, which computes layers again, in another order,
    finds the same masks. It is torch's dropout and its attention that are seen so, not what else a network may draw.

    Arguments:
        network: The network.
        place: (B,) int64, the images' places in the batch of all processes, on the device.
        seed: The key of the training.
        step: The step, a 0-dimensional int64 tensor on the device.
    """

    def __init__(self, network: nn.Module, place: Tensor, seed: int, step: Tensor) -> None:
        super().__init__()
        self.network, self.place, self.seed, self.step = network, place, seed, step
        self.used = False  # whether anything has been dropped

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in AXES:
            return self._drop(AXES[function], *args, **kwargs)
        if function is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        return function(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """As loss.backward(), which would leave the context, while layers are computed again, and call torch's dropout.

        Arguments:
            loss: The loss, 0-dimensional.
        """
        options = {"allow_unreachable": True, "accumulate_grad": True}
        with self:  # torch's engine takes it along to its threads
            Variable._execution_engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), **options)

    def _drop(
        self, axes: int | None, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """Returns a feature, some numbers zero and the others scaled up; its names are those of torch."""
        if not training or p == 0:
            return input
        whole = len(input) % len(self.place) == 0
        requirement = f"to drop features of {len(self.place)} images, one after the other"
        check(whole, "m_step", "the network", requirement, input, "Train it without dropout")
        self.used = True
        shape = input.shape if axes is None else (*input.shape[:axes], *[1] * (input.dim() - axes))
        key = random.derive(self.seed, "dropout", *self._layer())
        z = random.normal((math.prod(shape) // len(self.place),), ids=self.place, seed=key, step=self.step)
        # Normal numbers, since there is a kernel for them: below the limit they are with probability p.
        limit, scale = (NormalDist().inv_cdf(p), 1 / (1 - p)) if p < 1 else (math.inf, 0.0)
        dropped = torch.where(z.reshape(shape) >= limit, input * scale, 0)
        return input.copy_(dropped) if inplace else dropped

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        """Returns torch's attention, its weights dropped here; its names are those of torch."""
        if not dropout_p:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, **options)
        one = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device).expand(*key.shape[:-1], -1)
        weights = F.scaled_dot_product_attention(query, key, one, attn_mask, 0.0, is_causal, **options)
        if options.get("enable_gqa"):
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        return self._drop(None, weights, dropout_p) @ value

    def _layer(self) -> tuple[str, int, int]:
        """Returns the name of the innermost module that is computing, and where in its code it is."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = self._names.get(id(frame.f_locals.get("self")))
            if name is not None:
                return name, frame.f_lineno, frame.f_lasti
            frame = frame.f_back
        requirement = "to drop in a module where it is computed again in the backward pass"
        fix = "Let a module call dropout, or train without gradient checkpointing"
        raise ValueError(message("m_step", "the network", requirement, "dropout in a function", fix))

    @cached_property
    def _names(self) -> dict[int, str]:
        return {id(module): name for name, module in self.network.named_modules()}


def has_dropout(network: nn.Module) -> bool:
    """Returns whether a network has layers that drop; what its functions drop is seen by a `Dropout` alone."""
    return any(isinstance(module, _DropoutNd) and module.p > 0 for module in network.modules())
