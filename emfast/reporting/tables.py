"""Tables for papers: Markdown and LaTeX."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from emfast._check import check, message

ALWAYS = ("PSNR", "SSIM")  # columns of every table
Columns = Sequence[tuple[str, Sequence[str]]]
SPECIAL = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
SPECIAL |= {"^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "\\": r"\textbackslash{}"}


def read_rows(path: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV file by the names in its first line.

    Arguments:
        path: The file.
    Returns:
        The rows.
    Raises:
        ValueError: If it is none, or a row has more cells than names.
    """
    check(Path(path).is_file(), "evaluate", path, "to be a CSV file", "nothing there")
    try:
        rows = list(csv.DictReader(Path(path).read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(message("evaluate", path, "to be a CSV file", type(error).__name__)) from error
    good = bool(rows) and all(None not in row and "method" in row for row in rows)
    check(good, "evaluate", path, "to begin with the names of its columns, method first", "others")
    return [{key: value or "-" for key, value in row.items()} for row in rows]


def columns_of(rows: Sequence[Mapping[str, str]], usual: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Returns the columns of a table of rows; what a row does not have is a dash.

    Arguments:
        rows: Cells by heading.
        usual: Headings in their order; those of ALWAYS are there in any case.
    Returns:
        The heading and the cells of each column.
    """
    first = dict.fromkeys(key for row in rows for key in row if key.startswith(("method", "images")))
    rest = dict.fromkeys(key for row in rows for key in row if key not in usual)
    usual = [name for name in usual if name in ALWAYS or any(name in row for row in rows)]
    return [(name, [row.get(name, "-") for row in rows]) for name in {**first, **dict.fromkeys(usual), **rest}]


def to_markdown(columns: Columns) -> str:
    """Returns a table in Markdown.

    Arguments:
        columns: The heading and the cells of each.
    Returns:
        The text, without a newline at its end.
    """
    rows = [[heading for heading, _ in columns], ["---", *["---:"] * (len(columns) - 1)]]
    rows += [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)


def to_latex(columns: Columns) -> str:
    """Returns a table in LaTeX, with the lines of the package booktabs.

    Arguments:
        columns: The heading and the cells of each.
    Returns:
        The text, without a newline at its end.
    """
    head = " & ".join(_escaped(heading) for heading, _ in columns)
    body = [" & ".join(map(_escaped, row)) for row in zip(*(cells for _, cells in columns), strict=True)]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule", rf"{head} \\", r"\midrule"]
    return "\n".join([*lines, *(rf"{row} \\" for row in body), r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    return "--" if text == "-" else "".join(SPECIAL.get(letter, letter) for letter in text)
