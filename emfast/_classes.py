"""Types as settings need them: what a class takes, and which class or function an import path names."""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import numbers
import os
import types
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from emfast._check import check

PLAIN = ("builtins", "typing", "types", "collections.abc", "torch")  # modules whose classes are values, not settings
LISTS = (list, tuple, collections.abc.Sequence)
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


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


def described(kind: Any) -> str:
    """Returns a type as a sentence names it."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return repr(parts[0]) if len(parts) == 1 else f"one of {', '.join(map(repr, parts))}"
    if get_origin(kind) in LISTS:
        return f"a list of which each is {described(parts[0])}"
    if get_origin(kind) is collections.abc.Callable:
        return "the import path of a function"
    return NAMES.get(kind) or str(getattr(kind, "__name__", kind))


def check_fields(group: str, config: Any) -> None:
    """Raises a sentence unless each field of a dataclass of options has a value of its type.

    Files and command lines are read by their types; this is for what is made in Python. Paths become text, numbers of
    numpy plain ones and tuples lists, so that the config can be written to a file.

    Arguments:
        group: The group of the config that it is; empty for the config itself.
        config: The dataclass, whose types are those of files: plain ones, lists of them, and classes.
    Raises:
        TypeError: If a value is of another type.
        ValueError: If it is none of the words that may stand there.
    """
    for name, hint in get_type_hints(type(config)).items():
        kinds = alternatives(hint)
        value: Any = _plain(getattr(config, name), kinds)
        setattr(config, name, value)
        words = any(get_origin(kind) is Literal for kind in kinds)
        found, fix = repr(value) if isinstance(value, str) else value, None
        if inspect.isclass(value):
            found, fix = f"the class {value.__name__}", f"Write {value.__name__}(...)"
        elif is_group(kinds[0]):
            fix = f"Write {kinds[0].__name__}(...)"
        key = f"{group}.{name}" if group else name
        requirement = f"to be {' or '.join(map(described, kinds))}"
        good = any(_is_of(value, kind) for kind in kinds)
        check(good, "config", key, requirement, found, fix, ValueError if words else TypeError)


def _plain(value: Any, kinds: tuple[Any, ...]) -> Any:
    """Returns a value as a file would give it."""
    if isinstance(value, os.PathLike) and str in kinds:
        return os.fspath(value)
    if isinstance(value, tuple) and any(get_origin(kind) is list for kind in kinds):
        return list(value)
    return value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value


def _is_of(value: Any, kind: Any) -> bool:
    """Returns whether a value is of a type, which is no union."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is list:
        return isinstance(value, list) and all(_is_of(item, parts[0]) for item in value)
    return isinstance(value, origin)
