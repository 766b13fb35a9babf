"""Weights that stay what they are while a sampler runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from emfast.nn.prepared import unchanged


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Asks for no gradients of weights in the block: layers then keep no inputs for them, half of a step's memory.

    The weights are looked at once, at its beginning: a step need not ask whether they have changed.
    """
    learned = [p for p in network.parameters() if p.requires_grad]
    for p in learned:
        p.requires_grad_(False)
    try:
        with unchanged(network.parameters()):
            yield
    finally:
        for p in learned:
            p.requires_grad_(True)
