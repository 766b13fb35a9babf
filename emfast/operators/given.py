"""Observations that bring the parameters of their operator along."""

from torch import Tensor

from emfast._check import check
from emfast.operators.base import GivenParameters, Operator, Parameters, rows_of
from emfast.random import Generator


class Given(Operator):
    """An operator whose parameters are given for each observation rather than drawn: row id for observation id.

    Arguments:
        operator: The operator; its own parameters of other names stay in force, but for `mask` of a `Mask` and
            `kernel` of a `MotionBlur`, which have to be given: they are drawn at random otherwise.
        given: (N, ...) tensors, or such rows in a file, e.g. {"mask": (N, 1, H, W)}; the masks of a
            `Mask` may be (N, H, W) too, the kernels of a `MotionBlur` (N, K, K).
    """

    checks_rows = True

    def __init__(self, operator: Operator, given: GivenParameters) -> None:
        found, fix = " and ".join(given) or "none", f"Name them {' and '.join(operator.reads)}"
        good = set(operator.reads) <= given.keys()
        check(good, type(operator).__name__, "what is given", "to be parameters that it reads", found, fix)
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


def checked(operator: Operator, given: GivenParameters) -> GivenParameters:
    """Returns parameters as an operator takes them; they are read into memory for one that knows no others.

    Arguments:
        operator: The operator.
        given: (N, ...) tensors or rows by name.
    """
    if not operator.checks_rows and type(operator).checked is not Operator.checked:
        given = {name: value[:] for name, value in given.items()}
    return operator.checked(given)
