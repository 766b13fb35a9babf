"""A sampler that takes its time, so that others can join, and one can be stopped in the middle."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from emfast.samplers import DPS


@dataclass(frozen=True)
class Slow(DPS):
    """DPS that waits in every batch, and notes when it began one.

    Arguments:
        pause: Seconds of a batch.
        note: A folder: each process that has begun a batch has a file there.
        company: So many processes begin their first batch together.
    """

    pause: float = 0.0
    note: str = ""
    company: int = 1

    def __call__(self, denoiser, y, operator, **rest):
        """Waits and samples."""
        (Path(self.note) / str(os.getpid())).touch()
        end = time.monotonic() + 100
        while len(os.listdir(self.note)) < self.company and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(self.pause)
        return super().__call__(denoiser, y, operator, **rest)
