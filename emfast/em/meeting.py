"""The processes of one job wait for each other on files, and notice if one dies: a barrier would wait for it for ever.

Each has a file in a folder of the job inside that of the run, which it changes every few seconds. In it a process says
how many waits it has come to; the first one, that all may go on from.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType

from emfast._check import message
from emfast.em.lease import LEFT, Lease, Shared, Watch

PREFIX = ".job-"
GRACE = 5.0  # seconds that a process has to end by itself, after another one has died
PAUSES = (0.005, 0.5)  # seconds between two looks while it waits, the shortest and the longest


class Meeting:
    """The place where the processes of a job meet; a context.

    Arguments:
        folder: The folder of the run.
        job: What tells this job from others.
        rank: The number of this process.
        world: How many there are.
    """

    def __init__(self, folder: str | os.PathLike[str], job: str, rank: int, world: int) -> None:
        self.rank, self.world, self.waits = rank, world, 0
        files = Shared(Path(folder) / f"{PREFIX}{job}")
        files.folder.mkdir(parents=True, exist_ok=True)
        self.folder = files.folder
        self.lease, self.watch = Lease(files, stall=float("inf"), name=str(rank)), Watch(files)
        self.dead: int | None = None  # a process that is known to have died
        self.ending = threading.Event()

    def __enter__(self) -> Meeting:
        self.lease.__enter__()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        if kind is not None:
            self.lease.end()
            return
        self.lease.end(LEFT)
        if self.rank == 0:
            end = time.monotonic() + GRACE
            while any(self.watch.word(str(rank)) != LEFT for rank in range(1, self.world)):
                if time.monotonic() > end:
                    return  # the next job removes it
                time.sleep(PAUSES[1])
            shutil.rmtree(self.folder, ignore_errors=True)

    def wait(self) -> None:
        """Waits until all processes have come as far.

        Raises:
            RuntimeError: If one has died.
        """
        self.waits += 1
        others = range(1, self.world) if self.rank == 0 else range(1)
        if self.rank > 0:
            self.lease.tell(self.waits)
        pause = PAUSES[0]
        for rank in others:
            while self.watch.note(str(rank)) < self.waits:
                self.check()
                time.sleep(pause)
                pause = min(1.5 * pause, PAUSES[1])
        if self.rank == 0:
            self.lease.tell(self.waits)

    def check(self) -> None:
        """Raises a RuntimeError if a process of the job has died."""
        if self.dead is not None:
            self.ending.set()
            raise RuntimeError(broken(f"process {self.dead} ended, or cut off"))

    def _watch(self) -> None:
        """Looks for dead processes, and ends this one if it does not end by itself: it may hang in a collective."""
        others = range(1, self.world) if self.rank == 0 else range(1)
        while self.dead is None:
            if self.ending.wait(self.lease.beat):
                return
            self.dead = next((rank for rank in others if self.watch.is_dead(str(rank))), None)
        if not self.ending.wait(GRACE):  # nobody is there to catch an error
            os.write(2, (broken(f"process {self.dead} ended, or cut off") + "\n").encode())
            os._exit(2)


def broken(found: str) -> str:
    """Returns the sentence about a job that cannot go on.

    Arguments:
        found: What happened.
    """
    fix = "Give the same command again, with any number of processes: it goes on from the last checkpoint"
    return message("train", "all processes of the job", "to go on", found, fix)


def remove_meetings(folder: str | os.PathLike[str]) -> None:
    """Removes what earlier jobs have left in the folder of a run; none of them goes on while this one has it."""
    for path in Path(folder).glob(f"{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
