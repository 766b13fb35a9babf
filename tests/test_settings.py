"""Trees of settings become typed objects, or one sentence."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from tiny_run import one_sentence

from emfast._settings import Word, join, read_settings
from emfast._yaml import NotYaml, load_yaml
from emfast.commands.parser import parse
from emfast.config import Config
from emfast.operators import Identity, Operator


@dataclass
class Group:
    rate: float = 0.5
    names: list[str] = field(default_factory=list)


@dataclass
class Options:
    count: int
    group: Group = field(default_factory=Group)
    operator: Operator | None = None
    kind: int | Literal["auto"] = "auto"
    pair: tuple[int, float] = (1, 2.0)
    table: dict[str, float] = field(default_factory=dict)
    path: Path | None = None
    flag: bool = False


class Inner(Identity):
    def __init__(self, factor: float = 2.0):
        self.factor = factor


class Outer(Inner):
    """Hands on what it does not know."""

    def __init__(self, other: Operator | None = None, **others):
        super().__init__(**others)
        self.other = other


@pytest.mark.parametrize(
    ("tree", "name", "value"),
    [
        ({"kind": 3}, "kind", 3),
        ({"kind": Word("3")}, "kind", 3),
        ({"kind": Word("auto")}, "kind", "auto"),
        ({"pair": [3, 4]}, "pair", (3, 4.0)),
        ({"table": {"a": 1}}, "table", {"a": 1.0}),
        ({"table": Word("{a: 1e-3}")}, "table", {"a": 1e-3}),
        ({"path": "a/b"}, "path", Path("a/b")),
        ({"path": Word("null")}, "path", None),
        ({"flag": Word("true")}, "flag", True),
        ({"group": {"rate": 1, "names": ["1"]}}, "group", Group(1.0, ["1"])),
        ({"group": Word("{rate: 2}")}, "group", Group(2.0)),
    ],
)
def test_values(tree, name, value):
    found = getattr(read_settings(Options, {"count": 1, **tree}, "f"), name)
    assert found == value
    assert type(found) is type(value)


def test_classes():
    inner = {"class_path": "test_settings.Inner", "init_args": {"factor": 3}}
    tree = {"class_path": "test_settings.Outer", "init_args": {"factor": 4, "other": inner}}
    made = read_settings(Options, {"count": 1, "operator": tree}, "f").operator
    assert (type(made), made.factor, type(made.other), made.other.factor) == (Outer, 4.0, Inner, 3.0)


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({}, "f: expected 'count' to be given, got nothing."),
        ({"count": True}, "f: expected count to be a whole number, got True."),
        (
            {"count": 1, "kind": "aut"},
            "f: expected kind to be a whole number or 'auto', got aut. The nearest is 'auto'.",
        ),
        ({"count": 1, "pair": [1]}, "f: expected pair to be a list of which each is a whole number, got [1]."),
        ({"count": 1, "group": 3}, "f: expected group to be a group of options, got 3."),
        ({"count": 1, "rate": 3}, "f: expected a config key that exists, got 'rate'. The nearest is 'group.rate'."),
        (
            {"count": 1, "operator": 3},
            "f: expected operator to name a class, got 3. Write its name, or the import path of your own, as in"
            " my_file.MyClass.",
        ),
    ],
)
def test_mistakes(tree, sentence):
    with pytest.raises(ValueError, match=r"^f: ") as error:
        read_settings(Options, tree, "f")
    assert str(error.value) == sentence


@pytest.mark.parametrize("operator", ["5", "[1]", "true", "{class_path: 5}", "{init_args: 5}"])
def test_what_names_no_class(operator):
    for argv in (["train"], ["restore", "x", "--images", "sample:test"], ["restore", "x", "--observations", "y.npz"]):
        from emfast.commands import restore

        options = Config if argv[0] == "train" else restore.Options
        with pytest.raises(ValueError, match="operator") as error:
            parse(argv[0], options, [*argv[1:], "--operator", operator])
        assert one_sentence(str(error.value))


def test_the_arguments_of_another_class_are_dropped():
    first = {"operator": {"class_path": "Mask", "init_args": {"missing": 0.2}}}
    for then, kept in (("Mask", True), ("emfast.operators.Mask", True), ("Identity", False)):
        assert bool(join(Options, first, {"operator": then})["operator"]["init_args"]) == kept
    assert join(Options, first, {"operator": {"box": 3}})["operator"]["init_args"] == {"missing": 0.2, "box": 3}


def test_yaml():
    assert load_yaml("[1e-3, 1., .5, -.inf, 1e5, 2026-01-01, 1:30, no]") == [
        1e-3, 1.0, 0.5, -float("inf"), 1e5, "2026-01-01", 90, False,
    ]  # fmt: skip
    for text in ("a: [", "&a [*a]", "[" * 60, "1" * 5000):
        with pytest.raises(NotYaml):
            load_yaml(text)


@pytest.mark.parametrize("argv", [["--operator.help"], ["--operator.help", "Mask"], ["--sampler.help=DPS"]])
def test_help_of_a_class(argv, capsys):
    with pytest.raises(SystemExit):
        parse("train", Config, argv)
    assert ("--operator.missing" in capsys.readouterr().out) == ("Mask" in argv)
