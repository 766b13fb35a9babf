"""Which operator and sampler a command line asks for.

jsonargparse hands the options of one class on to the next of the same key: a sampler named on the command line would
take the `steps` of the default one, or of the config's. Here the last one named starts from its own defaults.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from emfast.commands.values import check_class, check_config, load_yaml
from emfast.samplers import default_sampler

CLASSES = {"operator": "emfast.operators", "sampler": "emfast.samplers"}


class CommandLine:
    """The words after the name of a command, and the config files among them, before they are parsed.

    Arguments:
        argv: The words.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.arguments = _split(argv)
        self.configs = [_read(value) if flag == "--config" else None for flag, value in self.arguments]

    def check(self, function: str) -> None:
        """Raises a ValueError unless config files hold options, and what is given for operator and sampler may be one.

        Arguments:
            function: The command.
        """
        for (flag, value), config in zip(self.arguments, self.configs, strict=True):
            if flag == "--config" and value is not None and not value.startswith("{"):
                check_config(function, value)
            for key in CLASSES:
                check_class(function, key, (config or {}).get(key))
                if flag == f"--{key}" and value is not None:
                    check_class(function, key, _loaded(value) if value[:1] in ("{", "[") else value)

    def mentions(self, key: str) -> bool:
        """Returns whether an option, or one of its parts, is given."""
        flags = (flag or "" for flag, _ in self.arguments)
        given = any(flag == f"--{key}" or flag.startswith(f"--{key}.") for flag in flags)
        return given or any(config.get(key) is not None for config in self.configs if config)

    def value(self, *path: str) -> Any:
        """Returns the value of an option, the last one given; None if none is.

        Arguments:
            path: Its name, or those of its group and of it.
        """
        found = None
        for (flag, value), config in zip(self.arguments, self.configs, strict=True):
            tree: Any = config if flag == "--config" else {}
            if flag == f"--{'.'.join(path)}":
                tree = {path[-1]: value} if len(path) == 1 else {path[0]: {path[-1]: value}}
            elif len(path) > 1 and flag == f"--{path[0]}":
                tree = {path[0]: _loaded(value)}
            for name in path:
                tree = tree.get(name, ...) if isinstance(tree, dict) else ...
            found = found if tree is ... else tree
        return None if found == "null" else found

    def first(self) -> str | None:
        """Returns the first word that belongs to no flag."""
        return next((value for flag, value in self.arguments if flag is None), None)


def choose_classes(line: CommandLine, operator: dict[str, Any] | None) -> tuple[dict[str, str], list[str]]:
    """Returns the class path chosen for each key, and the command line without what it overrides in config files.

    Names that do not exist are left to the parser, which has the sentence for them. Without a sampler it is the
    operator's default one.

    Arguments:
        line: The command line after the name of the command.
        operator: The operator where none is named.
    """
    arguments, configs = line.arguments, line.configs
    named = {key: name for key in CLASSES for flag, name in arguments if flag == f"--{key}"}
    last = {key: _name(config[key]) for config in configs if config for key in CLASSES if key in config}
    chosen = {key: path for key, name in (last | named).items() if (path := _path(key, name))}
    if "sampler" not in last | named:
        usual = (operator or {}).get("class_path", "emfast.operators.Operator")
        module, _, name = chosen.get("operator", usual).rpartition(".")
        kind = type(default_sampler(getattr(importlib.import_module(module), name)))
        chosen["sampler"] = f"{CLASSES['sampler']}.{kind.__name__}"
    result: list[str] = []
    for (flag, value), config in zip(arguments, configs, strict=True):
        paths = {key: _path(key, _name(config[key])) for key in named if config and key in config}
        other = [key for key, path in paths.items() if path and path != chosen.get(key)]
        if config and other:
            kept = {key: setting for key, setting in config.items() if key not in other}
            value = json.dumps(kept)
        result += [part for part in (flag, value) if part is not None]
    return chosen, result


def _split(argv: Sequence[str]) -> list[tuple[str | None, str | None]]:
    """Returns the flags with their values; a flag alone, or a value alone, stands beside None."""
    found: list[tuple[str | None, str | None]] = []
    for argument in argv:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            found.append((flag, value if equals else None))
        elif found and found[-1][0] is not None and found[-1][1] is None:
            found[-1] = (found[-1][0], argument)
        else:
            found.append((None, argument))
    return found


def _read(path: str | None) -> dict[str, Any] | None:
    """Returns the settings of a config file; None if it cannot be read, which is the parser's to report."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        settings = load_yaml(Path(path or "").read_text(encoding="utf-8"))
        return settings if isinstance(settings, dict) else None
    return None


def _loaded(text: str | None) -> Any:
    """Returns the value of a YAML text; None if it is none."""
    with suppress(yaml.YAMLError):
        return load_yaml(text or "")
    return None


def _name(setting: Any) -> str | None:
    """Returns the class that a setting names."""
    name = setting.get("class_path") if isinstance(setting, dict) else setting
    return name if isinstance(name, str) else None


def _path(key: str, name: str | None) -> str | None:
    """Returns the whole path of a class of ours; of another one as it is given; None if there is none."""
    if not name or name.startswith("{"):
        return None
    if hasattr(importlib.import_module(CLASSES[key]), name):
        return f"{CLASSES[key]}.{name}"
    return name if _exists(name) else None


def _exists(path: str) -> bool:
    module, _, name = path.rpartition(".")
    with suppress(ImportError, ValueError):
        return inspect.isclass(getattr(importlib.import_module(module), name, None))
    return False
