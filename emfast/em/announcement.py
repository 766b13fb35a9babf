"""What a run says of the E-step that is going on, for processes that join it: `e_step.json` in its folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from emfast._records import read_record, write_record

NAME = "e_step.json"


@dataclass(frozen=True)
class Announcement:
    """An E-step.

    Arguments:
        round: The round whose reconstructions are made.
        phase: "warm" or "final".
        batch_size: Observations reconstructed together.
        precision: What the network computes in, "float32" or "bfloat16": it may be another one by default elsewhere.
    """

    round: int
    phase: str
    batch_size: int
    precision: str

    def write(self, run: Path) -> None:
        """Says it in the folder of a run."""
        write_record(run / NAME, dataclasses.asdict(self))

    @classmethod
    def read(cls, run: Path) -> Announcement | None:
        """Returns what the folder of a run says; None if it has said nothing yet.

        Raises:
            ValueError: If the file is damaged; it is named.
        """
        try:
            record = read_record(run / NAME, round=int, phase=str, batch_size=int, precision=str)
        except FileNotFoundError:
            return None
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})
