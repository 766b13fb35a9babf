"""Observations that bring the parameters of their operator along."""

import inspect

from torch import Tensor

from emfast._check import check
from emfast.operators.base import GivenParameters, Operator, Parameters, rows_of
from emfast.random import Generator

# What is meant for the operator, wherever it stands; others, such as labels, may stand beside y.
MEANT = {"mask", "masks", "kernel", "kernels", "sigma", "sigmas", "noise"}


class Given(Operator):
    """An operator whose parameters are given for each observation rather than drawn: row id for observation id.

    Arguments:
        operator: The operator; its own parameters of other names stay in force, but for `mask` of a `Mask` and
            `kernel` of a `MotionBlur`, which have to be given: they are drawn at random otherwise.
        given: (N, ...) tensors, or such rows in a file, e.g. {"mask": (N, 1, H, W)}; the masks of a
            `Mask` may be (N, H, W) too, the kernels of a `MotionBlur` (N, K, K).
    Raises:
        ValueError: If one is missing, is not what it is called, or is meant for another operator.
    """

    checks_rows = True

    def __init__(self, operator: Operator, given: GivenParameters) -> None:
        kind, requirement = type(operator).__name__, "to be parameters that it reads"
        found, fix = " and ".join(given) or "none", f"Name them {' and '.join(operator.reads)}"
        check(set(operator.reads) <= given.keys(), kind, "what is given", requirement, found, fix)
        found, fix = " and ".join(_unread(operator, given)), "Name the operator that reads it, or leave it out"
        check(not found, kind, "what is given", requirement, found, fix)
        given = checked(operator, given)
        rows = {name: len(value) for name, value in given.items()}
        check(len(set(rows.values())) == 1, "Given", "the parameters", "to have one row per observation", rows)
        self.operator, self.given = operator, dict(given)
        self.closed_form, self.observes_images = operator.closed_form, operator.observes_images

    def parameters(self, ids: Tensor, shape: tuple[int, ...]) -> Parameters:
        """Returns the rows of the given parameters."""
        rows = {name: rows_of(value, ids) for name, value in self.given.items()}
        return {**self.operator.parameters(ids, shape), **rows}

    def checked(self, given: GivenParameters) -> GivenParameters:
        """Returns that of the operator."""
        return checked(self.operator, given)

    @property
    def is_simulated(self) -> bool:
        """Whether that of the operator holds."""
        return self.operator.is_simulated

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns A x of the operator."""
        return self.operator.apply(x, parameters)

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns A^T y of the operator."""
        return self.operator.adjoint(y, parameters)

    def project(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns the projection of the operator."""
        return self.operator.project(y, parameters)

    def is_single(self, y: Tensor) -> bool:
        """Returns what the operator says."""
        return self.operator.is_single(y)

    def gain(self, parameters: Parameters) -> float | None:
        """Returns the gain of the operator."""
        return self.operator.gain(parameters)

    def misfit(self, x: Tensor, y: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Returns that of the operator."""
        return self.operator.misfit(x, y, parameters)

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Parameters, *, iterations: int = 10) -> Tensor:
        """Returns that of the operator."""
        return self.operator.regularised_inverse(y, c, parameters, iterations=iterations)

    def noise(self, z: Tensor, parameters: Parameters) -> Tensor:
        """Returns the noise of the operator."""
        return self.operator.noise(z, parameters)

    def simulate(self, x: Tensor, parameters: Parameters, generator: Generator, sigma: float = 0.0) -> Tensor:
        """Returns those of the operator."""
        return self.operator.simulate(x, parameters, generator, sigma)

    def as_image(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns that of the operator."""
        return self.operator.as_image(y, parameters)

    def condition(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns that of the operator."""
        return self.operator.condition(y, parameters)


def _unread(operator: Operator, given: GivenParameters) -> list[str]:
    """Returns the names of what is given and has a meaning, of which an operator of emfast is known to read nothing.

    One of a user's may read anything, and what stands for another operator or a physics reads what that does.
    """
    kind = type(operator)
    if not kind.__module__.startswith("emfast.operators.") or kind.__name__.startswith("_") or kind is Given:
        return []
    # Without parameters of its own it has one setting for all observations, such as the std of a blur.
    settings = set() if operator.reads else set(inspect.signature(kind).parameters)
    return sorted((MEANT | settings) & given.keys() - set(operator.reads))


def checked(operator: Operator, given: GivenParameters) -> GivenParameters:
    """Returns parameters as an operator takes them; they are read into memory for one that knows no others.

    Arguments:
        operator: The operator.
        given: (N, ...) tensors or rows by name.
    """
    if not operator.checks_rows and type(operator).checked is not Operator.checked:
        given = {name: value[:] for name, value in given.items()}
    return operator.checked(given)
