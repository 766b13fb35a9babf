"""What a run shows: tables and pictures."""

from emfast.reporting.page import write_report
from emfast.reporting.pictures import Row, draw_rows, to_grid
from emfast.reporting.run import (
    COLUMNS,
    PREVIEW,
    Metrics,
    advice,
    cells,
    columns_of_run,
    draw_round,
    draw_run,
    draw_summary,
    first_and_last,
    metrics_table,
    plain_table,
    read_metrics,
    round_folder,
    save_grid,
)
from emfast.reporting.show import show

__all__ = [
    "COLUMNS",
    "PREVIEW",
    "Metrics",
    "Row",
    "advice",
    "cells",
    "columns_of_run",
    "draw_round",
    "draw_rows",
    "draw_run",
    "draw_summary",
    "first_and_last",
    "metrics_table",
    "plain_table",
    "read_metrics",
    "round_folder",
    "save_grid",
    "show",
    "to_grid",
    "write_report",
]
