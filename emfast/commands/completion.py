"""`emfast completion`: what bash and zsh need to complete commands and options."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from emfast.commands import COMMANDS
from emfast.commands.help import page

BASH = """\
_emfast() {
    local IFS=$'\\n'
    COMPREPLY=($(emfast completion bash "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o bashdefault -o default -F _emfast emfast
"""
ZSH = """\
#compdef emfast
_emfast() {
    local -a found
    found=(${(f)"$(emfast completion zsh "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( $#found )); then compadd -- $found; else _files; fi
}
if [[ $funcstack[1] == _emfast ]]; then _emfast "$@"; else compdef _emfast emfast; fi
"""


@dataclass
class Options:
    """Prints a script that lets a shell complete commands, options and their values.

    The script asks this command for the words that may come next: it never has to be made anew.

    Args:
        shell: bash or zsh.
        words: Print instead what may stand in the place of the last of these words behind `emfast`, one a line.
    """

    shell: Literal["bash", "zsh"]
    words: list[str] = field(default_factory=list)


def arrange(argv: list[str]) -> list[str]:
    """Returns a command line with all words behind the shell as one list: they are not for this command.

    Arguments:
        argv: The words after `emfast completion`.
    """
    return argv if len(argv) < 2 or argv[1] == "--words" else [argv[0], "--words", json.dumps(argv[1:])]


def run(options: Options, yaml: str) -> None:
    """Prints the script, or the candidates.

    Arguments:
        options: For which shell.
        yaml: The options as text.
    """
    if options.words:
        print("\n".join(candidates(options.words)))
    else:
        print({"bash": BASH, "zsh": ZSH}[options.shell], end="")


def candidates(words: Sequence[str]) -> list[str]:
    """Returns what may stand in the place of the last word, as the help has it; nothing where a file may.

    Arguments:
        words: The words behind `emfast`, the last of which has been begun, or is empty.
    """
    *before, last = words
    if not before:
        found = [*COMMANDS, "--help", "--version"]
    else:
        known = _values(page([before[0], "--help", "all"]) or "")
        found = known.get(before[-1], []) or [*known] * last.startswith("-")
    return [word for word in found if word.startswith(last)]


def _values(text: str) -> dict[str, list[str]]:
    """Returns the options in a text of help, each with the values that it names."""
    found: dict[str, list[str]] = {}
    for entry in re.findall(r"^  (--?\w.*(?:\n {24}.*)*)", text, re.MULTILINE):
        label, about = re.split(r"  +|\n", entry, maxsplit=1)
        for name, values in re.findall(r"(--[\w.]+) ?(.*)", label):
            classes = re.search(r"One of (.*), or an import path", " ".join(about.split()))
            found[name] = classes[1].split(", ") if classes else re.findall(r"(?:^|\| )([a-z][\w-]*)", values)
    return found
