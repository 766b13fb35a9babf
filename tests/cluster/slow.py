"""A sampler that takes its time, so that others can join, and one can be stopped in the middle."""

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
    """

    pause: float = 0.0
    note: str = ""

    def __call__(self, denoiser, y, operator, **rest):
        """Waits and samples."""
        import os

        (Path(self.note) / str(os.getpid())).touch()
        time.sleep(self.pause)
        return super().__call__(denoiser, y, operator, **rest)
