"""Command lines to options, and the help of a command."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from emfast._check import check
from emfast._classes import Argument, alternatives, arguments, base_of, class_at, is_group, subclasses
from emfast._settings import Tree, Word, check_values, join, names_of, read_file, read_settings, unknown
from emfast._yaml import to_yaml
from emfast.commands import COMMANDS

ALONE = ("--help", "--print_config")  # flags without a value
COLUMN = 24  # where the help begins to say what an option is


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
        SystemExit: With the code 0, after `--help` or `--print_config` have printed.
    """
    function = f"emfast {command}"
    check_values(function, [part for word in argv for part in (word, word.partition("=")[2])])
    flags = _flags(argv)
    for name, value in flags:
        if name == "--help":
            print(_help(command, options))
            raise SystemExit(0)
        if name and name.endswith(".help") and base_of(_hint(options, name[2:-5])):
            print(_help_of_class(_hint(options, name[2:-5]), name[2:-5], value, function))
            raise SystemExit(0)
    tree: Tree = {}
    for name, value in flags:
        if name == "--config":
            check(bool(value), function, "--config", "to be given a file", "none")
            tree = join(options, tree, read_file(value or "", options, function))
    settings = read_settings(options, join(options, tree, _line(options, flags, function)), function)
    text = to_yaml(settings)
    if any(name == "--print_config" for name, _ in flags):
        print(text, end="")
        raise SystemExit(0)
    return settings, text


def _flags(argv: Sequence[str]) -> list[Flag]:
    """Returns the words of a command line as flags with their values."""
    found: list[Flag] = []
    for word in argv:
        if word == "-h":
            found.append(Flag("--help", None))
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            found.append(Flag(name, value if equals else None))
        elif found and found[-1].name not in (None, *ALONE) and found[-1].value is None:
            found[-1] = Flag(found[-1].name, word)
        else:
            found.append(Flag(None, word))
    return found


def _line(options: Any, flags: Sequence[Flag], function: str) -> Tree:
    """Returns the tree of a command line, without its config files."""
    tree: Tree = {}
    positional = [name for name, argument in arguments(options).items() if argument.required]
    for name, value in flags:
        if name in ("--config", *ALONE):
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


def _help(command: str, options: Any) -> str:
    """Returns the help of a command."""
    known = arguments(options)
    words = "".join(f" {name.upper()}" for name, argument in known.items() if argument.required)
    lines = [f"usage: emfast {command}{words} [--config FILE] [--option VALUE ...]", ""]
    lines += [f"{COMMANDS[command].capitalize()}.", "", "options:"]
    lines += _entry("-h, --help", "Shows this help.") + _entry("--config FILE", "A YAML file with any of the options.")
    lines += _entry("--print_config", "Prints the complete options as such a file, and ends.")
    groups = {name: argument.hint for name, argument in known.items() if is_group(argument.hint)}
    lines += _entries(options, "", {name: known[name] for name in known if name not in groups})
    for name, hint in groups.items():
        lines += _entries(hint, f"{name}.", arguments(hint))
    return "\n".join(lines)


def _help_of_class(hint: Any, key: str, name: str | None, function: str) -> str:
    """Returns the help of a class that an option names, or of all that it may name."""
    base = base_of(hint)
    if name is None:
        return "\n".join(f"  {each:<{COLUMN}}{_summary(kind)}" for each, kind in subclasses(base).items())
    kind = class_at(base, name)
    if kind is None:
        raise ValueError(unknown(function, f"a class for {key}", name, subclasses(base)))
    return "\n".join(_entries(kind, f"{key}.", arguments(kind))[1:])


def _entries(kind: Any, prefix: str, known: dict[str, Argument]) -> list[str]:
    """Returns the help of arguments of a class, from its docstring."""
    lines, texts = ["", f"{_summary(kind).rstrip('.')}:"], _documented(kind)
    for name, argument in known.items():
        about = texts.get(name, "")
        if base := base_of(argument.hint):
            about += f" One of {', '.join(subclasses(base))}, or an import path; --{prefix}{name}.help NAME says more."
        shown = "required" if argument.required else f"default: {_default(argument.default)}"
        label = f"{name.upper()}" if argument.required and not prefix else f"--{prefix}{name} {_values(argument.hint)}"
        lines += _entry(label, f"{about} ({shown})")
    return lines


def _entry(label: str, text: str) -> list[str]:
    """Returns the lines of one option."""
    lines = textwrap.wrap(text.strip(), 100 - COLUMN)
    first = f"  {label}"
    start = [] if len(first) < COLUMN - 1 else [first]
    filled = [" " * COLUMN + line for line in lines]
    return start + filled if start else [f"{first:<{COLUMN}}{lines[0]}", *filled[1:]]


def _values(hint: Any) -> str:
    """Returns what may be written for a type."""
    names = [" | ".join(map(str, get_args(kind))) or getattr(kind, "__name__", "") for kind in alternatives(hint)]
    return " | ".join("null" if name == "NoneType" else name for name in names)


def _default(value: Any) -> str:
    """Returns a default as YAML has it; a dataclass has `<factory>` in the place of a list."""
    return {"None": "null", "True": "true", "False": "false", "<factory>": "see --print_config"}.get(
        str(value), str(value)
    )


def _summary(kind: Any) -> str:
    """Returns the first sentence of a docstring."""
    return " ".join((inspect.getdoc(kind) or kind.__name__).split("\n\n")[0].split())


def _documented(kind: Any) -> dict[str, str]:
    """Returns what a docstring says of each argument."""
    found: dict[str, str] = {}
    _, _, text = (inspect.getdoc(kind) or "").partition(
        "Arguments:" if "Arguments:" in (kind.__doc__ or "") else "Args:"
    )
    for names, about in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
        found |= dict.fromkeys(names.split(", "), " ".join(about.split()))
    return found
