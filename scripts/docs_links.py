"""A hook of mkdocs: links out of docs/, which serve readers of the repository, are plain text on the site.

And where a page asks for the help of a command, `<!-- emfast train --help -->`, stands what that prints.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

PAGES = Path(__file__).parent.parent / "emfast" / "commands" / "pages"
HELP = re.compile(r"<!-- emfast (\w+) --help -->")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s:#]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Returns the text of a page with the help it asks for, and without the links that the site cannot follow."""
    depth = len(PurePosixPath(page.file.src_uri).parent.parts)

    def inside(link: re.Match[str]) -> str:
        ups = sum(part == ".." for part in PurePosixPath(link[2]).parts)
        return link[0] if ups <= depth else link[1]

    return HELP.sub(printed, LINK.sub(inside, markdown))


def printed(asked: re.Match[str]) -> str:
    """Returns the pages of help of a command, as they are."""
    paths = [PAGES / f"{asked[1]}.txt", *sorted(PAGES.glob(f"{asked[1]}.*.txt"))]
    return "\n\n".join(f"```text\n{path.read_text(encoding='utf-8')}```" for path in paths)
