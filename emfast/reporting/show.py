"""What a run in Python shows while it goes on, in lines of text."""

from __future__ import annotations

import sys

from emfast.em import Event, Predicted, Progress, RoundFinished
from emfast.reporting.run import COLUMNS, cells


def show(event: Event) -> None:
    """Prints what a run reports: `emfast.train(config, callback=emfast.reporting.show)`.

    That is the prediction, every tenth of a phase, the loss, and the metrics of each round; not every step.

    Arguments:
        event: What `emfast.train` calls its callback with.
    """
    if text := _line(event):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _line(event: Event) -> str:
    """Returns an event in a line; nothing for a step in between."""
    if isinstance(event, Predicted):
        return str(event)
    if isinstance(event, Progress):
        tenth = event.done * 10 // event.total > (event.done - 1) * 10 // event.total
        return f"round {event.round}: {event.phase} {event.done}/{event.total}" if tenth else ""
    if isinstance(event, RoundFinished):
        named = zip(COLUMNS, cells(event.row), strict=True)
        known = [f"{heading} {cell}" for (heading, *_), cell in named if cell != "-"]
        return ", ".join(known)
    speed = event.row["images_per_second"]
    return f"round {event.round}: step {event.row['step']}, loss {event.row['loss']:.4g}, {speed:.0f} images/s"
