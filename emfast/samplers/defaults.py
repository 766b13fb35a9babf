"""The sampler to take where none is named."""

from emfast.operators import Identity, Operator
from emfast.samplers.base import Sampler
from emfast.samplers.mmps import MMPS
from emfast.samplers.reverse_from_observation import ReverseFromObservation


def default_sampler(kind: type[Operator]) -> Sampler:
    """Returns the sampler with the best quality per network evaluation for a class of operators.

    Chosen from the table of `benchmarks/samplers.py`: of those whose samples vary as much as the posterior's do, which
    EM needs, the one closest to the truth.

    Arguments:
        kind: The class of the operator.
    """
    return ReverseFromObservation() if issubclass(kind, Identity) else MMPS()
