"""`emfast report`: the tables and pictures of a run, from its files."""

from __future__ import annotations

from dataclasses import dataclass

from emfast.commands.display import plain_console
from emfast.reporting import draw_run, first_and_last, metrics_table, read_metrics


@dataclass
class Options:
    """The tables and pictures of a run.

    Args:
        run: The output folder of `emfast train`, finished or not.
    """

    run: str


def run(options: Options, yaml: str) -> None:
    """Draws the pictures again and prints the table.

    Arguments:
        options: The run.
        yaml: The options as text.
    """
    rows = read_metrics(options.run)
    console = plain_console()
    console.print(metrics_table(rows))
    console.print(first_and_last(rows), soft_wrap=True)
    console.print(f"Picture: {draw_run(options.run)}", soft_wrap=True)
