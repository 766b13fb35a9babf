"""Threads that run in simulated time, one after the other, and a folder in memory that they share."""

import heapq
import math
import threading
from bisect import bisect_right
from contextlib import suppress


class Dead(BaseException):
    """Ends the thread of a worker that dies."""


class Clock:
    """Simulated time: of all threads and calls, the one whose moment comes first goes on, alone."""

    def __init__(self):
        self.now, self.events, self.number = 0.0, [], 0
        self.back = threading.Semaphore(0)  # to the one who lets the others go on

    def at(self, moment, call):
        """Calls something at a moment."""
        self.number += 1
        heapq.heappush(self.events, (moment, self.number, call))

    def start(self, function, death=math.inf):
        """Runs a function in a thread, which ends in its first sleep after a moment; returns that moment's check."""
        turn = threading.Semaphore(0)

        def go():
            turn.release()
            self.back.acquire()

        def sleep(seconds):
            self.at(min(self.now + seconds, max(death, self.now)), go)
            self.back.release()
            turn.acquire()
            if self.now >= death:
                raise Dead

        def run():
            turn.acquire()
            with suppress(Dead):
                function(sleep)
            self.back.release()

        threading.Thread(target=run, daemon=True).start()
        self.at(self.now, go)

    def run(self, until):
        """Lets everything happen until a condition holds; returns the time."""
        while not until():
            self.now, _, call = heapq.heappop(self.events)
            call()
        return self.now


class Memory:
    """A shared folder in memory, as `emfast.em.lease.Shared`: whose listing is old, and which counts what is asked."""

    def __init__(self, clock, age):
        self.clock, self.age = clock, age
        self.files, self.listed, self.since, self.operations = {}, [], [], {}

    def count(self, operations=1):
        """Counts operations."""
        second = int(self.clock.now)
        self.operations[second] = self.operations.get(second, 0) + operations

    def create(self, name, text):
        """See `Files`."""
        self.count()
        if name in self.files:
            return False
        self.files[name] = text
        self.listed.append(name)
        self.since.append(self.clock.now)
        return True

    def write(self, name, text):
        """See `Files`."""
        self.count()
        self.files[name] = text

    def read(self, name):
        """See `Files`."""
        self.count()
        return self.files.get(name)

    def names(self):
        """See `Files`."""
        return self.names_after(0)

    def names_after(self, first):
        """Returns the names of a listing without so many that are known already; all of them are asked for."""
        self.count(2 + len(self.listed) // 1000)  # a touch, and about so many requests
        return self.listed[first : bisect_right(self.since, self.clock.now - self.age)]


class View:
    """A folder in memory as one worker sees it: in a listing the names that are new to it, for it looks at no others.

    Arguments:
        folder: The folder.
    """

    def __init__(self, folder):
        self.folder, self.known = folder, 0
        self.create, self.write, self.read = folder.create, folder.write, folder.read

    def names(self):
        """See `Files`."""
        new = self.folder.names_after(self.known)
        self.known += len(new)
        return new
