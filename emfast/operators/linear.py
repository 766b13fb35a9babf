"""Any linear function of images as an operator."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from emfast._check import check, message
from emfast.operators.base import Operator, Parameters
from emfast.operators.linearity import check_linear

Function = Callable[[Tensor], Tensor]


class Linear(Operator):
    r"""A plain function A, one batch of images in, one batch of observations out, with its adjoint from autograd.

    .. math:: A^\top y = \nabla_x \langle A x, y \rangle

    Before it is first used it is tried on random images: whether it is linear, keeps images apart, and, where an
    adjoint is given, whether that is the adjoint.

    Arguments:
        function: Linear and the same for every observation, (B, C, H, W) to (B, ...); of PyTorch, unless its adjoint is
            given. On the command line its import path, such as `my_file.my_function`.
        shape: The shape (C, H, W) of one image.
        adjoint: The transposed function, (B, ...) to (B, C, H, W), where it is faster than autograd's, or where the
            function is not of PyTorch.
    """

    # Not Function: the command line would ask for functions with an annotation.
    def __init__(
        self, function: Callable[..., Any], shape: tuple[int, int, int], adjoint: Callable[..., Any] | None = None
    ) -> None:
        check(callable(function), "Linear", "function", "to be a function of images", type(function), error=TypeError)
        good = len(shape) == 3 and all(side > 0 for side in shape)
        check(good, "Linear", "shape", "to be (C, H, W), the shape of one image", tuple(shape))
        self.function, self.shape, self.given = function, tuple(shape), adjoint
        self.observed: tuple[int, ...] | None = None  # the shape of an observation, known once the function is tried

    def parameters(self, ids: Tensor, shape: tuple[int, ...]) -> Parameters:
        """Returns nothing: the function is the same for all observations. It is tried here, once."""
        self._tried(ids.device)
        return {}

    def is_single(self, y: Tensor) -> bool:
        """Returns whether y has the shape of one observation."""
        return tuple(y.shape) == self._tried(y.device)

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns A x."""
        sides = tuple(x.shape[1:])
        check(sides == self.shape, "Linear", f"the images of {self.name}", f"to have shape {self.shape}", sides)
        return self.function(x)

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns A^T y."""
        sides, observed = tuple(y.shape[1:]), self._tried(y.device)
        check(sides == observed, "Linear", f"the observations of {self.name}", f"to have shape {observed}", sides)
        if self.given is not None:
            return self.given(y)
        differentiable = torch.is_grad_enabled() and y.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(len(y), *self.shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (gradient,) = torch.autograd.grad(self.function(x), x, y, create_graph=differentiable)
        return gradient

    def _tried(self, device: torch.device) -> tuple[int, ...]:
        """Returns the shape of one observation, after the function has passed every trial, once."""
        if self.observed is None:
            self.observed = self._try(device)
            try:
                check_linear(self, torch.arange(2, device=device), self.shape, self.observed)
            except BaseException:
                self.observed = None  # to be told again at the next use
                raise
        return self.observed

    def _try(self, device: torch.device) -> tuple[int, ...]:
        """Returns the shape of one observation; raises a sentence if the function is not one of image batches."""
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(0)).to(device)
            y = self._call(x.requires_grad_(self.given is None))
        batch = f"to return a tensor (B, ...) of images {tuple(x.shape)}"
        check(isinstance(y, Tensor), "Linear", self.name, batch, type(y), error=TypeError)
        check(y.ndim > 1 and len(y) == len(x), "Linear", self.name, batch, y)
        fix = "Let it return real and imaginary parts as channels"
        check(not y.is_complex(), "Linear", self.name, "to return real numbers", y, fix, TypeError)
        fix = "Compute with PyTorch, without detach() or numpy, or give adjoint"
        check(y.requires_grad or self.given is not None, "Linear", self.name, "to be differentiable", "no graph", fix)
        apart = torch.cat([self.function(image).detach() for image in x.detach().split(1)])
        same = torch.allclose(apart, y.detach(), rtol=1e-3, atol=1e-3 * float(apart.abs().max()))
        check(same, "Linear", self.name, "to keep the images of a batch apart", "others in a batch than alone")
        return tuple(y.shape[1:])

    def _call(self, x: Tensor) -> Any:
        """Returns A x; what the function raises for images of this shape is told with the shape."""
        try:
            return self.function(x)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            fix = "Give shape=(C, H, W) of its images; if it does not compute with PyTorch, adjoint too"
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(message("Linear", self.name, f"to take images {tuple(x.shape)}", text, fix)) from error

    @property
    def name(self) -> str:
        """The name of the function, for sentences."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))


def as_operator(operator: Operator | Function, y: Tensor, function: str) -> Operator:
    """Returns an operator as it is, and a plain function as a `Linear`, the same one every time.

    Arguments:
        operator: An operator, or a linear function of image batches whose observations are as large as the images.
        y: (B, C, H, W) or (C, H, W) observations.
        function: The public function the caller used.
    Raises:
        TypeError: If it is neither.
        ValueError: If the observations are no images, so that the shape of the images is not known.
    """
    if isinstance(operator, Operator):
        return operator
    good = callable(operator) and not isinstance(operator, type)
    check(good, function, "operator", "to be an emfast Operator, or a function of images", operator, error=TypeError)
    fix = "Give operators.Linear(function, shape=(C, H, W)), the shape of its images"
    check(y.ndim in (3, 4), function, "y", "to be images for a function as the operator", tuple(y.shape), fix)
    return _linear(operator if isinstance(operator, Hashable) else _Itself(operator), tuple(y.shape[-3:]))


class _Itself:
    """A function that has no hash, as an instance of a dataclass has none: it equals itself alone."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.function is other.function

    def __hash__(self) -> int:
        return id(self.function)


@lru_cache(maxsize=16)  # a new one for every call would be tried, and captured, in every call
def _linear(function: Function | _Itself, shape: tuple[int, int, int]) -> Linear:
    return Linear(function.function if isinstance(function, _Itself) else function, shape)
