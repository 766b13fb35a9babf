"""Types as settings need them: what a class takes, and which class or function an import path names."""

from __future__ import annotations

import importlib
import inspect
import os
import types
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

PLAIN = ("builtins", "typing", "types", "collections.abc", "torch")  # modules whose classes are values, not settings


class Argument(NamedTuple):
    """An argument of a class."""

    hint: Any  # Any where it has no type
    required: bool
    default: Any


def arguments(kind: Any) -> dict[str, Argument]:
    """Returns the arguments of a class by name; of one that hands `**others` on, those of the next class as well."""
    found: dict[str, Argument] = {}
    for owner in kind.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        hints: dict[str, Any] = {}
        with suppress(Exception):  # the types of a user's class may name what is not there
            hints = get_type_hints(owner.__init__)
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
        for name, value in ((p.name, p) for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)):
            found.setdefault(name, Argument(hints.get(name, Any), value.default is value.empty, value.default))
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return found


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Returns the types of a union; of another type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_group(hint: Any) -> bool:
    """Returns whether a type is a dataclass of options; an operator is hinted by its base, which is none."""
    return inspect.isclass(hint) and is_dataclass(hint)


def base_of(hint: Any) -> Any:
    """Returns the class of which a field of some type names a subclass; None for a field of another kind."""
    found = [kind for kind in alternatives(hint) if get_origin(kind) is None and inspect.isclass(kind)]
    found = [kind for kind in found if kind.__module__ not in PLAIN and not issubclass(kind, os.PathLike)]
    return next((kind for kind in found if not is_group(kind)), None)


def subclasses(base: Any) -> dict[str, Any]:
    """Returns what the package of a base class exports beside it, by name: Mask, GaussianBlur, ... of Operator."""
    home = importlib.import_module(base.__module__.rpartition(".")[0] or base.__module__)
    exported = {name: kind for name, kind in vars(home).items() if not name.startswith("_") and inspect.isclass(kind)}
    return {name: kind for name, kind in exported.items() if issubclass(kind, base) and kind is not base}


def class_at(base: Any, name: str) -> Any:
    """Returns what a field names, a class of emfast's by its own name or anything by its import path; or None.

    Arguments:
        base: The class of which the field names a subclass.
        name: The name or the import path.
    """
    return subclasses(base).get(name) or imported(name)


def imported(path: Any) -> Any:
    """Returns what an import path names, a method of a class too; None if it names nothing.

    What a module raises while it is imported is its own affair.
    """
    parts = path.split(".") if isinstance(path, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return None
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and f"{module}.".startswith(f"{error.name}."):
                continue
            raise
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found
    return None
