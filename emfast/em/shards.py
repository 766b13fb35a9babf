"""Where an E-step takes the shards from that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from emfast.data.store import Store

Shard = tuple[int, int, int]  # its index, its first row, and the one after its last


class Work(Protocol):
    """What the E-step takes shards from: `emfast.em.queue.Queue`, or `Alone`."""

    def take(self) -> Shard | None:
        """Returns a shard to make; None if there is none to be had now."""

    def rest(self) -> Shard | None:
        """Waits for what others make; returns a shard of one that failed, or None as soon as all are made."""

    def made(self, index: int) -> None:
        """Notes that a shard was written."""

    def worked(self) -> None:
        """Notes that the work goes on."""

    @property
    def missing(self) -> list[Shard]:
        """The shards that are not there yet, as far as is known."""

    @property
    def elsewhere(self) -> int:
        """The rows that others have made since it began."""


class Alone:
    """The missing shards of a store, for a process that shares them with nobody.

    Arguments:
        store: The store.
        shards: Which of its shards.
    """

    elsewhere = 0

    def __init__(self, store: Store, shards: Sequence[Shard]) -> None:
        self.todo = [shard for shard in shards if not store.has(shard[0])]

    @property
    def missing(self) -> list[Shard]:
        """See `Work`."""
        return self.todo

    def take(self) -> Shard | None:
        """See `Work`."""
        return self.todo.pop(0) if self.todo else None

    def rest(self) -> Shard | None:
        """See `Work`."""
        return None

    def made(self, index: int) -> None:
        """See `Work`."""

    def worked(self) -> None:
        """See `Work`."""
