"""`emfast report`: the tables, pictures and the page of runs, from their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emfast.commands.display import plain_console
from emfast.commands.files import gather
from emfast.reporting import advice, draw_run, first_and_last, metrics_table, read_metrics, write_report


@dataclass
class Options:
    """The tables, pictures and the page of a run, or of several side by side.

    Args:
        runs: Output folders of `emfast train`, finished or not, or of `emfast restore`; several share the page.
        output: The page; report.html in the folder of the first by default.
    """

    runs: list[str]
    output: str | None = None


arrange = gather


def run(options: Options, yaml: str) -> None:
    """Draws the pictures again, prints the tables and writes the page.

    Arguments:
        options: The runs.
        yaml: The options as text.
    """
    console = plain_console()
    for folder in options.runs:
        if (Path(folder) / "metrics.json").is_file() and not (Path(folder) / "metrics.jsonl").is_file():
            continue  # of `emfast restore`, which has drawn its picture
        rows = read_metrics(folder)
        console.print(metrics_table(rows), soft_wrap=True)
        console.print("\n".join([first_and_last(rows), *filter(None, [advice(rows)])]), soft_wrap=True)
        console.print(f"Picture: {draw_run(folder)}", soft_wrap=True)
    console.print(f"Report:  {write_report(options.runs, options.output)}", soft_wrap=True)
