"""The help of the commands, in pages that are written beforehand: to read one imports nothing of what it is about.

`python -m emfast.commands.help` writes them from the docstrings of the options; `make help` runs it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from emfast._classes import Argument, alternatives, arguments, base_of, class_at, is_group, subclasses
from emfast._settings import unknown
from emfast.commands import COMMANDS, EXAMPLES

PAGES = Path(__file__).with_name("pages")
COLUMN, WIDTH = 24, 80  # where it begins to be said what an option is, and where lines end at the latest
TYPES: dict[Any, str] = {str: "TEXT", int: "N", float: "NUMBER", bool: "true | false", type(None): "null"}


def page(argv: Sequence[str]) -> str | None:
    """Returns the help that a command line asks for: by `--help`, `--help all`, or that of a group by `--GROUP.help`.

    Arguments:
        argv: The words after `emfast`, the name of a command first.
    Returns:
        The text; None if it asks for none, or for that of a class.
    """
    command, *words = argv
    written = {path.stem: path for path in sorted(PAGES.glob("*.txt"))}
    for word, then in zip(words, (*words[1:], ""), strict=False):
        names = []
        if word in ("-h", "--help"):
            names = [name for name in written if name.split(".")[0] == command] if then == "all" else [command]
        elif word.startswith("--") and word.endswith(".help"):
            names = [f"{command}.{word[2:-5]}"]
        if names and all(name in written for name in names):
            return "\n".join(written[name].read_text(encoding="utf-8") for name in names)
    return None


def pages(command: str) -> dict[str, str]:
    """Returns the pages of a command, made from its docstrings.

    Arguments:
        command: Its name.
    Returns:
        The texts by the names of their files: first that of the command, then those of its groups of options.
    """
    options = importlib.import_module(f"emfast.commands.{command}").Options
    known = arguments(options)
    groups = {name: argument.hint for name, argument in known.items() if is_group(argument.hint)}
    words = "".join(f" {name.upper()}" for name, argument in known.items() if argument.required)
    lines = [f"usage: emfast {command}{words} [--config FILE] [--option VALUE ...]", ""]
    lines += [*_paragraphs(f"{COMMANDS[command]}.\n\n{_about(options)}"), "For example:", ""]
    lines += [f"    {line}" for line in EXAMPLES[command]]
    lines += ["", "Options:", ""]
    lines += _entry(
        "-h, --help", "Shows this help; `--help all` that of all options." if groups else "Shows this help."
    )
    lines += _entry("--config FILE", "A YAML file with any of the options.")
    lines += _entry("--print_config", "Prints the complete options as such a file, and ends.")
    lines += _entries(options, "", {name: known[name] for name in known if name not in groups})
    if groups:
        lines += ["", "Groups of options, of which these show the help:", ""]
    for name, hint in groups.items():
        lines += _entry(f"--{name}.help", _summary(hint))
    found = {command: "\n".join(lines) + "\n"}
    for name, hint in groups.items():
        parts = [*_paragraphs(inspect.getdoc(hint) or ""), *_entries(hint, f"{name}.", arguments(hint))]
        found[f"{command}.{name}"] = "\n".join(parts) + "\n"
    return found


def help_of_class(base: Any, key: str, name: str | None, function: str) -> str:
    """Returns the help of a class that an option names, or of all that it may name.

    Arguments:
        base: The class of which the option names a subclass.
        key: The option, without its dashes.
        name: The name or the import path of the class; None for the list of those of emfast.
        function: The command, for the sentence of an error.
    Raises:
        ValueError: If there is no such class.
    """
    if name is None:
        lines = [_entry(each, _summary(kind)) for each, kind in subclasses(base).items()]
        return "\n".join(line for entry in lines for line in entry)
    kind = class_at(base, name)
    if kind is None:
        raise ValueError(unknown(function, f"a class for {key}", name, subclasses(base)))
    return "\n".join([*_paragraphs(inspect.getdoc(kind) or name), *_entries(kind, f"{key}.", arguments(kind))])


def _entries(kind: Any, prefix: str, known: dict[str, Argument]) -> list[str]:
    """Returns the help of arguments of a class, from its docstring."""
    lines, texts = [], _documented(kind)
    for name, argument in known.items():
        about = texts.get(name, "")
        if base := base_of(argument.hint):
            names = ", ".join(subclasses(base))
            about += f" One of {names}, or an import path; --{prefix}{name}.help NAME says more."
        if argument.required and not prefix:
            lines += _entry(name.upper(), about)
        else:
            shown = "required" if argument.required else f"default: {_default(kind, name, argument)}"
            lines += _entry(f"--{prefix}{name} {_values(argument)}", f"{about} ({shown})")
    return lines


def _entry(label: str, text: str) -> list[str]:
    """Returns the lines of one option."""
    whole = re.sub(r"\(default: (\S+)\)$", "(default:\0\\1)", text.strip())  # not broken between two lines
    lines = textwrap.wrap(whole, WIDTH - COLUMN, break_on_hyphens=False)
    lines = [" " * COLUMN + line.replace("\0", " ") for line in lines]
    first = f"  {label}"
    return [f"{first:<{COLUMN}}{lines[0].strip()}", *lines[1:]] if len(first) < COLUMN - 1 else [first, *lines]


def _paragraphs(text: str) -> list[str]:
    """Returns the lines of what a docstring says before its first section, with an empty one after each paragraph."""
    lines: list[str] = []
    for part in re.split(r"\n\n(?:Args|Arguments|Returns|Raises):", text)[0].split("\n\n"):
        lines += [*textwrap.wrap(" ".join(part.split()), WIDTH, break_on_hyphens=False), ""] if part.strip() else []
    return [line[:1].upper() + line[1:] if index == 0 else line for index, line in enumerate(lines)]


def _about(options: Any) -> str:
    """Returns what the docstring of options says after its first sentence and before the arguments."""
    return "\n\n".join((inspect.getdoc(options) or "").split("\n\n")[1:])


def _values(argument: Argument) -> str:
    """Returns what may be written for an argument; that it may be null is seen by a default of null."""
    names: list[str] = []
    for kind in alternatives(argument.hint):
        if get_origin(kind) in (list, tuple):
            names.append(f"[{TYPES.get(get_args(kind)[0], 'VALUE')},...]")
        elif base_of(kind):
            names.append("NAME")
        elif kind is not type(None) or argument.default is not None:
            names.append(" | ".join(map(str, get_args(kind))) or TYPES.get(kind, "VALUE"))
    return " | ".join(names)


def _default(kind: Any, name: str, argument: Argument) -> str:
    """Returns a default as YAML has it; a dataclass makes lists anew for each object."""
    made = str(argument.default) == "<factory>"
    value = kind.__dataclass_fields__[name].default_factory() if made else argument.default
    if isinstance(value, list):
        return str(value).replace(" ", "")
    return {"None": "null", "True": "true", "False": "false", "": "none"}.get(str(value), str(value))


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


def main() -> None:
    """Writes the pages of all commands anew."""
    PAGES.mkdir(exist_ok=True)
    for path in PAGES.glob("*.txt"):
        path.unlink()
    for command in COMMANDS:
        for name, text in pages(command).items():
            (PAGES / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
