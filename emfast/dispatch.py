"""Which way something is computed: one table, which ops and layers ask.

TABLE holds, for every op and for every layer that has a choice, its ways in the order in which they are preferred.
`pick` takes the first that can serve the given arguments and was not measured to be slower than one behind it; the last
way takes everything. `backend(...)` forces one of emfast's backends on ops, without fallback; layers then leave out the
ways that are not computed by it, and under "reference" they are plain torch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from emfast._check import check, message

Backend = Literal["reference", "cpp", "triton"]
BACKENDS: tuple[Backend, ...] = ("reference", "cpp", "triton")


@dataclass(frozen=True)
class Way:
    """One way to compute something.

    Arguments:
        name: What it is called; that of an op's way is its backend.
        compute: What computes: a function, or an object with several.
        backends: The forced backends under which it may be taken; without a forced one it always may.
        missing: Returns why it is not there for a type of device ("cpu", "cuda"), or None if it is.
        unsupported: Returns why it cannot take the arguments, or None if it can.
        slower: Returns whether a way behind it was measured to be faster with the arguments.
        traceable: Whether torch.compile can trace it.
    """

    name: str
    compute: Any
    backends: tuple[Backend, ...] = BACKENDS
    missing: Callable[[str], str | None] = lambda device: None
    unsupported: Callable[..., str | None] = lambda *args: None
    slower: Callable[..., bool] = lambda *args: False
    traceable: bool = True

    def why_not(self, device: str, *args: Any) -> str | None:
        """Returns why it does not serve the arguments on a type of device, or None if it does."""
        reason = self.missing(device) or self.unsupported(*args)
        return reason or ("it was measured to be slower here" if self.slower(*args) else None)


class Choice(NamedTuple):
    """What `pick` chose for some arguments, and why no other way before it."""

    subject: str
    way: str
    reasons: dict[str, str]
    arguments: tuple[Any, ...]


TABLE: dict[str, tuple[Way, ...]] = {}
_forced: list[Backend] = []  # of all threads: on a GPU autograd runs a backward pass in one of its own
_targets: list[str] = []
_records: list[list[Choice]] = []


def pick(subject: str, device: str, *args: Any) -> Way:
    """Returns the way that a layer takes.

    Arguments:
        subject: A key of TABLE.
        device: The type of device, as `device_type` returns it.
        args: What the ways of this subject decide by.
    """
    compiled = torch.compiler.is_compiling()
    if _records and not compiled:
        _records[-1].append(_explained(subject, device, args))
    for way in TABLE[subject]:
        allowed = not _forced or _forced[-1] in way.backends
        if allowed and (way.traceable or not compiled) and way.why_not(device, *args) is None:
            return way
    return TABLE[subject][-1]


def run(op: str, device: str, *args: Any) -> Any:
    """Returns what an op computes: on the forced backend, an error if it cannot; else by the first way that serves.

    Arguments:
        op: Its name.
        device: The type of device it was dispatched to.
        args: Its arguments.
    """
    if not _forced:
        return pick(op, device, *args).compute(*args)
    forced = _forced[-1]
    chosen = way(op, forced)
    reason = f"there is no {forced} kernel" if chosen is None else chosen.missing(device) or chosen.unsupported(*args)
    if chosen is None or reason:
        fix = "Leave the block that forces it, or force 'reference'"
        raise NotImplementedError(message(op, "the op", f"to run on the forced backend {forced!r}", str(reason), fix))
    return chosen.compute(*args)


def way(subject: str, name: str) -> Way | None:
    """Returns the way of a name, or None if the subject has none.

    Arguments:
        subject: A key of TABLE.
        name: The way's name.
    """
    return next((way for way in TABLE[subject] if way.name == name), None)


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Forces every op called in the block onto one backend; what cannot run there is an error, never a fallback.

    Layers of accelerated networks leave out the ways of other backends, and take plain torch under "reference". It
    holds for all threads, since autograd runs the backward passes of a GPU in one of its own.

    Arguments:
        name: "reference" (plain torch, every device), "cpp" (CPU) or "triton" (CUDA; CPU under TRITON_INTERPRET=1).

    Raises:
        ValueError: If there is no such backend.
    """
    check(name in BACKENDS, "backend", "name", f"to be one of {', '.join(BACKENDS)}", name)
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


@contextmanager
def target(device: Literal["cuda"]) -> Iterator[None]:
    """Lets layers choose, in the block, as if all tensors were on another type of device: without it, or on fake ones.

    Arguments:
        device: The type of device.
    """
    _targets.append(device)
    try:
        yield
    finally:
        _targets.pop()


def device_type(x: Tensor) -> str:
    """Returns the type of device that layers choose for: that of a tensor, or the `target`."""
    return _targets[-1] if _targets else x.device.type


@contextmanager
def recorded() -> Iterator[list[Choice]]:
    """Yields the list of the choices made in the block, with the reasons for every way that was not taken."""
    choices: list[Choice] = []
    _records.append(choices)
    try:
        yield choices
    finally:
        _records.pop()


def _explained(subject: str, device: str, args: tuple[Any, ...]) -> Choice:
    reasons: dict[str, str] = {}
    for way in TABLE[subject]:
        forbidden = _forced and _forced[-1] not in way.backends
        reason = f"backend {_forced[-1]!r} is forced" if forbidden else way.why_not(device, *args)
        if reason is None:
            return Choice(subject, way.name, reasons, args)
        reasons[way.name] = reason
    return Choice(subject, TABLE[subject][-1].name, reasons, args)
