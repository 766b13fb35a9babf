"""YAML read with limits, mistakes in files that a loader passes over without a word, and settings as YAML."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from emfast._check import check, show

CLASS = ("class_path", "init_args")
VALUES, DEPTH = 10_000, 50  # more than any config needs
NUMBER = r"\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.[\d_]+([eE][-+]?\d+)?|\.(inf|Inf|INF)"
FLOAT = re.compile(rf"^([-+]?({NUMBER})|\.(nan|NaN|NAN))$")
# YAML 1.1 takes 010 for 8, which nobody means: it is a text.
INT = re.compile(r"^[-+]?(0|[1-9][\d_]*(:[0-5]?\d)*|0x[\da-fA-F_]+|0b[01_]+)$")
RESOLVERS = {"float": (FLOAT, "-+0123456789."), "int": (INT, "-+0123456789")}


class NotYaml(ValueError):
    """A text is no YAML, refers to itself, or is huge or deep once its aliases are followed."""


def load_yaml(text: str) -> Any:
    """Returns the value of a YAML text; 1e-3 is a number in it, and 2026-01-01 a text.

    Raises:
        NotYaml: If it is no YAML, or beyond the limits: it could hang or break whoever reads it.
    """
    import yaml

    try:
        _measure(text)
        return yaml.load(text, Loader=_loader())
    except NotYaml:
        raise
    except Exception as error:  # a number of 5000 digits, a tag that does not fit its value
        raise NotYaml(str(error).replace(' in "<unicode string>",', " at")) from error


def check_yaml(path: str | os.PathLike[str], function: str) -> None:
    """Raises a ValueError if a key stands twice in a mapping, or what belongs to a class stands at the top level.

    A file that cannot be read, or is no YAML, is left to whoever loads it.

    Arguments:
        path: The file.
        function: The public function the caller used.
    """
    import yaml

    root = None
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        root = yaml.compose(Path(path).read_text(), Loader=yaml.SafeLoader)
    found: list[str] = []
    _find_doubled_keys(root, "", found, set())
    if found:
        check(False, function, str(path), "to name every key once", found[0], "Remove one of the two")
    if isinstance(root, yaml.MappingNode):
        stray = [key.value for key, _ in root.value if key.value in CLASS]
        fix = "Move it below operator or sampler, whose class it belongs to"
        check(not stray, function, str(path), "to have options at its top level", "".join(stray[:1]), fix)


def to_yaml(settings: Any) -> str:
    """Returns a dataclass of settings as complete YAML, defaults and all.

    An operator or a sampler is written as its class and its arguments, a function as its import path. What a file
    cannot say, such as a tensor or a function without an import path, is described, and named in a comment at the top.

    Arguments:
        settings: The dataclass; its fields are plain values, dataclasses, operators or samplers.
    """
    import yaml

    only_in_python: list[str] = []
    tree = _tree_of(settings, "", only_in_python)
    lines = [f"# {name} is given in Python: this file alone does not make the run again.\n" for name in only_in_python]
    return "".join(lines) + yaml.dump(tree, Dumper=_dumper(), sort_keys=False, allow_unicode=True)


def defaults(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Returns what each setting is where nothing is said of it, by names with dots, for those that have a default.

    A setting that a file of an older version lacks had that value, as far as it had any.

    Arguments:
        settings: What `to_yaml` writes; of an operator or a sampler the arguments are settings.
        prefix: What the names begin with.
    """
    found: dict[str, Any] = {}
    usual = _usual_arguments(type(settings))
    for key, value in (_arguments(settings) or {}).items():
        if not isinstance(value, type) and _arguments(value) is not None:
            found |= defaults(value, f"{prefix}{key}.")
        elif key in usual:
            found[f"{prefix}{key}"] = _plain(usual[key], key, [])
    return found


@cache
def _loader() -> Any:
    """Returns PyYAML's safe loader with numbers as YAML 1.2 has them, without octal ones and without dates."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    known = yaml.SafeLoader.yaml_implicit_resolvers.items()
    other = [f"tag:yaml.org,2002:{name}" for name in ("timestamp", *RESOLVERS)]
    Loader.yaml_implicit_resolvers = {first: [pair for pair in pairs if pair[0] not in other] for first, pairs in known}
    return _resolving(Loader)


@cache
def _dumper() -> Any:
    """Returns PyYAML's safe dumper, which quotes the texts that any reader, ours too, would take for something else."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    return _resolving(Dumper)


def _resolving(kind: Any) -> Any:
    for name, (pattern, first) in RESOLVERS.items():
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{name}", pattern, list(first))
    return kind


def _measure(text: str) -> None:
    """Counts the values of a text with its aliases followed, from its events: nothing is built yet."""
    import yaml

    sizes: dict[str | None, int] = {}
    anchors: list[str | None] = [None]
    counts = [0]
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise NotYaml(f"{event.anchor!r} refers to itself")
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
            raise NotYaml(f"more than {VALUES} values, or more than {DEPTH} levels of them")


def _tree_of(settings: Any, prefix: str, only_in_python: list[str]) -> dict[str, Any]:
    """Returns the fields of a dataclass; one that is of just the class that is declared is a group of settings."""
    hints, tree = get_type_hints(type(settings)), {}
    for key in (field.name for field in dataclasses.fields(settings)):
        value, name = getattr(settings, key), f"{prefix}{key}"
        declared = dataclasses.is_dataclass(value) and type(value) is hints[key]
        tree[key] = _tree_of(value, f"{name}.", only_in_python) if declared else _plain(value, name, only_in_python)
    return tree


def _plain(value: Any, name: str, only_in_python: list[str]) -> Any:
    """Returns a value as YAML has it; adds its name to the list if a file cannot say what it is."""
    if getattr(value, "shape", None) == ():
        value = value.item()  # a number of numpy's, or a tensor that is one
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):  # a subclass is not what YAML knows
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}", only_in_python) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}.{index}", only_in_python) for index, item in enumerate(value)]
    routine = inspect.isroutine(value)
    path, importable = _import_path(value if routine else type(value))
    arguments = None if routine else _arguments(value)
    if not importable or (arguments is None and not routine):
        only_in_python.append(name)
    if routine:
        return path
    if arguments is None:
        return f"<{_fingerprint(value) or path}>"
    arguments = {key: _plain(item, f"{name}.{key}", only_in_python) for key, item in arguments.items()}
    return {"class_path": path, **({"init_args": arguments} if arguments else {})}


def _import_path(value: Any) -> tuple[str, bool]:
    """Returns the shortest import path of a class or a function, and whether another process finds it there."""
    module, name = getattr(value, "__module__", None) or "builtins", value.__qualname__
    parts = module.split(".")
    owners = [".".join(parts[: count + 1]) for count in range(len(parts))]
    # torch's own functions say that they are methods of a class without a module.
    for owner, path in [*((owner, name) for owner in owners), ("torch", value.__name__)]:
        found: Any = sys.modules.get(owner)
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is value:
            return f"{owner}.{path}", owner != "__main__"
    return f"{module}.{name}", False


def _arguments(value: Any) -> dict[str, Any] | None:
    """Returns the arguments that make an object again, defaults and all; None where they are not known."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    given = getattr(value, "_arguments", None)
    if given is None:
        return None
    bound = inspect.signature(type(value).__init__).bind(value, *given[0], **given[1])
    bound.apply_defaults()
    return {key: item for key, item in bound.arguments.items() if item is not value}


def _usual_arguments(kind: type) -> dict[str, Any]:
    """Returns the arguments that a class has by default."""
    if not dataclasses.is_dataclass(kind):
        parameters = inspect.signature(kind).parameters.items()
        return {key: item.default for key, item in parameters if item.default is not item.empty}
    factories = {item.name: item.default_factory for item in dataclasses.fields(kind) if callable(item.default_factory)}
    constants = {item.name: item.default for item in dataclasses.fields(kind)}
    made = {key: factory() for key, factory in factories.items()}
    return {key: value for key, value in {**constants, **made}.items() if value is not dataclasses.MISSING}


def _fingerprint(value: Any) -> str | None:
    """Returns what tells one array from another; None if it is none."""
    if not hasattr(value, "__array__"):
        return None
    import torch

    tensor = torch.as_tensor(value).detach().cpu().contiguous()
    return f"{show(tensor)} with the checksum {zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()):08x}"


def _find_doubled_keys(node: Any, prefix: str, found: list[str], seen: set[int]) -> None:
    """Collects the keys that stand twice, in order, with their lines; an alias is the node that it names."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    names: set[str] = set()
    for item in node.value if isinstance(node.value, list) else []:
        key, value = item if isinstance(item, tuple) else (None, item)
        if key is not None and isinstance(key.value, str):
            if key.value in names:
                found.append(f"{prefix}{key.value} again in line {key.start_mark.line + 1}")
            names.add(key.value)
        _find_doubled_keys(value, f"{prefix}{key.value}." if key is not None else prefix, found, seen)
