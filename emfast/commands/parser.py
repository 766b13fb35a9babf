"""Command lines to options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from emfast._check import check
from emfast._classes import arguments, base_of, is_group
from emfast._settings import Tree, Word, check_values, join, names_of, read_file, read_settings, unknown
from emfast._yaml import to_yaml
from emfast.commands.help import help_of_class

ALONE = "--print_config"  # a flag without a value


class Flag(NamedTuple):
    """A flag and its value, or a word that belongs to no flag."""

    name: str | None
    value: str | None


def parse(command: str, options: type, argv: Sequence[str]) -> tuple[Any, str]:
    """Returns the options as an instance, and as the complete YAML text that gives them again.

    Arguments:
        command: The name of the command.
        options: Its dataclass: every field is a flag and a key of `--config FILE`; without a default it is positional.
        argv: The command line after the name of the command. Flags go before config files, the last before the others.
    Raises:
        ValueError: If there is a mistake in the command line or in a config file; one sentence.
        SystemExit: With the code 0, after `--print_config` or the help of a class have printed.
    """
    function = f"emfast {command}"
    check_values(function, [part for word in argv for part in (word, word.partition("=")[2])])
    flags = _flags(argv)
    for name, value in flags:
        if name and name.endswith(".help") and (base := base_of(_hint(options, name[2:-5]))):
            print(help_of_class(base, name[2:-5], value, function))
            raise SystemExit(0)
    tree: Tree = {}
    for name, value in flags:
        if name == "--config":
            check(bool(value), function, "--config", "to be given a file", "none")
            tree = join(options, tree, read_file(value or "", options, function))
    settings = read_settings(options, join(options, tree, _line(options, flags, function)), function)
    text = to_yaml(settings)
    if any(name == ALONE for name, _ in flags):
        print(text, end="")
        raise SystemExit(0)
    return settings, text


def _flags(argv: Sequence[str]) -> list[Flag]:
    """Returns the words of a command line as flags with their values."""
    found: list[Flag] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found.append(Flag(name, value if equals else None))
        elif found and found[-1].name not in (None, ALONE) and found[-1].value is None:
            found[-1] = Flag(found[-1].name, word)
        else:
            found.append(Flag(None, word))
    return found


def _line(options: Any, flags: Sequence[Flag], function: str) -> Tree:
    """Returns the tree of a command line, without its config files."""
    tree: Tree = {}
    positional = [name for name, argument in arguments(options).items() if argument.required]
    for name, value in flags:
        if name in ("--config", ALONE):
            continue
        if name is None:
            fix = f"`{function} --help` lists them"
            check(bool(positional) and bool(value), function, "a flag", "before every value", repr(value), fix)
            name = f"--{positional.pop(0)}"
        if _hint(options, name[2:]) is None:
            raise ValueError(unknown(function, "an option", name[2:], names_of(options), "--"))
        if value is None and _hint(options, name[2:]) is bool:
            value = "true"  # the last word, or another flag behind it
        check(value is not None, function, name[2:], "to be given a value", "none")
        part: Any = Word(value)
        for key in reversed(name[2:].split(".")):
            part = {key: part}
        tree = join(options, tree, part, same=True)
    return tree


def _hint(options: Any, name: str) -> Any:
    """Returns the type of an option, or of the class that it is an argument of; None if there is no such option."""
    hint = options
    for key in name.split("."):
        if base_of(hint):
            break
        found = arguments(hint).get(key) if is_group(hint) else None
        hint = found and found.hint
    return hint
