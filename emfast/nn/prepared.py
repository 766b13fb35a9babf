"""Weights in the form that a kernel reads, made once and kept for as long as the weights stay what they are.

Every change of a weight is followed by the next call, however it was written. On a CPU a checksum of all its bytes
tells, at the speed of memory: code that copies averaged weights, prunes or merges writes through `.data`, which leaves
no other trace. On a GPU such a checksum would have to be waited for, and making anew costs no more: there nothing is
kept from one call to the next.

Inside `unchanged` weights are looked at once, at its beginning. What is kept on a GPU, there alone, keeps its address,
which CUDA graphs hold: it is made anew in place.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_char
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakIdKeyDictionary

from emfast._library import extension, extension_error

_memories: list[Any] = [WeakIdKeyDictionary()]  # of the first weight -> Prepared; the last one is in use
_blocks: dict[int, int] = {}  # the id of a weight -> how many blocks of `unchanged` it is in


class Stamp(NamedTuple):
    """What changes with a weight. Its version misses writes through `.data`; its checksum misses none."""

    address: int
    strides: tuple[int, ...]  # a transposed weight has the bytes of before
    version: int
    checksum: int | None  # None on a GPU


class Prepared:
    """What was made of some weights.

    Arguments:
        weights: The weights.
        stamps: What they were then; None where it serves one call, and its backward pass.
    """

    def __init__(self, weights: Sequence[Tensor], stamps: tuple[Stamp, ...] | None = None) -> None:
        self.stamps = stamps
        self._weights = [TensorWeakRef(weight) for weight in weights]
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def get(self, weights: Sequence[Tensor], make: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Returns make(weights, *arguments), or what it returned before.

        Arguments:
            weights: The same weights.
            make: Called without gradients.
            arguments: Hashable.
        """
        key = (make, *arguments)
        found = self._made.get(key)
        if found is None:
            found = _make(key, weights)
            if self.stamps is not None and not _is_current(self, weights, look=True):
                return found  # a backward pass after weights were swapped: not to be found under the stamps of before
            if self.stamps is not None and _is_on_gpu(found):
                if _is_captured(found):
                    return found  # made by the graph, whenever it is replayed: nothing is there to be kept
                found = found.clone()  # never the weight itself
                _settle(found)
            self._made[key] = found
        return found

    def renew(self, weights: Sequence[Tensor]) -> None:
        """Makes everything anew, in place, of weights of the same shapes.

        Arguments:
            weights: The weights.
        """
        for key, kept in self._made.items():
            kept.copy_(_make(key, weights))
        self.stamps = tuple(map(_stamp, weights))

    def weights(self) -> list[Tensor] | None:
        """Returns the weights, or None if one of them no longer exists."""
        found = [reference() for reference in self._weights]
        return None if any(weight is None for weight in found) else found


def prepared(weights: Sequence[Tensor]) -> Prepared:
    """Returns what was made of some weights, if they are still what they were; else there is nothing in it yet.

    Arguments:
        weights: The tensors that are read. What is kept goes with the first of them.
    """
    first, trusted = weights[0], bool(_blocks) and all(id(weight) in _blocks for weight in weights)
    if _is_on_gpu(first) and not trusted:
        return Prepared(weights)
    entry: Prepared | None = _memories[-1].get(first)
    if entry is None or not _is_current(entry, weights, look=not trusted):
        entry = _memories[-1][first] = Prepared(weights, tuple(map(_stamp, weights)))
    return entry


@contextmanager
def unchanged(weights: Iterable[Tensor]) -> Iterator[None]:
    """Looks at weights here, once, instead of in every call of the block; in it only changes of version are seen.

    Arguments:
        weights: Those of a network.
    """
    weights = list(weights)
    for weight in weights:
        _look_again(weight)
    for weight in weights:
        _blocks[id(weight)] = _blocks.get(id(weight), 0) + 1
    try:
        yield
    finally:
        for weight in weights:
            _blocks[id(weight)] -= 1
            if not _blocks[id(weight)]:
                del _blocks[id(weight)]


@contextmanager
def separate() -> Iterator[None]:
    """Nothing that is made in the block is found behind it, and nothing made before is found in it."""
    _memories.append(WeakIdKeyDictionary())
    try:
        yield
    finally:
        _memories.pop()


def forget(weights: Iterable[Tensor]) -> None:
    """Frees what is kept for some weights.

    Arguments:
        weights: The weights.
    """
    for weight in weights:
        _memories[-1].pop(weight, None)


def _look_again(first: Tensor) -> None:
    """Has what is kept for a weight follow it: on a GPU in place, elsewhere it is dropped if the weight has changed."""
    entry: Prepared | None = _memories[-1].get(first)
    if entry is None:
        return
    weights = entry.weights()
    if weights is not None and _is_on_gpu(first) and _addresses(entry) == [weight.data_ptr() for weight in weights]:
        entry.renew(weights)
    elif weights is None or not _is_current(entry, weights, look=True):
        del _memories[-1][first]


def _addresses(entry: Prepared) -> list[int]:
    return [stamp.address for stamp in entry.stamps or ()]


def _is_current(entry: Prepared, weights: Sequence[Tensor], *, look: bool) -> bool:
    """Returns whether weights are those of an entry, as they were; their bytes are read if one is to look."""
    stamps = entry.stamps or ()
    if len(stamps) != len(weights):
        return False
    pairs = list(zip(weights, stamps, strict=True))
    same = all((w.data_ptr(), w.stride(), _version(w)) == stamp[:3] for w, stamp in pairs)
    return same and (not look or all(_checksum(weight) == stamp.checksum for weight, stamp in pairs))


def _make(key: tuple[Any, ...], weights: Sequence[Tensor]) -> Tensor:
    make, *arguments = key
    with torch.inference_mode(False), torch.no_grad():
        made: Tensor = make(weights, *arguments)
    return made


def _stamp(weight: Tensor) -> Stamp:
    return Stamp(weight.data_ptr(), weight.stride(), _version(weight), _checksum(weight))


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def _checksum(weight: Tensor) -> int | None:
    """Returns the checksum of all bytes of a weight on a CPU, and of what lies between them if it is not dense."""
    if _is_on_gpu(weight):
        return None
    address, size = weight.data_ptr(), _extent(weight) * weight.element_size()
    if extension_error() is None:
        found: int = extension().checksum(address, size)
        return found
    return zlib.crc32((c_char * size).from_address(address)) if size else 0


def _extent(weight: Tensor) -> int:
    """Returns from its first to its last element how many there are in memory: that many may be read."""
    if weight.is_contiguous() or weight.numel() == 0:
        return weight.numel()
    return 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _is_captured(tensor: Tensor) -> bool:
    return torch.cuda.is_current_stream_capturing()


def _settle(made: Tensor) -> None:
    """Waits, once, until what was made is there: from then on every stream may read it."""
    torch.cuda.current_stream(made.device).synchronize()
