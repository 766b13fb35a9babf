"""The YAML of command lines and config files, and its values: refused where they could hang or break a command."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import get_loader, set_loader

from emfast._check import check, message
from emfast._files import check_regular

MODE = "emfast"  # of the parser: YAML with the limits below
VALUES, DEPTH = 10_000, 50  # more than any config needs
LARGEST = 2**63  # of whole numbers: torch and numpy hold them in 64 bits


def load_yaml(text: str) -> Any:
    """Returns the value of a YAML text as jsonargparse reads it.

    Raises:
        yaml.YAMLError: If it is no YAML, refers to itself, or is huge or deep once its aliases are followed.
    """
    try:
        _measure(text)
        return get_loader("yaml")(text)
    except yaml.YAMLError:
        raise
    except Exception as error:  # a number of 5000 digits, a tag that does not fit its value
        raise yaml.YAMLError(str(error)) from error


set_loader(MODE, load_yaml, (yaml.YAMLError,))


def check_config(function: str, path: str) -> None:
    """Raises a ValueError, which names the file, unless it is YAML of options by name.

    Arguments:
        function: The command.
        path: The config file.
    """
    check(os.path.exists(path), function, path, "to be a file", "nothing there", "Check the path")
    check(not os.path.isdir(path), function, path, "to be a file", "a folder")
    try:
        tree = load_yaml(Path(path).read_text(encoding="utf-8"))
        check_values(function, tree, path)
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at position {error.start}"
        raise ValueError(message(function, path, "to be text in UTF-8", found)) from None
    except yaml.YAMLError as error:
        raise ValueError(message(function, path, "to be valid YAML", " ".join(str(error).split()))) from None
    if isinstance(tree, str) and tree.rstrip().endswith(":"):  # what jsonargparse makes of nothing but names
        check(False, function, tree.split(":")[0], "to have a value", f"none in {path}", "Leave it out for its default")
    named = isinstance(tree, dict) and all(isinstance(key, str) for key in tree)
    check(named, function, path, "to hold options by name, as in `sigma: 0.1`", tree)


def check_class(function: str, key: str, setting: Any) -> None:
    """Raises a ValueError unless a setting names a class, with its arguments by name or without any.

    Arguments:
        function: The command.
        key: The option, operator or sampler.
        setting: The value, as YAML has it; None passes.
    """
    name = setting.get("class_path", "") if isinstance(setting, Mapping) else "" if setting is None else setting
    parts = name.split(".") if isinstance(name, str) else [""]
    fix = "Write its name, as in Identity, or the import path of your own, as in my_file.MyClass"
    good = name == "" or all(part.isidentifier() for part in parts)
    check(good, function, key, "to name a class", repr(name), fix)
    arguments = setting.get("init_args") if isinstance(setting, Mapping) else None
    good = arguments is None or isinstance(arguments, Mapping)
    check(good, function, f"{key}.init_args", "to be arguments by name", repr(arguments))


def at_home(text: str) -> str:
    """Returns a text that is a path in a home folder, `~/...` or `--option=~/...`, with that folder in its place.

    A shell does this only for `~` at the beginning of a word, and nobody for that in a YAML file.
    """
    flag, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    return f"{flag}{equals}{os.path.expanduser(value)}"


def check_values(function: str, tree: Any, name: str = "the command line") -> None:
    """Raises a ValueError if a text in nested values is no UTF-8 or names a device, or a whole number is too large.

    Arguments:
        function: The command.
        tree: Values, and lists and mappings of them.
        name: What they are.
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            check_values(function, value, str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            check_values(function, value, name)
    elif isinstance(tree, str):
        good = "\0" not in tree and tree == tree.encode(errors="replace").decode()
        check(good, function, name, "to be text in UTF-8", ascii(tree), "Write it without such characters")
        if len(tree) < 1000:
            check_regular(function, Path(tree))
    elif isinstance(tree, int):
        check(abs(tree) < LARGEST, function, name, "to have at most 63 bits", tree)


def _measure(text: str) -> None:
    """Counts the values of a text with its aliases followed, from its events: nothing is built yet."""
    sizes: dict[str | None, int] = {}
    anchors: list[str | None] = [None]
    counts = [0]
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise yaml.YAMLError(f"{event.anchor!r} refers to itself")
            counts[-1] += sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.CollectionStartEvent):
            anchors.append(event.anchor)
            counts.append(1)
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, count = anchors.pop(), counts.pop()
            counts[-1] += count
            if anchor:
                sizes[anchor] = count
        if len(counts) > DEPTH or counts[-1] > VALUES:
            raise yaml.YAMLError(f"more than {VALUES} values, or more than {DEPTH} levels of them")


def check_kinds(function: str, kind: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises a ValueError where jsonargparse lets pass what a class does not take: null, or a value for a group.

    Arguments:
        function: The command.
        kind: The class, with type hints.
        values: Its arguments by name; an operator or a sampler is a mapping with its `class_path` and `init_args`.
        prefix: What stands before their names.
    """
    for name, hint in _hints(kind).items():
        if name not in values:
            continue
        value, key = values[name], f"{prefix}{name}"
        if value is None:
            check(
                type(None) in get_args(hint), function, key, "to have a value", "null", "Leave it out for its default"
            )
        elif "class_path" in (value if isinstance(value, Mapping) else ()):
            module, _, name = value["class_path"].rpartition(".")
            chosen = getattr(importlib.import_module(module), name)
            check_kinds(function, chosen, value.get("init_args") or {}, f"{key}.")
        elif is_dataclass(hint) and not inspect.isabstract(hint):
            check(isinstance(value, Mapping), function, key, "to be a group of options", value)
            check_kinds(function, hint, value, f"{key}.")


def _hints(kind: Any) -> dict[str, Any]:
    """The type hints of the arguments of a class; none where they cannot be resolved, as in some user's."""
    with suppress(Exception):
        return {**get_type_hints(kind), **get_type_hints(kind.__init__)}
    return {}
