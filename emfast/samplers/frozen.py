"""A network that stays what it is while a sampler runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from emfast.nn.prepared import unchanged


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Asks for no gradients of weights in the block: layers then keep no inputs for them, half of a step's memory.

    Modules are in evaluation mode: dropout and the statistics of a batch would make samples depend on more than their
    seeds and ids. Each has its own mode again afterwards.

    The weights are looked at once, at its beginning: a step need not ask whether they have changed.
    """
    in_training = [module for module in network.modules() if module.training]
    learned = [p for p in network.parameters() if p.requires_grad]
    for p in learned:
        p.requires_grad_(False)
    for module in in_training:
        module.training = False  # not by eval(), which some networks use for more than their mode
    try:
        with unchanged(network.parameters()):
            yield
    finally:
        for p in learned:
            p.requires_grad_(True)
        for module in in_training:
            module.training = True
