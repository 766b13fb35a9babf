"""Who is alive among processes that share a folder: each changes a file of its own, the others watch it change.

On many shared file systems the system's locks hold on one machine only, the clocks of machines differ, and what one
writes another may list seconds later. So this trusts two things, which NFS and Lustre promise: of several that create
one file, one does; and a file that is opened has what was written before it was closed. How long something has not
changed is measured by the watcher's own clock.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from emfast._process import identity, is_gone

BEAT = 5.0  # seconds between two changes
PATIENCE = 9 * BEAT  # without one, a process is taken for dead
STALL = 900.0  # seconds without progress after which a process stops to say that it is alive
LOOKS = 3  # without a change, a beat apart: after a pause of the file system itself all are seen to stand still once
ENDED, LEFT = "ended", "left"


class Files(Protocol):
    """What the protocol asks of a shared folder: `Shared`, or the one in memory of `benchmarks/scale.py`.

    Its methods take:
        name: The name of the file in the folder.
        text: What it is to hold.
    """

    def create(self, name: str, text: str) -> bool:
        """Creates a file; of all who try, on any machine, one is told that it did."""

    def write(self, name: str, text: str) -> None:
        """Writes over a file, of the same length, that no other process writes to."""

    def read(self, name: str) -> str | None:
        """Returns what a file holds now; None if it is not there."""

    def names(self) -> list[str]:
        """Returns the files that there were, some seconds ago at most."""


def refresh(folder: str | os.PathLike[str]) -> None:
    """Makes this machine see a shared folder as it is: one that it has changed itself it asks for anew."""
    with suppress(OSError):
        os.utime(folder)


class Shared:
    """A folder on a file system that machines may share.

    Arguments:
        folder: The folder. In one that is not there nothing is created, and nothing is found.

    Its methods take:
        name, text: As of `Files`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def create(self, name: str, text: str) -> bool:
        """See `Files`."""
        try:
            descriptor = os.open(self.folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except (FileExistsError, FileNotFoundError):
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        return True

    def write(self, name: str, text: str) -> None:
        """See `Files`."""
        with open(self.folder / name, "r+") as file:
            file.write(text)

    def read(self, name: str) -> str | None:
        """See `Files`."""
        try:
            return (self.folder / name).read_text(errors="replace")
        except OSError:
            return None

    def names(self) -> list[str]:
        """See `Files`."""
        refresh(self.folder)
        try:
            return os.listdir(self.folder)
        except OSError:
            return []


class Lease:
    """What a process shows of itself to the others; a context that does so from a thread.

    Arguments:
        files: The folder.
        beat: Seconds between two changes.
        stall: Seconds without `worked` after which it stops: a process that hangs is as good as dead.
        clock: Seconds that go on evenly.
        name: The file; a new one by default.
    """

    def __init__(
        self,
        files: Files,
        *,
        beat: float = BEAT,
        stall: float = STALL,
        clock: Callable[[], float] = time.monotonic,
        name: str | None = None,
    ) -> None:
        self.files, self.beat, self.stall, self.clock = files, beat, stall, clock
        self.name = name or f"worker-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.count, self.note, self.last = 0, 0, clock()
        self.over, self.writing = threading.Event(), threading.Lock()

    def begin(self) -> None:
        """Shows it for the first time."""
        self.files.create(self.name, self._text(identity()))

    def renew(self) -> None:
        """Shows that it is alive, if it works; nothing happens if the folder is gone, or full."""
        if self.clock() - self.last <= self.stall:
            self._write(identity())

    def tell(self, note: int) -> None:
        """Tells the others a number."""
        self.note = note
        self._write(identity())

    def worked(self) -> None:
        """Notes that the work goes on."""
        self.last = self.clock()

    def end(self, word: str = ENDED) -> None:
        """Says that the process does not work any more.

        Arguments:
            word: ENDED gives back at once whatever it holds, LEFT says that it held nothing.
        """
        self.over.set()
        self._write(word)

    def _write(self, word: str) -> None:
        with self.writing, suppress(OSError):
            self.count += 1
            self.files.write(self.name, self._text(word))

    def _text(self, word: str) -> str:
        return f"{word:<40} {self.note:>12} {self.count:>12}\n"  # of one length

    def __enter__(self) -> Lease:
        self.begin()
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def _renew(self) -> None:
        while not self.over.wait(self.beat):
            self.renew()

    def __exit__(self, *error: object) -> None:
        self.end()


class Seen(NamedTuple):
    """What a file was seen to hold."""

    text: str | None
    since: float
    last: float  # the last of the looks that count
    looks: int


class Watch:
    """Judges whether others are alive.

    Arguments:
        files: The folder.
        patience: Seconds without a change after which one is dead.
        clock: Seconds that go on evenly.
    """

    def __init__(
        self, files: Files, *, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.files, self.patience, self.clock = files, patience, clock
        self.seen: dict[str, Seen] = {}

    def word(self, name: str) -> str:
        """Returns who a file says that its process is, ENDED or LEFT; nothing if it is not there."""
        return (self.files.read(name) or "").split(" ")[0]

    def note(self, name: str) -> int:
        """Returns the number that a process tells; 0 if it has told none."""
        words = (self.files.read(name) or "").split()
        return int(words[1]) if len(words) == 3 and words[1].isdecimal() else 0

    def is_dead(self, name: str) -> bool:
        """Returns whether the process of a file has ended, or not changed it for too long.

        Arguments:
            name: The file.
        """
        text, now = self.files.read(name), self.clock()
        word = (text or "").split(" ")[0]
        if word == LEFT:
            return False
        if word == ENDED or is_gone(word):
            return True
        seen = self.seen.get(name)
        if seen is None or text != seen.text:
            seen = Seen(text, now, now, 0)
        elif now - seen.last >= self.patience / 9:
            seen = seen._replace(last=now, looks=seen.looks + 1)
        self.seen[name] = seen
        return now - seen.since > self.patience and seen.looks >= LOOKS
