"""Weights in the form that a kernel reads, made once and kept for as long as the weights stay what they are."""

import ctypes
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

SAMPLES = 4  # places of a weight that are compared, 8 bytes each

_kept: Any = WeakIdKeyDictionary()  # the first weight -> (stamp, {key: tensor})


def prepared(weights: Sequence[Tensor], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """Returns make(), or what it returned before if none of the weights has changed since.

    Arguments:
        weights: CPU tensors that make() reads. What is kept goes with the first of them.
        key: What make() makes of them.
        make: Called without gradients.
    """
    stamp = tuple(_stamp(weight) for weight in weights)
    entry = _kept.get(weights[0])
    if entry is None or entry[0] != stamp:
        entry = _kept[weights[0]] = (stamp, {})
    if key not in entry[1]:
        with torch.no_grad():
            entry[1][key] = make()
    found: Tensor = entry[1][key]
    return found


def forget(weights: Sequence[Tensor]) -> None:
    """Frees what is kept for some weights."""
    for weight in weights:
        _kept.pop(weight, None)


def _stamp(weight: Tensor) -> tuple[Any, ...]:
    """Returns what changes with the weight: address, version, and some of its bytes.

    The version alone misses writes through `.data`, with which most code copies averaged weights.
    """
    address, size = weight.data_ptr(), weight.numel() * weight.element_size()
    version = 0 if weight.is_inference() else weight._version
    if size < 8 * SAMPLES:
        return address, version, ctypes.string_at(address, size)
    step = (size - 8) // (SAMPLES - 1)
    return address, version, *[ctypes.string_at(address + i * step, 8) for i in range(SAMPLES)]
