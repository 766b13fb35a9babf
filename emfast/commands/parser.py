"""Command lines and YAML files to options, and the mistakes in them to one sentence each."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from emfast._check import check, message
from emfast._yaml import check_yaml
from emfast.commands import COMMANDS
from emfast.commands.classes import CLASSES, CommandLine, choose_classes
from emfast.commands.values import MODE, at_home, check_kinds, check_values

DEFAULTS: dict[str, Any] = {"operator": {"class_path": "emfast.operators.Mask", "init_args": {"missing": 0.6}}}


def build(command: str, options: type, defaults: Mapping[str, Any]) -> ArgumentParser:
    """Returns the parser of a command: every field of its options is a flag and a key of `--config FILE`.

    Arguments:
        command: The name of the command.
        options: A dataclass; fields without a default are positional.
        defaults: Values by key that go before those of the dataclass.
    """
    parser = ArgumentParser(
        prog=f"emfast {command}",
        description=COMMANDS[command].capitalize() + ".",
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=MODE,
    )
    parser.add_argument("--config", action="config", help="A YAML file with any of the options below.")
    parser.add_class_arguments(options, as_positional=True)
    names = {name.split(".")[0] for name in _names(parser)}
    parser.set_defaults({key: value for key, value in defaults.items() if key in names})
    positional = "".join(f" {name.upper()}" for name in _required(parser))
    parser.usage = f"emfast {command}{positional} [--config FILE] [--option VALUE ...]"
    return parser


def parse(command: str, options: type, argv: Sequence[str]) -> tuple[Any, str]:
    """Returns the options as an instance, and as the complete YAML text that gives them again.

    Arguments:
        command: The name of the command.
        options: Its dataclass.
        argv: The command line after the name of the command.
    Raises:
        ValueError: If there is a mistake in the command line or in a config file; one sentence.
    """
    argv = [at_home(argument) for argument in argv]
    check_values(f"emfast {command}", [part for argument in argv for part in (argument, argument.partition("=")[2])])
    line = CommandLine(argv)
    line.check(f"emfast {command}")
    defaults, arguments = _defaults(command, line)
    parser = build(command, options, defaults)
    try:
        namespace = parser.parse_args(arguments)
        for key, value in list(namespace.items()):
            if isinstance(value, str):
                namespace[key] = at_home(value)
        text = parser.dump(namespace, skip_unset=False)
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(_sentence(parser, str(error), argv)) from error
    check_values(parser.prog, namespace.as_dict())
    for path in _configs(argv):
        check_yaml(path, parser.prog)
    check_kinds(parser.prog, options, namespace.as_dict())
    none = "operator" in namespace and namespace.operator is None and defaults["operator"] is not None
    check(not none, parser.prog, "operator", "to have a value", "null", "Leave it out for its default")
    try:
        values = parser.instantiate(namespace)
    except ValueError as error:
        raise ValueError(_sentence(parser, str(error), argv)) from error
    del values["config"]
    return options(**_fields(values)), text


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Returns the candidate most like a misspelt name, by itself or by its last part; None if none is like it."""
    candidates = list(candidates)
    by_name = {candidate.lower(): candidate for candidate in candidates}
    by_leaf = {candidate.lower().split(".")[-1]: candidate for candidate in reversed(candidates)}
    for table, text in ((by_name, name), (by_leaf, name.split(".")[-1])):
        found = difflib.get_close_matches(text.lower(), table, n=1, cutoff=0.6)
        if found:
            return table[found[0]]
    return None


def unknown(function: str, kind: str, name: str, candidates: Iterable[str]) -> str:
    """Returns the sentence for a name that does not exist, with the nearest one that does."""
    near = nearest(name, candidates)
    fix = f"The nearest is {near!r}" if near else f"`{function} --help` lists them"
    return message(function, kind, "that exists", repr(name), fix)


def _defaults(command: str, line: CommandLine) -> tuple[dict[str, Any], list[str]]:
    """Returns what the command line, or a run that it names, makes the defaults, and the arguments for the parser.

    The options of a class that are left out are that class's own, or those that the defaults have for it.
    """
    dependent = getattr(importlib.import_module(f"emfast.commands.{command}"), "defaults", None)
    own: dict[str, Any] = dependent(line) if dependent else {}
    defaults = DEFAULTS | own
    chosen, arguments = choose_classes(line, own.pop("usual", None) or defaults["operator"])
    for key, path in chosen.items():
        if (own.get(key) or {}).get("class_path") != path:
            defaults[key] = {"class_path": path}
    return defaults, arguments


def _fields(values: Namespace) -> dict[str, Any]:
    return {key: values[key] for key in vars(values)}


def _names(parser: ArgumentParser) -> list[str]:
    hidden = {"help", "print_config", "config"}
    return [a.dest for a in parser._actions if a.dest not in hidden and not a.dest.endswith(".help")]


def _required(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if not action.option_strings]


def _sentence(parser: ArgumentParser, text: str, argv: Sequence[str]) -> str:
    """Turns jsonargparse's report of a mistake into one sentence."""
    function = parser.prog
    if found := re.search(r"^(?:\s*- )?(\w+: expected .+)$", text, re.MULTILINE):  # a class's own, perhaps among others
        return found[1]
    keys = re.findall(r'Parser key "([^"]+)"', text)
    key = ".".join(dict.fromkeys(keys))
    if found := re.search(r"\n {2}Errors:\n {4}- (.*?)\n {4}- Expected a <class 'NoneType'>", text, re.DOTALL):
        text = found[1] if keys[0] in CLASSES else text  # of a class or null: what the class has to say
    if found := re.search(r"unrecognized arguments: (.*)", text):
        return _unrecognized(parser, (found[1].split() or [""])[0])
    if found := re.search(r"(?:Group '(?P<group>[^']+)' does not accept option|Option) '(?P<name>[^']+)'", text):
        return _unaccepted(parser, text, key, found["group"], found["name"])
    if found := re.search(r"Import path (\S*)\s*does not correspond to a subclass of (\w+)", text):
        return message(function, key, f"to be a subclass of {found[2]}", found[1] or "something else")
    if found := re.search(r"Expected a dot import path string: (\S+)", text):
        return unknown(function, f"a class for {key}", found[1], _classes(key))
    if found := re.search(r"Expected an? (.+?)\. Got value: (.*)", text, re.DOTALL):
        return message(function, key, f"to be {_type(found[1])}", found[2].strip(), _literal(found[1], found[2]))
    if found := re.search(r"Subtypes: \[(.+?)\].*Given value: (.*)", text, re.DOTALL):
        kinds = " or ".join(_type(kind) for kind in found[1].split(", "))
        return message(function, key, f"to be {kinds}", found[2].strip())
    if found := re.search(r"Problems parsing config: (.*)", text, re.DOTALL):
        return message(function, _config(argv), "to be valid YAML", _line(found[1]))
    if found := re.search(r"File does not exist: (.*)", text):
        return message(function, _config(argv), "to be a file", "nothing there", "Check the path")
    return f"{function}: {_line(text)}".rstrip(".") + "."


def _unrecognized(parser: ArgumentParser, argument: str) -> str:
    """The sentence for a flag, or a word, that the command does not know."""
    name = argument.lstrip("-").split("=")[0]
    if not argument.startswith("-"):
        return message(
            parser.prog, "a flag", "before every value", repr(argument), f"`{parser.prog} --help` lists them"
        )
    near = nearest(name, _names(parser))
    fix = f"The nearest is '--{near}'" if near else f"`{parser.prog} --help` lists them"
    return message(parser.prog, "an option", "that exists", f"'--{name}'", fix)


def _unaccepted(parser: ArgumentParser, text: str, key: str, group: str | None, name: str) -> str:
    """The sentence for a key that a group of options, or a class, does not have."""
    where = re.findall(r"class_path '([^']+)'", text)
    if where:
        owner = where[-1].split(".")[-1]
        return unknown(parser.prog, f"an option of {key} {owner}", name, _parameters(where[-1]))
    names = _names(parser)
    prefix = f"{group}." if group else ""
    near = nearest(name, [n.removeprefix(prefix) for n in names if n.startswith(prefix)])
    found = prefix + near if near else nearest(name, names)
    fix = f"The nearest is '{found}'" if found else f"`{parser.prog} --help` lists them"
    return message(parser.prog, "a config key", "that exists", f"'{prefix}{name}'", fix)


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


def _classes(key: str) -> list[str]:
    module = CLASSES.get(key.split(".")[0])
    if module is None:
        return []
    loaded = importlib.import_module(module)
    return [name for name in loaded.__all__ if inspect.isclass(getattr(loaded, name)) and name != key.capitalize()]


def _type(text: str) -> str:
    """A type as a sentence names it: `<class 'float'>` is a float, a Literal one of its values."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {found[1]}"
    return {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "NoneType": "null",
        "str": "text",
    }.get(text, text)


def _literal(kind: str, value: str) -> str | None:
    near = nearest(value.strip(), re.findall(r"'([^']+)'", kind)) if "Literal" in kind else None
    return f"The nearest is {near!r}" if near else None


def _configs(argv: Sequence[str]) -> list[str]:
    """The config files of a command line."""
    pairs = zip(argv, [*argv[1:], ""], strict=False)
    found = [after if name == "--config" else name.partition("--config=")[2] for name, after in pairs]
    return [path for path in found if path]


def _config(argv: Sequence[str]) -> str:
    """The config file of a command line, as a sentence names it."""
    return next(iter(_configs(argv)), "the config")


def _line(text: str) -> str:
    return " ".join(text.split())
