"""The shards of an E-step as a queue that processes on any machines share, of unequal speed, coming and going.

A shard is claimed by creating a file, `00012.0`, which names the process. If that process is dead, or much slower than
the one that looks, another one creates `00012.1`, and so on: claims are neither changed nor deleted, so that no two
processes get the same one. Both may then make the shard. The first result stays, and all would be the same.
"""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from emfast.data.store import Store
from emfast.em.lease import Files, Lease, Shared, Watch
from emfast.em.shards import Shard

WATCHED = 4  # shards of others that are looked at together
TRIES = 8  # to claim a shard
SLOW = 1.5  # times as long as the own shards took: it pays to make the shard oneself, with nothing else to do
SHORTEST, LONGEST = 0.02, 5.0  # seconds between two looks


class Claim(NamedTuple):
    """A claim of another process on a shard."""

    generation: int
    since: float  # when it was seen first


FREE, CLAIMED, OWN, MADE = range(4)  # what a process knows of a shard


class Queue:
    """The shards of one E-step, as one of the processes sees them that share it.

    Arguments:
        shards: All shards of the E-step, whose indices follow each other.
        finished: Returns the indices of the shards that are there, or were some seconds ago.
        files: The folder of the claims.
        lease: That of this process, in the same folder.
        watch: Judges the others.
        place: The share of the shards, in 0 ... 1, that this process begins behind.
        guest: Whether it has only joined: it waits no longer where the folder is gone, for the run has gone on.
        clock, sleep: As in `time`.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        finished: Callable[[], Iterable[int]],
        files: Files,
        lease: Lease,
        watch: Watch,
        *,
        place: float = 0.0,
        guest: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.shards, self.first = shards, shards[0][0]
        self.finished, self.files, self.lease, self.watch = finished, files, lease, watch
        self.guest, self.clock, self.sleep = guest, clock, sleep
        self.random = random.Random(lease.name)
        self.known = bytearray([FREE]) * len(shards)
        self.left = len(shards)  # not made, as far as is known
        self.claims: dict[int, Claim] = {}  # of others, by index
        self.holders: dict[tuple[int, int], str] = {}
        self.own: dict[int, float] = {}  # not made yet, and since when
        self.usual: float | None = None  # seconds from a claim to the shard
        self.here = self.elsewhere = 0  # rows made
        self.next = int(place * len(shards)) % len(shards)
        self.looked = -math.inf

    @property
    def missing(self) -> list[Shard]:
        """See `Work`."""
        return [shard for shard, known in zip(self.shards, self.known, strict=True) if known != MADE]

    def look(self) -> None:
        """Brings up to date what is known of the others; what it misses costs a try, no more."""
        self._look_for_shards()
        self.looked = now = self.clock()
        for name in self.files.names():
            shard, _, number = name.partition(".")
            if shard.isdecimal() and number.isdecimal():
                self._claimed(int(shard), int(number), now)

    def _look_for_shards(self) -> None:
        for index in self.finished():
            if 0 <= index - self.first < len(self.known) and self.known[index - self.first] != MADE:
                self.elsewhere += self._made(index) if index not in self.own else 0

    def recover(self) -> None:
        """Frees the shards of all processes that are known to have ended, as after a restart."""
        self.look()
        for index, (generation, _) in self.claims.items():
            if self.watch.is_dead(self._holder(index, generation)):
                self.known[index - self.first] = FREE

    def _made(self, index: int) -> int:
        """Notes that a shard is there; returns its rows."""
        self.known[index - self.first] = MADE
        self.left -= 1
        self.claims.pop(index, None)
        _, start, stop = self.shards[index - self.first]
        return stop - start

    def _claimed(self, index: int, generation: int, now: float) -> None:
        """Notes a claim of another process, unless a later one is known."""
        place = index - self.first
        known = self.claims[index].generation if index in self.claims else -1
        if generation > known and 0 <= place < len(self.known) and self.known[place] in (FREE, CLAIMED):
            self.known[place] = CLAIMED
            self.claims[index] = Claim(generation, now)

    def take(self) -> Shard | None:
        """Claims a shard; returns None if all are made or claimed, or others were faster several times in a row."""
        for _ in range(TRIES):
            if (place := max(self.known.find(FREE, self.next), self.known.find(FREE))) < 0:
                break
            index = self.first + place
            generation = self.claims[index].generation + 1 if index in self.claims else 0
            if self.files.create(f"{index:05d}.{generation}", self.lease.name):
                self.known[place] = OWN
                self.claims.pop(index, None)
                self.own[index] = self.clock()
                self.next = place + 1
                return self.shards[place]
            self._claimed(index, generation, self.clock())
            if self.clock() - self.looked > self._pause():
                self.look()
            self.next = self.random.randrange(len(self.known))  # two that go on together meet at every shard
        return None

    def rest(self) -> Shard | None:
        """Waits for what others make; returns a shard of one that failed, or None as soon as all are made, or lost.

        To be called with nothing else to do: all that this process has claimed is made.
        """
        pause, judged = max(SHORTEST, 0.1 * self._pause()), -math.inf
        while self.left:
            self.lease.worked()
            self._look_for_shards()
            if self.clock() - judged > min(LONGEST, self.watch.patience / 4):
                judged = self.clock()
                if self.guest and self.files.read(self.lease.name) is None:
                    return None
                self._judge()
            if (shard := self.take()) is not None:
                return shard
            if self.left:
                self.sleep(pause * (0.5 + self.random.random()))
                pause = min(1.5 * pause, self._pause())
        return None

    def _pause(self) -> float:
        """Returns the seconds between two looks: few beside those that a shard takes."""
        return min(LONGEST, max(SHORTEST, 0.1 * self.usual)) if self.usual else LONGEST

    def _judge(self) -> None:
        """Frees shards whose process is dead, and one whose process is slow."""
        claims = list(self.claims.items())
        dead: dict[str, bool] = {}
        for index, (generation, since) in self.random.sample(claims, min(len(claims), WATCHED)):
            holder = self._holder(index, generation)
            if holder not in dead:
                dead[holder] = self.watch.is_dead(holder)
            if dead[holder] or self._is_slow(generation, since):
                self.known[index - self.first] = FREE
                if not dead[holder]:
                    return

    def _holder(self, index: int, generation: int) -> str:
        """Returns the file of the process that has a claim; that of the claim while it has no name in it yet."""
        if name := self.holders.get((index, generation)):
            return name
        claim = f"{index:05d}.{generation}"
        name = self.files.read(claim)
        if not name:
            return claim
        self.holders[index, generation] = name
        return name

    def _is_slow(self, generation: int, since: float) -> bool:
        """Returns whether a claim is older than this process would need; a shard is doubled once."""
        return generation == 0 and self.usual is not None and self.clock() - since > SLOW * self.usual

    def made(self, index: int) -> None:
        """Notes that a shard of this process was written, or was there already."""
        took = self.clock() - self.own.pop(index)
        self.usual = took if self.usual is None else 0.7 * self.usual + 0.3 * took
        self.here += self._made(index)

    def worked(self) -> None:
        """Notes that the work goes on."""
        self.lease.worked()


@contextmanager
def shared(
    store: Store,
    shards: Sequence[Shard] | None = None,
    *,
    place: float | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Queue]:
    """A block in which this process is one of those that make the shards of a store.

    Arguments:
        store: The store; the claims are in a folder in it, which `clear` removes.
        shards: Which of its shards; all by default.
        place: The share of the shards, in 0 ... 1, that this process begins behind: it is one of those that lead the
            run, which begin the queue, and again what earlier processes have left. By default it only joins.
        check: Called while it waits; what it raises ends the waiting.
    """
    shards = store.shards if shards is None else list(shards)
    files = Shared(_folder(store, shards))
    if place is not None:
        files.folder.mkdir(exist_ok=True)

    def sleep(seconds: float) -> None:
        check()
        time.sleep(seconds)

    with Lease(files) as lease:
        start = random.Random(lease.name).random() if place is None else place
        finished = _finished(store)
        guest = place is None
        queue = Queue(shards, finished, files, lease, Watch(files), place=start, guest=guest, sleep=sleep)
        if guest:
            queue.look()
        else:
            queue.recover()
        queue.elsewhere = 0
        yield queue


def is_open(store: Store, shards: Sequence[Shard]) -> bool:
    """Returns whether shards of a store are being made together, and some are not there.

    Arguments:
        store: The store.
        shards: The shards.
    """
    return _folder(store, shards).is_dir() and not all(store.path(index).exists() for index, *_ in shards)


def clear(store: Store, shards: Sequence[Shard] | None = None) -> None:
    """Removes the claims on shards that are all there.

    Arguments:
        store: The store.
        shards: Those whose claims go; None: all.
    """
    shutil.rmtree(_folder(store, store.shards if shards is None else shards), ignore_errors=True)


def _folder(store: Store, shards: Sequence[Shard]) -> Path:
    return store.folder / f"claims-{shards[0][0]:05d}"


def _finished(store: Store) -> Callable[[], list[int]]:
    """Returns what gives the shards that a listing of the store's folder has, which may be seconds old."""
    names = {store.path(index).name: index for index, *_ in store.shards}
    folder = Shared(store.folder)
    return lambda: [names[name] for name in folder.names() if name in names]
