"""Which operator made observations that were not simulated here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from emfast._check import check, message
from emfast.data.rows import Rows
from emfast.operators import Given, Mask, MotionBlur, Operator
from emfast.operators.identity import is_identity

# The operators that a parameter in a file stands for.
BY_PARAMETER: dict[str, Callable[[], Operator]] = {"mask": Mask, "kernel": partial(MotionBlur, size=1)}


def operator_of(
    y: Tensor | Rows, given: Mapping[str, Tensor | Rows], name: str, *, usual: Operator | None = None
) -> Operator:
    """Returns the operator that made observations, which nobody named: never one that draws its parameters at random.

    Arguments:
        y: The observations.
        given: The parameters that came with them.
        name: Where they are from.
        usual: The operator of others like these, if there is one.
    Raises:
        ValueError: If neither the parameters nor the usual operator tell.
    """
    if usual is not None and not drawn(usual, y) - given.keys():
        own = usual.parameters(torch.arange(2), tuple(y.shape[1:]))
        if not given or given.keys() & own.keys():
            return usual
    for key, kind in BY_PARAMETER.items():
        if key in given:
            return kind()
    found = ", ".join(["y", *given]) + " only"
    fix = "Name the operator, as in --operator GaussianBlur, or store the masks beside y"
    what = f"to hold {' or '.join(BY_PARAMETER)}, or the operator to be named"
    raise ValueError(message("Observations", name, what, found, fix))


def shows_pixels(operator: Operator) -> bool:
    """Returns whether what an operator observes are pixels as they are, all of them or some.

    Arguments:
        operator: The operator; its parameters may be given.
    """
    kind = type(operator.operator if isinstance(operator, Given) else operator)
    masks = issubclass(kind, Mask) and (kind.apply, kind.adjoint) == (Mask.apply, Mask.adjoint)
    return masks or is_identity(kind)


def check_known(operator: Operator, y: Tensor | Rows, given: Mapping[str, Tensor | Rows], name: str) -> None:
    """Refuses an operator that would draw at random what the observations do not bring: other masks than made them.

    Arguments:
        operator: The operator.
        y: The observations.
        given: The parameters that came with them.
        name: Where they are from.
    """
    kind, names = type(operator).__name__, " and ".join(sorted(drawn(operator, y) - given.keys()))
    requirement = f"to bring {names}, which {kind} would draw at random"
    fix = f'Store the {names} beside y ({{"y": y, "{names}": ...}}), or name the operator that observed them'
    check(not names, "Observations", name, requirement, ", ".join(["y", *given]) + " only", fix)


def drawn(operator: Operator, y: Tensor | Rows) -> set[str]:
    """Returns the parameters of which an operator has others for every observation, such as random masks.

    Arguments:
        operator: The operator.
        y: The observations.
    """
    parameters = operator.parameters(torch.arange(2), tuple(y.shape[1:]))
    return {name for name, v in parameters.items() if len(v) == 2 and not torch.equal(v[0], v[1])}
