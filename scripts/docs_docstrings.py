"""An extension of griffe, which reads docstrings for the site: what they have of reStructuredText becomes Markdown."""

import re
import textwrap
from typing import Any

import griffe

MATH = re.compile(r"^\.\. math:: *(.*(?:\n {4}.*)*)", re.MULTILINE)
SHARED = re.compile(r"^Its methods take:\n((?: {4}.*(?:\n|$))*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Formulas are set as they are written, and the arguments that methods share as a list."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of an object.

        Arguments:
            obj: The object, as griffe has read it.
        """
        if obj.docstring:
            text = MATH.sub(lambda found: f"```text\n{textwrap.dedent(found[1]).strip()}\n```", obj.docstring.value)
            obj.docstring.value = SHARED.sub(listed, text)


def listed(found: re.Match[str]) -> str:
    """Returns arguments as a list of Markdown.

    Arguments:
        found: The section of a docstring.
    """
    entries = re.sub(r"^ {4}([\w, ]+): ", r"- `\1`: ", found[1], flags=re.MULTILINE)
    return f"Its methods take:\n\n{re.sub(r'^ {8}', '  ', entries, flags=re.MULTILINE)}"
