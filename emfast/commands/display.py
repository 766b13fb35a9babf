"""What a long command shows while it works: bars and a growing table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from emfast.reporting import cells, columns_of_run, metrics_table

INTERVAL = 10.0  # seconds between two plain lines of a phase


def plain_console() -> Console:
    """Returns a console for standard output that prints texts as they are: paths may hold what looks like markup."""
    return Console(highlight=False, markup=False, emoji=False)


class Display:
    """A context that shows progress and rounds.

    Arguments:
        rows: Rounds that were finished before, for the table; shown with the first thing that happens.
        console: Where to show it; standard output by default.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]] = (), console: Console | None = None) -> None:
        self.console = console or plain_console()
        self.rows = [dict(row) for row in rows]
        self.live = self.console.is_terminal
        self.shown = False
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True),
            console=self.console,
        )
        self.task: tuple[str, Any] | None = None
        self.screen = Live(console=self.console, refresh_per_second=4)
        self.start = self.last = 0.0
        self.skipped = 0

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live and self.shown:
            self._clear()
            self._draw()
            self.screen.stop()

    def show(self) -> None:
        """Shows the earlier rounds, if that has not been done."""
        if self.shown:
            return
        self.shown = True
        if self.live:
            self.screen.start()
            self._draw()
            return
        for row in self.rows:
            self._line(row)

    def advance(self, label: str, done: int, total: int) -> None:
        """Shows that `done` of `total` steps of a piece of work are done; a new label is a new piece.

        Arguments:
            label: What is worked at.
            done, total: Steps.
        """
        self.show()
        if self.live:
            self._bar(label, done, total)
        else:
            self._plain(label, done, total)

    def row(self, row: Mapping[str, Any]) -> None:
        """Shows a finished round."""
        self.show()
        known = [old for old in self.rows if old["round"] != row["round"]]
        self.rows = [*known, dict(row)]
        if self.live:
            self._clear()
            self._draw()
        else:
            self._line(row)

    def _draw(self) -> None:
        self.screen.update(Group(*([metrics_table(self.rows)] if self.rows else []), self.progress), refresh=True)

    def _clear(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task[1])
            self.task = None

    def _bar(self, label: str, done: int, total: int) -> None:
        if self.task is None or self.task[0] != label:
            self._clear()
            self.task = (label, self.progress.add_task(label, total=total, completed=done))
        self.progress.update(self.task[1], completed=done, total=total)

    def _plain(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self.task is None or self.task[0] != label:
            self.task = (label, None)
            self.start = self.last = now
            self.skipped = done  # what an interrupted run had done already does not count for the rate
        if done < total and now - self.last < INTERVAL:
            return
        self.last = now
        rate = (done - self.skipped) / max(now - self.start, 1e-9)
        left = (
            f"{_clock((total - done) / rate)} left" if done < total and rate > 0 else f"in {_clock(now - self.start)}"
        )
        speed = f"{rate:.1f}/s" if done > self.skipped else ""
        self._print(f"{label:<28} {done:>7}/{total:<7} {speed:>10}  {left}")

    def _line(self, row: Mapping[str, Any]) -> None:
        """One line of the table; the head comes before the first."""
        columns = columns_of_run([row])
        widths = [max(len(heading), 10 if key == "network_evaluations" else 8) for heading, key, _ in columns]
        if row is self.rows[0] or len(self.rows) == 1:
            self._print(" ".join(f"{heading:>{width}}" for (heading, _, _), width in zip(columns, widths, strict=True)))
        self._print(" ".join(f"{cell:>{width}}" for cell, width in zip(cells(row, columns), widths, strict=True)))

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False)
        self.console.file.flush()


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="cyan")


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
