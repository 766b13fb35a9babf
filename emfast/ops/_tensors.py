"""Dtypes and memory formats as the kernels take them."""

from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the codes of csrc/emfast.h


def accumulate(x: Tensor) -> torch.dtype:
    """Returns the dtype of sums over values of x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns the memory format of results like x: channels_last, or contiguous for all others."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    return last if not x.is_contiguous() and x.is_contiguous(memory_format=last) else torch.contiguous_format


def empty(x: Tensor, channels: int) -> Tensor:
    """Returns an uninitialised tensor like x in the memory format of results, with another number of channels.

    Arguments:
        x: (B, C, ...) a tensor.
        channels: How many the new one has.
    """
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def unsupported(x: Tensor, *rest: Any) -> str | None:
    """Returns why the kernels cannot take a tensor, or None if they can."""
    if x.numel() == 0:
        return "an empty tensor"
    return None if x.dtype in DTYPES else f"{x.dtype}, which only the reference takes"
