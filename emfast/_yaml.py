"""Mistakes in YAML files that a loader passes over without a word."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from emfast._check import check

CLASS = ("class_path", "init_args")


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
    _visit(root, "", found, set())
    if found:
        check(False, function, str(path), "to name every key once", found[0], "Remove one of the two")
    if isinstance(root, yaml.MappingNode):
        stray = [key.value for key, _ in root.value if key.value in CLASS]
        fix = "Move it below operator or sampler, whose class it belongs to"
        check(not stray, function, str(path), "to have options at its top level", "".join(stray[:1]), fix)


def _visit(node: Any, prefix: str, found: list[str], seen: set[int]) -> None:
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
        _visit(value, f"{prefix}{key.value}." if key is not None else prefix, found, seen)
