"""The processes that share a run: one, or those of `accelerate launch`, torchrun or Slurm."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from emfast._check import check, message
from emfast.em.meeting import Meeting, broken, remove_meetings

MEETING = timedelta(minutes=3)  # a launcher starts all processes at once
PATIENCE = timedelta(minutes=10)  # in a collective of a training step; for all that takes longer they wait on files
FIX = "Start all processes by one launcher, or unset WORLD_SIZE to train with one"


@dataclass(frozen=True)
class Processes:
    """This process's place among those that work together; alone by default.

    A context: who leaves it by an error ends the others too.

    Arguments:
        rank: Its number.
        world: How many there are.
        meeting: Where they wait for each other.
    """

    rank: int = 0
    world: int = 1
    meeting: Meeting | None = field(default=None, compare=False)

    def __enter__(self) -> Processes:
        if self.meeting is not None:
            self.meeting.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.meeting is not None:
            self.meeting.__exit__(kind, error, trace)

    @property
    def main(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.rank == 0

    def wait(self) -> None:
        """Waits for the others, however long, on files.

        Raises:
            RuntimeError: If one of them has died.
        """
        if self.meeting is not None:
            self.meeting.wait()

    def agree(self, text: str) -> str:
        """Returns the text of the first process: others may see files of the run seconds later."""
        return text if self.meeting is None else self.meeting.agree(text)

    def check(self) -> None:
        """Raises a RuntimeError if one of the others has died."""
        if self.meeting is not None:
            self.meeting.check()

    def average(self, tensors: list[Tensor]) -> None:
        """Replaces tensors, on one device and of one dtype, by their means over the processes, in place."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])  # one message
        with _connected():
            torch.distributed.all_reduce(flat)
        parts = flat.div_(self.world).split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors, of any dtype and on any device, by those of the first process, in place."""
        if self.world == 1:
            return
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        for tensor in tensors:
            sent = tensor.to(device).contiguous()
            with _connected():
                torch.distributed.broadcast(sent.reshape(-1).view(torch.uint8), 0)  # some backends know few dtypes
            tensor.copy_(sent)


@contextmanager
def _connected() -> Iterator[None]:
    """Turns the errors of a collective into a sentence: the connection broke, or nothing came."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(broken(f"{type(error).__name__}: {error}")) from error


def is_main() -> bool:
    """Returns whether this process is the first, or the only one, of those that a launcher started."""
    return _environment()[0] == 0


def join(device: torch.device, folder: str | os.PathLike[str]) -> Processes:
    """Returns the processes a launcher started, joined into a group; this one alone if none did.

    Arguments:
        device: The device of this process: its type decides the communication backend.
        folder: The folder of the run, which all of them share and the first one holds.
    Raises:
        ValueError: If the launcher's environment is not whole.
        RuntimeError: If the others do not come.
    """
    rank, world = _environment()
    if world == 1:
        return Processes()
    distributed = torch.distributed
    if not distributed.is_initialized():
        store = _meet(rank, world)
        store.set_timeout(PATIENCE)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    if rank == 0:
        remove_meetings(folder)
    job = [secrets.token_hex(4)]
    distributed.broadcast_object_list(job, 0)
    return Processes(rank, world, Meeting(folder, job[0], rank, world))


def _environment() -> tuple[int, int]:
    """Returns the number of this process and how many there are, from the variables that a launcher sets.

    Raises:
        ValueError: If they are no such numbers; the variable is named.
    """
    world = _variable("WORLD_SIZE", "1")
    check(world > 0, "train", "WORLD_SIZE", "to be positive", world, FIX)
    if world == 1:
        return 0, 1
    rank = _variable("RANK", "")
    check(0 <= rank < world, "train", "RANK", f"to be in 0 ... {world - 1}", rank, FIX)
    return rank, world


def _variable(name: str, default: str) -> int:
    text = os.environ.get(name, default)
    good = text.strip().isdecimal() and len(text) < 10
    check(good, "train", f"the environment's {name}", "to be a whole number", text or "nothing", FIX)
    return int(text)


def _meet(rank: int, world: int) -> Any:
    """Returns the store through which the processes find each other, once all of them are there."""
    host, port = os.environ.get("MASTER_ADDR"), _variable("MASTER_PORT", "")
    check(bool(host), "train", "the environment's MASTER_ADDR", "to be a host", host or "nothing", FIX)
    try:
        if rank > 0:
            _reach(str(host), port)
        return next(iter(torch.distributed.rendezvous("env://", rank, world, timeout=MEETING)))[0]
    except (OSError, RuntimeError) as error:
        where, found = f"{world} processes at {host}:{port}", f"{type(error).__name__}: {error}"
        expected = f"to meet within {MEETING.total_seconds():g} seconds"
        raise RuntimeError(message("train", where, expected, found, FIX)) from error


def _reach(host: str, port: int) -> None:
    """Waits until a port is open; torch prints a page for every attempt that fails."""
    end = time.monotonic() + MEETING.total_seconds()
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)
