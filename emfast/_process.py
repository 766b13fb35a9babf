"""Which process wrote something, so that others, also on other machines, can tell whether it is still there."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path


@functools.cache
def machine() -> str:
    """Returns 8 hexadecimal digits that two processes have in common if and only if they can see each other.

    That is a boot of a machine and, of the containers on it, the one with its own numbers of processes. Host names do
    not tell: many containers have the same.
    """
    parts = [socket.gethostname()]
    with suppress(OSError):  # not Linux
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.blake2b(" ".join(parts).encode(), digest_size=4).hexdigest()


def born(number: int) -> str | None:
    """Returns what tells a process from an earlier one of its number; None if it is not alive.

    Arguments:
        number: The process, on this machine.
    """
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]  # it ended, and nobody has asked for its exit code yet
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return None
    except OSError:  # it is there, and somebody else's
        pass
    return ""


def identity() -> str:
    """Returns this process in one word, "machine.number.born", for `is_gone` of others."""
    return f"{machine()}.{os.getpid()}.{born(os.getpid())}"


def is_gone(word: str) -> bool:
    """Returns whether the process of an `identity` is known to have ended: of another machine's that is never known.

    Arguments:
        word: The identity; of anything else nothing is known.
    """
    parts = word.split(".")
    if len(parts) != 3 or parts[0] != machine() or not parts[1].isdecimal():
        return False
    return born(int(parts[1])) != parts[2]
