"""Weights in the form that a kernel reads, made once and kept for as long as the weights stay what they are.

On a CPU a change shows in the weights' bytes too; on a GPU in address and version alone, since reading bytes would wait
for the device. There a write through `.data` shows after the next call of `train()` or `eval()`. What is kept on a GPU
keeps its address, which CUDA graphs hold: it is made anew in place.
"""

import ctypes
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

SAMPLES = 4  # places of a weight that are compared, 8 bytes each

_kept: Any = WeakIdKeyDictionary()  # the first weight -> (stamp, {key: tensor}), on a GPU {key: (stamp, tensor)}


def prepared(weights: Sequence[Tensor], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """Returns make(), or what it returned before if none of the weights has changed since.

    Arguments:
        weights: The tensors that make() reads. What is kept goes with the first of them.
        key: What make() makes of them.
        make: Called without gradients.
    """
    if weights[0].is_cuda:
        return _prepared_in_place(weights, key, make)
    stamp = tuple(_stamp(weight) for weight in weights)
    entry = _kept.get(weights[0])
    if not isinstance(entry, tuple) or entry[0] != stamp:
        entry = _kept[weights[0]] = (stamp, {})
    if key not in entry[1]:
        with torch.no_grad():
            entry[1][key] = make()
    found: Tensor = entry[1][key]
    return found


def _prepared_in_place(weights: Sequence[Tensor], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    kept = _kept.get(weights[0])
    if not isinstance(kept, dict):
        kept = _kept[weights[0]] = {}
    stamp = tuple(_version(weight) for weight in weights)
    before = kept.get(key)
    if before is not None and before[0] == stamp:
        unchanged: Tensor = before[1]
        return unchanged
    with torch.inference_mode(False), torch.no_grad():
        made = make()
        if _is_captured(made):
            return made  # by the graph, whenever it is replayed: nothing is there to be kept
        made = made.clone() if before is None else before[1].copy_(made)  # never the weight itself
    if made.is_cuda:
        torch.cuda.current_stream(made.device).synchronize()  # once: from here on every stream may read it
    kept[key] = (stamp, made)
    return made


def _is_captured(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def expire(weights: Sequence[Tensor]) -> None:
    """Has what is kept on a GPU for some weights made anew, in place, when it is next asked for."""
    for weight in weights:
        entry = _kept.get(weight)
        if isinstance(entry, dict):
            entry.update({key: (None, tensor) for key, (_, tensor) in entry.items()})


def forget(weights: Sequence[Tensor]) -> None:
    """Frees what is kept for some weights."""
    for weight in weights:
        _kept.pop(weight, None)


def _stamp(weight: Tensor) -> tuple[Any, ...]:
    """Returns what changes with the weight: address, version, and some of its bytes.

    The version alone misses writes through `.data`, with which most code copies averaged weights.
    """
    (address, version), size = _version(weight), _extent(weight) * weight.element_size()
    if size < 8 * SAMPLES:
        return address, version, ctypes.string_at(address, size)
    step = (size - 8) // (SAMPLES - 1)
    return address, version, *[ctypes.string_at(address + i * step, 8) for i in range(SAMPLES)]


def _extent(weight: Tensor) -> int:
    """Returns from its first to its last element how many there are in memory: that many may be read."""
    if weight.is_contiguous() or weight.numel() == 0:
        return weight.numel()
    return 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))


def _version(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
