"""The physics of deepinv as measurement operators; deepinv itself is not needed."""

import copy
import inspect
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from emfast._check import check
from emfast.operators.base import Operator, Parameters

SINGULAR = ("U", "V", "U_adjoint", "V_adjoint", "prox_l2")  # the methods of a physics that knows its singular vectors


def from_deepinv(physics: Any) -> Operator:
    r"""Returns a linear physics of deepinv as an operator.

    The operator keeps a copy of the physics and computes in its precision. What distinguishes the observations, their
    masks or filters, is given by the name that deepinv has for it: `Given(from_deepinv(physics), {"mask": masks})`,
    row id for observation id. A decomposable physics (`Inpainting`, `BlurFFT`, `MRI`, ...) solves its data steps in
    closed form.

    A is linear, so it is the same for images in deepinv's range [0, 1] and in emfast's [-1, 1], but observations are
    not: those of images x in [0, 1] become those of 2 x - 1, and their noise doubles.

    .. math:: A x + n = y \;\Rightarrow\; A (2 x - 1) + 2 n = 2 y - A 1

    Noise and sensor models of the physics are not used: samplers take the standard deviation of Gaussian noise.

    Arguments:
        physics: A `deepinv.physics.LinearPhysics`, or any object with its methods A(x, **parameters) and
            A_adjoint(y, **parameters).
    Raises:
        TypeError: If it has no such methods, as a nonlinear physics.
    """
    linear = all(callable(getattr(physics, name, None)) for name in ("A", "A_adjoint"))
    expected, fix = "to be linear, with methods A and A_adjoint", "A nonlinear physics has no adjoint"
    check(linear, "from_deepinv", "physics", expected, type(physics), fix, TypeError)
    return _Physics(_copied(physics))


def _copied(physics: Any) -> Any:
    return physics.clone() if callable(getattr(physics, "clone", None)) else copy.deepcopy(physics)


class _Physics(Operator):
    """An operator that hands its work to a physics, which it owns. Graphs hold addresses: it has one per device."""

    def __init__(self, physics: Any) -> None:
        if isinstance(getattr(physics, "noise_model", None), nn.Module):
            physics.noise_model = nn.Identity()  # physics.noise keeps only where there is noise
        self.physics, self.copies = physics, dict[torch.device, Any]()
        self.closed_form = hasattr(physics, "mask") and all(callable(getattr(physics, name, None)) for name in SINGULAR)

    def parameters(self, ids: Tensor, shape: tuple[int, ...]) -> Parameters:
        """Returns nothing: those of the physics are the same for all observations. Turns to that beside the ids."""
        if isinstance(self.physics, nn.Module):
            if ids.device not in self.copies:
                physics = _copied(self.physics) if self.copies else self.physics
                self.copies[ids.device] = physics.to(ids.device)
            self.physics = self.copies[ids.device]
        return {}

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns A x."""
        self._check(parameters)
        y = self.physics.A(self._in_its_precision(x), **parameters)
        check(isinstance(y, Tensor), "from_deepinv", "A x", "to be one tensor", type(y), error=TypeError)
        return y.to(x.dtype)

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns A^T y."""
        self._check(parameters)
        return self.physics.A_adjoint(self._in_its_precision(y), **parameters).to(y.dtype)

    def project(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns y where the physics records something, which is where it has noise, and 0 elsewhere."""
        return torch.where(self.noise(torch.ones_like(y), parameters) != 0, y, 0)

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Parameters, *, iterations: int = 10) -> Tensor:
        """Returns the minimiser, by the physics itself where that is exact."""
        if not self.closed_form:
            return super().regularised_inverse(y, c, parameters, iterations=iterations)
        self._hand_over(parameters)
        return self.physics.prox_l2(0.0, self._in_its_precision(y), self._in_its_precision(1 / c)).to(y.dtype)

    def noise(self, z: Tensor, parameters: Parameters) -> Tensor:
        """Returns z where the physics records something, and 0 elsewhere: whatever a mask multiplies pixels with."""
        if not callable(getattr(self.physics, "noise", None)):
            return z
        self._hand_over(parameters)
        recorded = self.physics.noise(self._in_its_precision(torch.ones_like(z))) != 0
        return torch.where(recorded, z, 0)

    def _hand_over(self, parameters: Parameters) -> None:
        """Hands the parameters over; A and A_adjoint take them as arguments, the other methods do not."""
        self._check(parameters)
        if parameters:
            self.physics.update_parameters(**parameters)

    def _check(self, parameters: Parameters) -> None:
        """deepinv passes over parameters that it does not know."""
        for name in parameters:
            functions = (self.physics.A, getattr(self.physics, "forw", self.physics.A))
            known = hasattr(self.physics, name) or any(name in inspect.signature(f).parameters for f in functions)
            check(known, "from_deepinv", "the parameters", f"to be those of {type(self.physics).__name__}", name)
            # Masks (B, H, W) would be broadcast: those of three images to the three channels of each.
            own = getattr(self.physics, name, None)
            least = own.ndim if isinstance(own, Tensor) else 0
            value = parameters[name]
            check(value.ndim >= least, "from_deepinv", name, f"to have {least} axes as that of the physics", value)

    def _in_its_precision(self, x: Tensor) -> Tensor:
        """Returns x in the precision of the physics."""
        if not isinstance(self.physics, nn.Module):
            return x
        tensors = [*self.physics.parameters(), *self.physics.buffers()]
        dtypes = [t.dtype.to_real() for t in tensors if t.is_floating_point() or t.is_complex()]
        return x.to(reduce(torch.promote_types, dtypes)) if dtypes else x
