"""Settings as text to settings as objects: what a dataclass of options makes of YAML files and command lines.

A tree is nested mappings, as YAML gives them. A class in it, such as an operator, is a mapping of its `class_path` and
its `init_args`; its name alone, or its arguments alone, will do as well.
"""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from emfast._check import check, check_regular, message
from emfast._classes import (
    LISTS,
    alternatives,
    arguments,
    base_of,
    class_at,
    described,
    imported,
    is_group,
    subclasses,
)
from emfast._yaml import CLASS, NotYaml, check_yaml, load_yaml

LARGEST = 2**63  # of whole numbers: torch and numpy hold them in 64 bits
Tree = dict[str, Any]


class Word(str):
    """A value on the command line: the text itself where text is asked for, YAML elsewhere."""


class OtherKind(Exception):
    """A value is not of the type that was tried."""


def read_settings(options: Any, tree: Tree, function: str) -> Any:
    """Returns the options that a tree says; what it leaves out has the defaults of the dataclass.

    Arguments:
        options: The dataclass. If it has a method `usual(tree)`, the tree that it returns goes before the defaults; it
            may take out of the tree what it has understood.
        tree: The tree.
        function: The public function the caller used.
    Raises:
        ValueError: If there is a mistake in it; one sentence.
    """
    check_values(function, tree)
    tree = dict(tree)
    usual = options.usual(tree) if hasattr(options, "usual") else {}
    return _Reader(function, options).construct(options, join(options, usual, tree), "")


def read_file(path: str, options: Any, function: str) -> Tree:
    """Returns the tree of a config file.

    Arguments:
        path: The file.
        options: The dataclass that it is for.
        function: The public function the caller used.
    Raises:
        ValueError: If there is no such file, it is no YAML, or says something twice; one sentence.
    """
    file = Path(os.path.expanduser(path))
    check_regular(function, file)
    check(not file.is_dir(), function, path, "to be a file", "a folder")
    check(file.is_file(), function, path, "to be a file", "nothing there", "Check the path")
    try:
        tree = load_yaml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at position {error.start}"
        raise ValueError(message(function, path, "to be text in UTF-8", found)) from error
    except NotYaml as error:
        raise ValueError(message(function, path, "to be valid YAML", " ".join(str(error).split()))) from error
    check_yaml(file, function)
    named = isinstance(tree, dict) and all(isinstance(key, str) for key in tree)
    check(named, function, path, "to hold options by name, as in `sigma: 0.1`", tree)
    for name, argument in arguments(options).items():
        good = not is_group(argument.hint) or tree.get(name, {}) is not None
        check(good, function, name, "to have a value", f"none in {path}", "Leave it out for its default")
    return join(options, {}, tree)


def join(hint: Any, first: Any, then: Any, same: bool = False) -> Any:
    """Returns two trees as one; what the second says goes before what the first says.

    The arguments of a class that the first names are kept only if the second names none, or the same: they mean nothing
    to another.

    Arguments:
        hint: The dataclass, or the type of the field whose values are joined.
        first: A tree, or a value in it.
        then: Another.
        same: Both are parts of one command line, where the arguments of a class may stand before its name.
    """
    group, base = is_group(hint), base_of(hint)
    if isinstance(then, Word) and (group or base):
        then = _loaded(then)
    if group and isinstance(then, Mapping):
        first, hints = first if isinstance(first, Mapping) else {}, arguments(hint)
        parts = {key: join(hints[key].hint if key in hints else Any, first.get(key), then[key], same) for key in then}
        return {**first, **parts}
    if not base or then is None:
        return then
    first, then = choice(first), choice(then)
    if not all(isinstance(part, Mapping) and isinstance(part["init_args"], Mapping) for part in (first, then)):
        return then
    old, new = first.get("class_path"), then.get("class_path")
    kept = same or not (old and new) or class_at(base, old) is class_at(base, new)
    inner = [part["init_args"] for part in ((first, then) if kept else (then,))]
    both = {key: value for part in inner for key, value in part.items()}
    return {**({"class_path": new or old} if new or old else {}), "init_args": both}


def choice(value: Any) -> Any:
    """Returns a setting of a class as a mapping of `init_args` and, where it is named, `class_path`."""
    if isinstance(value, str):
        return {"class_path": str(value), "init_args": {}}
    if not isinstance(value, Mapping):
        return value
    own = {key: item for key, item in value.items() if key not in CLASS}
    inner, path = value.get("init_args") or {}, value.get("class_path")
    inner = {**own, **inner} if isinstance(inner, Mapping) else inner
    return {**({"class_path": path} if path else {}), "init_args": inner}


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Returns the candidate most like a misspelt name, by itself or by its last part; None if none is like it.

    Arguments:
        name, candidates: The misspelt name, and those that exist.
    """
    candidates = list(candidates)
    by_name = {candidate.lower(): candidate for candidate in candidates}
    by_leaf = {candidate.lower().split(".")[-1]: candidate for candidate in reversed(candidates)}
    for table, text in ((by_name, name), (by_leaf, name.split(".")[-1])):
        found = difflib.get_close_matches(text.lower(), table, n=1, cutoff=0.6)
        if found:
            return table[found[0]]
    return None


def unknown(function: str, kind: str, name: str, candidates: Iterable[str], prefix: str = "") -> str:
    """Returns the sentence for a name that does not exist, with the nearest one that does.

    Arguments:
        function: The public function the caller used.
        kind, name: What it should be, with an article ("an option"), and the name.
        candidates, prefix: The names that exist, and what stands before all of them, such as the dashes of a flag.
    """
    near = nearest(name, candidates)
    fix = f"The nearest is {prefix + near!r}" if near else f"`{function} --help` lists them"
    return message(function, kind, "that exists", repr(prefix + name), fix)


def names_of(options: Any, prefix: str = "") -> list[str]:
    """Returns the names of all options of a dataclass, those of its groups with a dot.

    Arguments:
        options, prefix: The dataclass, and what stands before the names: that of its group, with a dot.
    """
    found: list[str] = []
    for name, (hint, *_) in arguments(options).items():
        found += names_of(hint, f"{prefix}{name}.") if is_group(hint) else [prefix + name]
    return found


def check_values(function: str, tree: Any, name: str = "the command line") -> None:
    """Raises a ValueError if a text in nested values is no UTF-8 or names a device, or a whole number is too large.

    Arguments:
        function: The public function the caller used.
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
            check_regular(function, Path(os.path.expanduser(tree)))
    elif isinstance(tree, int):
        check(abs(tree) < LARGEST, function, name, "to have at most 63 bits", tree)


@dataclass(frozen=True)
class _Reader:
    """Makes objects of trees for one function."""

    function: str
    options: Any

    def construct(self, kind: Any, tree: Any, prefix: str) -> Any:
        """Returns an object of a class from a tree of its arguments."""
        known, place = arguments(kind), prefix.rstrip(".")
        check(isinstance(tree, Mapping), self.function, place, "to be a group of options", tree)
        for name in tree:
            if name not in known:
                raise ValueError(self.unknown(kind, str(name), prefix))
        for name, argument in known.items():
            given = name in tree or not argument.required
            what = "nothing" if argument.hint is not Any else "nothing, and it does not specify a type"
            check(given, self.function, f"{name!r}{f' of {place}' if place else ''}", "to be given", what)
        return kind(**{name: self.convert(known[name].hint, tree[name], f"{prefix}{name}") for name in tree})

    def convert(self, hint: Any, value: Any, key: str) -> Any:
        """Returns a value as a type asks for it."""
        kinds = alternatives(hint)
        if isinstance(value, Word):
            text = str in kinds and not (value == "null" and type(None) in kinds)
            value = str(value) if text else _loaded(value)
            check_values(self.function, value, key)
        if value is None and Any not in kinds:
            none = type(None) in kinds
            check(none, self.function, key, "to have a value", "null", "Leave it out for its default")
            return None
        for kind in kinds:
            with suppress(OtherKind):
                return self.converted(kind, value, key)
        texts = [text for kind in kinds if get_origin(kind) is Literal for text in get_args(kind)]
        near = nearest(str(value), texts)
        fix = f"The nearest is {near!r}" if near else None
        if str(value).startswith("__main__."):
            fix = "It is from a program: run that again, or move it to a module of its own"
        requirement = f"to be {' or '.join(map(described, kinds))}"
        raise ValueError(message(self.function, key, requirement, value, fix))

    def converted(self, kind: Any, value: Any, key: str) -> Any:
        """Returns a value as one type, which is no union; raises `OtherKind` if it is not of that type."""
        origin, parts = get_origin(kind) or kind, get_args(kind)
        if kind is Any or (kind in (int, float, bool) and type(value) is kind):
            return value
        if origin is Literal and value in parts:
            return value
        if kind is float and type(value) is int:
            return float(value)
        if isinstance(value, str) and (kind is str or (inspect.isclass(kind) and issubclass(kind, os.PathLike))):
            home = os.path.expanduser(value)  # a shell does this at the beginning of a word only
            return home if kind is str else Path(home)
        if origin in LISTS and isinstance(value, list):
            each = parts if origin is tuple and ... not in parts else (*parts, Any)[:1] * len(value)
            if len(each) == len(value):
                items = [self.convert(part, item, key) for part, item in zip(each, value, strict=True)]
                return tuple(items) if origin is tuple else items
        if origin in (dict, collections.abc.Mapping) and isinstance(value, dict):
            return {name: self.convert((*parts, Any, Any)[1], item, f"{key}.{name}") for name, item in value.items()}
        if origin is collections.abc.Callable and callable(function := imported(value)):
            return function
        if is_group(kind):
            return self.construct(kind, value, f"{key}.")
        if base := base_of(kind):
            return self.chosen(base, value, key)
        raise OtherKind

    def chosen(self, base: Any, value: Any, key: str) -> Any:
        """Returns an object of the class that a field names."""
        setting, fix = choice(value), "Write its name, or the import path of your own, as in my_file.MyClass"
        name: Any = setting.get("class_path") if isinstance(setting, Mapping) else value
        named = isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
        check(named, self.function, key, "to name a class", repr(name), fix)
        good = isinstance(setting["init_args"], Mapping)
        check(good, self.function, f"{key}.init_args", "to be arguments by name", repr(setting["init_args"]))
        kind = class_at(base, name)
        if kind is None:
            raise ValueError(unknown(self.function, f"a class for {key}", name, subclasses(base)))
        good = inspect.isclass(kind) and issubclass(kind, base)
        check(good, self.function, key, f"to be a subclass of {base.__name__}", name)
        return self.construct(kind, setting["init_args"], f"{key}.")

    def unknown(self, kind: Any, name: str, prefix: str) -> str:
        """Returns the sentence for an argument that a class does not have."""
        names = names_of(self.options)
        if prefix and prefix.rstrip(".") in names:  # a class, not a group
            return unknown(self.function, f"an option of {prefix[:-1]} {kind.__name__}", name, arguments(kind))
        inside = [known.removeprefix(prefix) for known in names if known.startswith(prefix)]
        if prefix and nearest(name, inside):
            return unknown(self.function, "a config key", name, inside, prefix)
        return unknown(self.function, "a config key", prefix + name, names)


def _loaded(word: Word) -> Any:
    """Returns the value of a YAML text; the text itself if it is none."""
    try:
        return load_yaml(str(word))
    except NotYaml:
        return str(word)
