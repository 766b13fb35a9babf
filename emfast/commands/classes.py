"""Which operator and sampler a command line asks for.

jsonargparse hands the options of one class on to the next of the same key: a sampler named on the command line would
take the `steps` of the default one, or of the config's. Here the last one named starts from its own defaults.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from emfast.commands.values import load_yaml
from emfast.samplers import default_sampler

CLASSES = {"operator": "emfast.operators", "sampler": "emfast.samplers"}


def choose_classes(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the class path chosen for each key, and the command line without what it overrides in config files.

    Names that do not exist are left to the parser, which has the sentence for them. Without a sampler it is the
    operator's default one.

    Arguments:
        argv: The command line after the name of the command.
    """
    arguments = _split(argv)
    named = {key: name for key in CLASSES for flag, name in arguments if flag == f"--{key}"}
    configs = [_read(value) if flag == "--config" else None for flag, value in arguments]
    last = {key: _name(config[key]) for config in configs if config for key in CLASSES if key in config}
    chosen = {key: path for key, name in (last | named).items() if (path := _path(key, name))}
    if "sampler" not in last | named:
        module, _, name = chosen.get("operator", "emfast.operators.Operator").rpartition(".")
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
        return hasattr(importlib.import_module(module), name)
    return False
