"""What a network would do on a GPU, found without one: on CPU tensors, or on fake ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from emfast.dispatch import target
from emfast.nn.prepared import separate


@contextmanager
def rehearsed(device: Literal["cuda"] = "cuda") -> Iterator[None]:
    """In the block layers take the ways of another type of device; what is prepared there is kept in the block alone.

    Arguments:
        device: The type of device.
    """
    with target(device), separate():
        yield
