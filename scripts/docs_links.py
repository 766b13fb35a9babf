"""A hook of mkdocs: links out of docs/, which serve readers of the repository, are plain text on the site."""

import re
from pathlib import PurePosixPath
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s:#]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Returns the text of a page without the links that the site cannot follow."""
    depth = len(PurePosixPath(page.file.src_uri).parent.parts)

    def inside(link: re.Match[str]) -> str:
        ups = sum(part == ".." for part in PurePosixPath(link[2]).parts)
        return link[0] if ups <= depth else link[1]

    return LINK.sub(inside, markdown)
