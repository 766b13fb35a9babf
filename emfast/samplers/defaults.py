"""The sampler to take where none is named."""

from emfast._check import check
from emfast.operators import Identity, Operator
from emfast.samplers.base import Sampler
from emfast.samplers.mmps import MMPS
from emfast.samplers.prior import Prior
from emfast.samplers.reverse_from_observation import ReverseFromObservation


def default_sampler(kind: type[Operator]) -> Sampler:
    """Returns the sampler with the best quality per network evaluation for a class of operators.

    Chosen from the table of `benchmarks/samplers.py`: of those whose samples vary as much as the posterior's do, which
    EM needs, the one closest to the truth.

    Arguments:
        kind: The class of the operator.
    """
    return ReverseFromObservation() if issubclass(kind, Identity) else MMPS()


def check_posterior(sampler: Sampler, function: str) -> None:
    """Raises a ValueError if a sampler does not read the observations: EM would learn nothing from them.

    Arguments:
        sampler: The sampler of an E-step.
        function: The public function the caller used.
    """
    none = type(sampler) is Sampler or isinstance(sampler, Prior)
    fix = "Take MMPS, or leave the sampler out"
    check(not none, function, "sampler", "to sample the posterior of an observation", type(sampler), fix)
