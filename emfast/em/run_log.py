"""The logs of the trainings of a run, their steps counted through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emfast._records import read_record, write_record
from emfast.em.events import TrainingLogged
from emfast.em.state import TRAINING
from emfast.em.training_log import summary

if TYPE_CHECKING:
    from emfast.em.run import Run
    from emfast.em.trainer import Trainer


class RunLog:
    """The logs of a run in this process; that of a finished training is on disk.

    Arguments:
        run: The run, begun.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def before(self, number: int) -> int:
        """Returns what to add to the steps of a round's training for those of the run; 0 if they are that already."""
        if number == 0 or self.run.config.schedule == "continuous":
            return 0
        return int(self.run.folder.rows()[number - 1].get("training_steps", 0))

    def follow(self, number: int) -> Callable[[dict[str, Any]], None]:
        """Returns a callback(row) that reports a row of the log of a round's training."""
        before = self.before(number)

        def report(row: dict[str, Any]) -> None:
            if self.run.callback is not None and self.run.processes.main:
                self.run.callback(TrainingLogged(number, {**row, "step": before + row["step"]}))

        return report

    def write(self, number: int, trainer: Trainer) -> None:
        """Writes the seconds and the log of a round's training.

        Arguments:
            number: The round.
            trainer: What has trained its model.
        """
        before = self.before(number)
        log = [{**row, "step": before + row["step"]} for row in trainer.log]
        write_record(self.run.folder.round(number) / TRAINING, {"m_step": trainer.watch.seconds, "log": log})

    def read(self, number: int) -> tuple[float, dict[str, Any]]:
        """Returns the seconds of a round's training, and what the metrics of the round tell of it."""
        path = self.run.folder.round(number) / TRAINING
        found: dict[str, Any] = {"m_step": 0.0, "log": []}
        if path.exists():
            found |= read_record(path, m_step=(int, float))
        log = found["log"]
        return found["m_step"], {"training_steps": log[-1]["step"] if log else self.before(number), **summary(log)}
