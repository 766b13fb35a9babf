"""The help of every command: in step with the options, in pages, and there before anything heavy is imported."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from emfast.cli import main
from emfast.commands import COMMANDS, EXAMPLES
from emfast.commands.completion import BASH, ZSH, candidates
from emfast.commands.help import PAGES, page, pages

HEAVY = {"torch", "numpy", "diffusers", "transformers", "accelerate", "huggingface_hub", "requests", "rich"}
MODULES = 200  # Python has 40 of its own when it starts, and torch brings 1,500


@pytest.mark.parametrize("command", COMMANDS)
def test_the_pages_are_those_of_the_options(command):
    written = {path.stem: path.read_text() for path in PAGES.glob("*.txt") if path.stem.split(".")[0] == command}
    assert pages(command) == written, "run `make help`"


def test_there_is_no_page_of_another_command():
    assert {path.stem.split(".")[0] for path in PAGES.glob("*.txt")} == set(COMMANDS) == set(EXAMPLES)


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.txt")), ids=lambda path: path.stem)
def test_a_page_can_be_read(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 100
    assert max(len(line) for line in lines if not line.startswith("  --")) <= 80
    assert "<" not in path.read_text()  # of a type or a default that was not written for readers


def test_help_imports_nothing_heavy():
    """Nor do mistakes in the name of a command, and the words that a shell asks for."""
    argvs = [[command, "--help"] for command in COMMANDS] + [["train", "--help", "all"], ["train", "--m_step.help"]]
    argvs += [["trian"], ["completion", "zsh"], ["completion", "bash", "train", "--pre"]]
    code = f"""if True:
        import json, sys
        from emfast.cli import main
        codes = [main(argv) for argv in {argvs}]
        print(json.dumps([codes, sorted(sys.modules)]), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    codes, modules = json.loads(done.stderr.splitlines()[-1])
    assert codes == [0 if argv != ["trian"] else 2 for argv in argvs]
    assert not HEAVY & set(modules)
    assert len(modules) < MODULES


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["train", "--help"], ["--preset tiny | small | paper", "--m_step.help"]),
        (["train", "--rounds", "2", "-h"], ["--preset tiny | small | paper"]),
        (["train", "--m_step.help"], ["--m_step.learning_rate NUMBER"]),
        (["train", "--help", "all"], ["--preset tiny", "--m_step.learning_rate", "--network.channels [N,...]"]),
        (["train", "--operator.help", "Mask"], ["--operator.missing NUMBER"]),
        (["train", "--operator.help"], ["GaussianBlur"]),
        (["evaluate", "--help"], ["A set is anything"]),
    ],
)
def test_what_is_asked_for_is_shown(argv, shown, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in shown)


def test_nothing_is_asked_for():
    for argv in (["info"], ["train", "--config", "x.yaml"], ["train", "help"]):
        assert page(argv) is None


def test_a_group_that_does_not_exist(capsys):
    assert main(["train", "--m_stp.help"]) == 2
    assert capsys.readouterr().err.startswith("emfast train: expected an option that exists")


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        (["tr"], ["train"]),
        (["--h"], ["--help"]),
        (["train", "--pre"], ["--preset", "--precision"]),
        (["train", "--preset", ""], ["tiny", "small", "paper"]),
        (["train", "--switch", ""], ["true", "false"]),
        (["train", "--m_step.no"], ["--m_step.noise_levels", "--m_step.noise_mean", "--m_step.noise_std"]),
        (["train", "--sampler", "D"], ["DAPS", "DiffPIR", "DPS"]),
        (["evaluate", "--features", "in"], ["inception"]),
        (["train", "--output", ""], []),  # where a file may stand the shell proposes files
        (["report", ""], []),
        (["no_such_command", "--"], []),
    ],
)
def test_completion_proposes(words, proposed):
    assert candidates(words) == proposed


def test_completion_proposes_every_command_and_every_option():
    assert set(candidates([""])) >= set(COMMANDS)
    options = candidates(["restore", "-"])
    assert {"--help", "--config", "--observations", "--samples", "--sampler"} <= set(options)


@pytest.mark.parametrize(("shell", "script"), [("bash", BASH), ("zsh", ZSH)])
def test_completion_in_a_shell(shell, script, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == script
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "emfast").write_text(f'#!/bin/sh\nexec {sys.executable} -m emfast "$@"\n')
    (tmp_path / "emfast").chmod(0o755)
    ask = {
        "bash": 'COMP_WORDS=(emfast train --preset ""); COMP_CWORD=3; _emfast; echo "${COMPREPLY[@]}"',
        "zsh": 'compadd() { shift; echo "$@"; }; words=(emfast train --preset ""); CURRENT=4; _emfast',
    }[shell]
    prelude = {"bash": "", "zsh": "compdef() { :; };"}[shell]
    command = [path, "-c", f'{prelude} eval "$(emfast completion {shell})"; {ask}']
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["tiny", "small", "paper"]
