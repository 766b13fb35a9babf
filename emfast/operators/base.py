"""The measurement operator A of y = A x + n, or whatever else makes observations of images."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from emfast import random
from emfast._check import check, check_ids, check_numbers, check_seed
from emfast.data.rows import Rows
from emfast.operators import subclasses
from emfast.operators.conjugate_gradient import conjugate_gradient

Parameters = Mapping[str, Tensor]
GivenParameters = Mapping[str, Tensor | Rows]  # of all observations, which may lie in a file


class Operator:
    r"""A linear measurement operator A with parameters of its own for every observation.

    A subclass has three methods, `parameters`, `apply` and `adjoint`; an operator without parameters needs only the
    last two. One that knows its singular vectors may give `regularised_inverse` in closed form too, one that never
    records some of the values of y gives `project`, and one that knows what parameters from files must be, `checked`.
    All tensors are batched: row b of every parameter belongs to image b, and images do not mix. An instance holds
    hyper-parameters only.

    A subclass of another operator that gives `apply` or `adjoint` anew is another A: what it inherits that follows from
    that of the other (`project`, `gain`, `misfit`, `regularised_inverse` and `closed_form`, `noise`, `as_image`,
    `reads`) is that of this class again, unless it gives it too.

    A detector that is not linear, or whose noise is not Gaussian, has `simulate` in their place, and `as_image` unless
    its observations are images in data units: that is enough for the sampler `Conditional`.

    .. math:: y = A x + n, \quad n \sim \mathcal N(0, \sigma^2 I)

    Its methods take:
        x: (B, C, H, W) images, in data units.
        y: (B, ...) observations.
        z: Standard normal noise of the shape of y.
        parameters: What `parameters` returns for them.
    """

    closed_form = False  # whether regularised_inverse is exact, rather than a few iterations
    checks_rows = False  # whether `checked` takes parameters that lie in a file, as `emfast.data.rows` has them
    reads: tuple[str, ...] = ()  # the parameters without which A is not known, where a file may bring them along
    observes_images = False  # whether an observation is an image (C, H, W), of whatever size

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Looks at what every method of a subclass takes and returns, and drops what it inherits of another A.

        Raises:
            TypeError: If a method does not take what it is given.
        """
        super().__init_subclass__(**kwargs)
        subclasses.look_at_methods(cls, Operator)
        subclasses.drop_what_speaks_of_another(cls, Operator)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Notes the arguments, by which a config file writes the operator down."""
        self = super().__new__(cls)
        object.__setattr__(self, "_arguments", (args, kwargs))  # of a frozen dataclass too
        return self

    def __init__(self) -> None:
        """Takes nothing: an operator without hyper-parameters. One that has some takes them here."""

    @property
    def is_simulated(self) -> bool:
        """Whether there is no A to apply: the operator can only be simulated."""
        return only_simulates(type(self))

    def parameters(self, ids: Tensor, shape: tuple[int, ...]) -> Parameters:
        """Returns what distinguishes the observations, e.g. their masks: a mapping of (B, ...) or (1, ...) tensors.

        Arguments:
            ids: (B,) int64 ids of the observations; the parameters live on their device and depend on nothing else.
            shape: The shape (C, H, W) of one observation.
        """
        return {}

    def checked(self, given: GivenParameters) -> GivenParameters:
        """Returns parameters of all N observations that came with y from a file, as `apply` takes them.

        Arguments:
            given: (N, ...) tensors by name; row id belongs to observation id. What `checks_rows` may get `Rows`.
        Raises:
            ValueError: If they are not what they are called.
        """
        return given

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns A x: images (B, C, H, W) to observations."""
        fix = " Use samplers.Conditional: this operator can only be simulated." if self.is_simulated else ""
        raise NotImplementedError(f"{type(self).__name__}: expected a method apply(x, parameters), got none.{fix}")

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns A^T y: observations to images (B, C, H, W)."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method adjoint(y, parameters), got none.")

    def project(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns the orthogonal projection of y on the range of A, where the operator knows it; by default y itself.

        What observations hold outside the range says nothing about x, whatever a file has there: -1, NaN. Samplers and
        misfits take the projection, once, before anything else.
        """
        return y

    def is_single(self, y: Tensor) -> bool:
        """Returns whether y is one observation without a batch dimension; False where the operator cannot tell."""
        return self.observes_images and y.ndim == 3

    def gain(self, parameters: Parameters) -> float | None:
        """Returns the largest |A x| that images in [-1, 1] can give; None where that is not known.

        By it observations in other units than [-1, 1] are told from their files.
        """
        return None

    def misfit(self, x: Tensor, y: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the residual r = y - A x, its squared norm per image (B,), in float32 or wider, and A^T r."""
        residual = y - self.apply(x, parameters)
        wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
        return residual, wide.square().flatten(1).sum(1), self.adjoint(residual, parameters)

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Parameters, *, iterations: int = 10) -> Tensor:
        r"""Returns the x that minimises |y - A x|^2 + c |x|^2, (B, C, H, W).

        .. math:: A^\top (A A^\top + c I)^{-1} y = (A^\top A + c I)^{-1} A^\top y

        Solved in the space of y, where float32 stands a small c better.

        Arguments:
            y: (B, ...) observations.
            c: The weight c > 0, a 0-dimensional tensor.
            parameters: The operator's parameters.
            iterations: Conjugate-gradient iterations where there is no closed form.
        """

        def system(u: Tensor) -> Tensor:
            return c * u + self.apply(self.adjoint(u, parameters), parameters)

        return self.adjoint(conjugate_gradient(system, y, iterations), parameters)

    def noise(self, z: Tensor, parameters: Parameters) -> Tensor:
        """Returns measurement noise made of standard normal z; a detector that records nothing has no noise either."""
        return z

    def simulate(self, x: Tensor, parameters: Parameters, generator: random.Generator, sigma: float = 0.0) -> Tensor:
        """Returns fresh observations of images, (B, ...): A x and noise.

        Arguments:
            x: (B, C, H, W) images.
            parameters: The operator's parameters.
            generator: Where all random numbers are drawn from: they belong to the image, whatever the batch.
            sigma: The noise level of the run, which an operator of another kind may take for its own noise.
        """
        y = self.apply(x, parameters)
        if sigma > 0:
            y = y + sigma * self.noise(generator.normal(tuple(y.shape[1:])).to(y), parameters)
        return y

    def as_image(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns what observations show as images in data units, (B, C, H, W): A^T y, or y if there is no adjoint.

        An operator gives it where A^T y has another contrast than the image.
        """
        return self.adjoint(y, parameters) if type(self).adjoint is not Operator.adjoint else y

    def condition(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns what a network is shown of observations, (B, K, H, W): all zeros would say that there is none.

        The observation as an image, each parameter that is as large as an image or broadcasts to one, and ones.
        """
        return with_parameters(self.as_image(y, parameters), parameters)

    def observe(self, x: Tensor, sigma: float = 0.0, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        """Returns simulated observations, y = A x + n.

        Arguments:
            x: (B, C, H, W) clean images in data units, or one, (C, H, W).
            sigma: The standard deviation of the noise, in data units, >= 0.
            ids: (B,) stable ids of the observations; 0 ... B-1 by default.
            seed: The key of the noise: the same (seed, id) gives the same observation.
        """
        seed = check_seed(seed, "observe")
        check_numbers("observe", sigma=sigma)
        check(sigma is not None and 0 <= sigma < math.inf, "observe", "sigma", "to be >= 0 and finite", sigma)
        check(isinstance(x, Tensor), "observe", "x", "to be a tensor", type(x), "torch.as_tensor makes one", TypeError)
        check_ids(ids, "observe")
        # Noise of whole numbers would be rounded to them.
        good, fix = x.is_floating_point() or x.is_complex(), "Scale them: x / 127.5 - 1 from 0 ... 255"
        check(good, "observe", "x", "to be a floating-point tensor in data units", x.dtype, fix, TypeError)
        check(x.ndim in (3, 4), "observe", "x", "to have shape (B, C, H, W), or (C, H, W)", tuple(x.shape))
        if x.ndim == 3:
            return self.observe(x[None], sigma, ids=single_id(ids), seed=seed)[0]
        ids = default_ids(x, ids)
        parameters = self.parameters(ids, tuple(x.shape[1:]))
        return self.simulate(x, parameters, random.Generator(ids, random.derive(seed, "observe")), sigma)


def only_simulates(kind: type[Operator]) -> bool:
    """Returns whether the operators of a class can only be simulated."""
    return kind.apply is Operator.apply and kind.simulate is not Operator.simulate


def rows_of(values: Tensor | Rows, ids: Tensor) -> Tensor:
    """Returns the rows of ids, on their device; the others stay where they are, which may be more than a GPU holds.

    Arguments:
        values: (N, ...) rows, row id for observation id.
        ids: (B,) int64 ids.
    """
    rows = ids.to(values.device)
    if not rows.is_cuda:  # a negative one would be counted from the end without a word
        found = [int(ids.min()), int(ids.max())] if len(ids) else [0, 0]
        good = found[0] >= 0 and found[1] < len(values)
        check(good, "parameters", "ids", f"to be in 0 ... {len(values) - 1}, a row of those given", found)
    return values[rows].to(ids.device)


def single_id(ids: Tensor | None) -> Tensor | None:
    """Returns the id of one observation as a batch of one; it may have shape () or (1,)."""
    return ids[None] if ids is not None and ids.ndim == 0 else ids


def default_ids(x: Tensor, ids: Tensor | None) -> Tensor:
    """Returns the ids on the device of x; 0 ... B-1 if none are given.

    Arguments:
        x: (B, ...) images or observations.
        ids: (B,) int64 ids, or None.
    """
    if ids is None:
        return torch.arange(len(x), device=x.device)
    check_ids(ids, "observe")
    good = ids.shape == (len(x),) and not ids.is_floating_point()
    check(good, "observe", "ids", f"to be ({len(x)},) whole numbers, one id per image", ids)
    return ids.to(x.device, torch.int64)


def with_parameters(image: Tensor, parameters: Parameters) -> Tensor:
    """Returns what a network is shown: an image, (B, C, H, W), the parameters as large as it, and ones.

    Arguments:
        image: What observations show.
        parameters: The parameters of the operator, of which those count that are images or broadcast to one.
    """
    sides = image.shape[-2:]
    fitting = [
        value.to(image).expand(len(image), -1, *sides)
        for value in parameters.values()
        if value.ndim == 4 and all(own in (1, side) for own, side in zip(value.shape[-2:], sides, strict=True))
    ]
    return torch.cat((image, *fitting, torch.ones_like(image[:, :1])), 1)
