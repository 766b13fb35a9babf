"""What a subclass of an operator is to give, and what it may take over from the operators that it inherits from."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from torch import Tensor

from emfast._check import check, message

# What follows from A; closed_form says of regularised_inverse that it is exact, reads are the parameters of apply.
DERIVED = ("project", "gain", "misfit", "regularised_inverse", "noise", "closed_form", "as_image", "reads")


def _is_batch(x: Tensor, y: object) -> bool:
    return isinstance(y, Tensor) and y.dim() > 1 and len(y) == len(x)


def _is_mapping(ids: Tensor, found: object) -> bool:
    return isinstance(found, Mapping) and all(isinstance(value, Tensor) for value in found.values())


def _is_misfit(x: Tensor, found: object) -> bool:
    return (
        isinstance(found, tuple) and [isinstance(part, Tensor) and len(part) == len(x) for part in found] == [True] * 3
    )


BATCH = "a tensor (B, ...), a row for each of the images or observations given"
# What the methods of a subclass are to return, whenever they are called: it may be hours into a run.
RETURNS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    **dict.fromkeys(("apply", "adjoint", "project", "noise", "regularised_inverse"), (BATCH, _is_batch)),
    **dict.fromkeys(("simulate", "as_image"), (BATCH, _is_batch)),
    "parameters": ("a dict of tensors", _is_mapping),
    "misfit": ("three tensors (B, ...)", _is_misfit),
}


def look_at_methods(kind: type, operator: type) -> None:
    """Looks at what every method of a subclass takes, and has it looked at for what it returns.

    Arguments:
        kind: The subclass.
        operator: The class `Operator`.
    Raises:
        TypeError: If a method does not take what it is given.
    """
    for name in RETURNS.keys() & vars(kind).keys():
        if inspect.isfunction(method := vars(kind)[name]):
            _check_arguments(kind, method, getattr(operator, name))
            setattr(kind, name, _looked_at(method, name))


def drop_what_speaks_of_another(kind: Any, operator: Any) -> None:
    """Gives a subclass with an A of its own the general form of all that it inherits of another A.

    What a class without an A has, such as a base class of several operators, was written for whatever A there is.

    Arguments:
        kind: The subclass.
        operator: The class `Operator`.
    """
    for name in DERIVED:
        owner = next(parent for parent in kind.__mro__ if name in vars(parent))
        has_one = issubclass(owner, operator) and owner.apply is not operator.apply
        if has_one and (owner.apply, owner.adjoint) != (kind.apply, kind.adjoint):
            setattr(kind, name, getattr(operator, name))


def _check_arguments(cls: type, method: Callable[..., Any], general: Callable[..., Any]) -> None:
    """Finds a method that leaves out an argument where the class is written, not where the method is first called."""
    ours = inspect.signature(general).parameters.values()
    wanted = [argument.name for argument in ours if argument.kind is argument.POSITIONAL_OR_KEYWORD]
    theirs = inspect.signature(method)
    try:
        theirs.bind(*wanted)
    except TypeError:
        names = ", ".join(theirs.parameters)
        requirement, fix = f"to take ({', '.join(wanted)})", "The parameters of an operator without any are {}"
        raise TypeError(message(cls.__name__, general.__name__, requirement, f"({names})", fix)) from None


def _looked_at(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Returns a method of an operator that raises a sentence if it returns something else than it is to return."""
    what, is_right = RETURNS[name]

    @wraps(method)
    def checked(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = method(self, x, *args, **kwargs)
        check(is_right(x, result), type(self).__name__, name, f"to return {what}", result, error=TypeError)
        return result

    return checked
