"""One run in a folder at a time, on any number of machines that share it.

The holder's file says who it is, and is touched every few seconds: that its time changes is all that others trust,
since neither locks of the system nor clocks are reliable on shared file systems. A holder on the same machine that is
not alive any more is replaced at once, one on another machine when its file has not been touched for a while.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emfast._check import message
from emfast._process import identity, is_gone

NAME = ".lock"
BEAT = 10.0  # seconds between two touches
PATIENCE = 6 * BEAT  # without one, the holder is taken for dead


@contextmanager
def held(folder: str | os.PathLike[str], *, beat: float = BEAT, patience: float = PATIENCE) -> Iterator[None]:
    """Holds a folder for the block; it is created for that, and removed again if it stays empty.

    Arguments:
        folder: The folder.
        beat: Seconds between two touches.
        patience: Seconds without one after which a holder on another machine is dead.
    Raises:
        RuntimeError: If another process holds it; its host and number are named.
        OSError: If it cannot be written.
    """
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"host": socket.gethostname(), "process": os.getpid(), "identity": identity(), "token": secrets.token_hex(8)}
    _acquire(path, own, patience)
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(beat):
            with suppress(OSError):
                os.utime(path)

    threading.Thread(target=touch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if _holder(path) == own:
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            path.parent.rmdir()  # only if it is empty


def _acquire(path: Path, own: dict[str, Any], patience: float) -> None:
    """Makes the file one's own; raises an error while another process holds it."""
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        with os.fdopen(descriptor, "w") as file:
            json.dump(own, file)
        return
    other = _holder(path)
    if _is_alive(path, other, own, patience):
        other = other or _holder(path)  # which it may have written meanwhile
        who = f"process {other.get('process', '?')} on {other.get('host', '?')}"
        fix = "Wait for it or end it; two runs in one folder would overwrite each other"
        raise RuntimeError(message("train", f"output {path.parent}", "to be used by one run at a time", who, fix))
    temporary = path.with_name(f"{NAME}-{own['token']}")
    temporary.write_text(json.dumps(own))
    os.replace(temporary, path)
    time.sleep(0.2)  # of several who do this at once the last one wins
    if _holder(path) != own:
        _acquire(path, own, patience)


def _is_alive(path: Path, other: dict[str, Any], own: dict[str, Any], patience: float) -> bool:
    """Returns whether the holder of a file is still there."""
    who = str(other.get("identity", ""))
    if is_gone(who):
        return False
    if who.split(".")[0] == own["identity"].split(".")[0]:
        return True
    before, end = _touched(path), time.monotonic() + patience
    while time.monotonic() < end:
        if _touched(path) != before:
            return path.exists()
        time.sleep(min(1.0, patience / 10))
    return False


def _holder(path: Path) -> dict[str, Any]:
    """Returns what the file says; nothing if it is not there, or damaged by the end of a machine."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _touched(path: Path) -> int | None:
    try:
        with open(path, "rb") as file:  # what is opened is asked for anew on a shared file system
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None
