"""What every way to compute a convolution is given."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emfast.nn.layout import as_kernel, cast, joined, sorted_rows, upsampling_kernel
from emfast.nn.prepared import Prepared, prepared


class Plan(NamedTuple):
    """The constants of a convolution.

    Arguments:
        stride: The stride.
        padding: The zeros around the inputs.
        upsample: Whether the inputs are first upsampled by two (nearest neighbours).
        dtype: The precision of products.
        interleaved: Of how many groups the rows of the weights are in turn.
        training: Whether weights are new at every call.
        first: The input channel of the weights that the first channel of the inputs meets.
    """

    stride: int
    padding: int
    upsample: bool
    dtype: torch.dtype
    interleaved: int
    training: bool
    first: int = 0

    @property
    def window(self) -> tuple[int, int, bool]:
        """Stride, padding and whether inputs are upsampled, as the ops take them."""
        return self.stride, self.padding, self.upsample


class Parameters(NamedTuple):
    """The weights of a convolution, or its biases, which are read as their concatenation, and what is made of them."""

    parts: Sequence[Tensor]
    memory: Prepared

    @classmethod
    def of(cls, plan: Plan, parts: Sequence[Tensor]) -> "Parameters":
        """Returns parameters with what was made of them before: nothing, while they are new at every call.

        Arguments:
            plan: The constants.
            parts: The weights, or the biases.
        """
        return cls(parts, Prepared(parts) if plan.training else prepared(parts))

    def get(self, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Returns make(parts, *arguments), or what it returned before."""
        return self.memory.get(self.parts, make, *arguments)


Columns = tuple[int, int]  # the input channels of the weights that an input meets: the first, and that behind the last


def columns(plan: Plan, shapes: Sequence[torch.Size]) -> Iterator[Columns]:
    """Yields the columns of inputs.

    Arguments:
        plan: The constants.
        shapes: (B, C, H, W) of each input.
    """
    first = plan.first
    for shape in shapes:
        yield first, first + shape[1]
        first += shape[1]


def kernel(weights: Sequence[Tensor], plan: Plan, columns: Columns) -> Tensor:
    """Returns the kernels of some input channels in the compute precision; those of upsampling are summed in float32.

    Arguments:
        weights: All weights.
        plan: The constants.
        columns: The channels.
    """
    w = sorted_rows(as_kernel(joined(weights)), plan.interleaved)
    w = w if columns == (0, w.shape[1]) else w[:, columns[0] : columns[1]]
    if plan.upsample:
        w = upsampling_kernel(w.to(torch.promote_types(w.dtype, torch.float32)))
    return cast(w, plan.dtype)


def shift(biases: Parameters | None, plan: Plan) -> Tensor | None:
    """Returns the bias of the result in the compute precision.

    Arguments:
        biases: The biases, if any.
        plan: The constants.
    """
    if biases is None:
        return None
    own = biases.parts[0]
    as_it_is = len(biases.parts) == 1 and plan.interleaved == 1 and own.dtype == plan.dtype
    return own if as_it_is else biases.get(sorted_bias, plan)


def sorted_bias(biases: Sequence[Tensor], plan: Plan) -> Tensor:
    """Returns biases in the order of the result's channels, in the compute precision.

    Arguments:
        biases: All biases.
        plan: The constants.
    """
    return sorted_rows(joined(biases), plan.interleaved).to(plan.dtype)


def is_product(plan: Plan, weights: Sequence[Tensor]) -> bool:
    """Returns whether a convolution is a matrix product.

    Arguments:
        plan: The constants.
        weights: (D, C, K, K) kernels, or matrices.
    """
    return plan.window == (1, 0, False) and weights[0].shape[2:].numel() == 1
