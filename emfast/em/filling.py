"""The missing shards of a store, filled with images that are drawn batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from emfast.data.store import Store
from emfast.em.shards import Alone, Shard, Work
from emfast.em.state import Stopwatch
from emfast.graph import graphs


def fill(
    store: Store,
    ids: Tensor,
    draw: Callable[..., Tensor],
    device: torch.device,
    *,
    batch_size: int,
    work: Work | None = None,
    measure: Callable[[Tensor], dict[str, Tensor]] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> None:
    """Draws images into the shards that a store still lacks, in batches that need not fit them.

    Arguments:
        store: The store; each shard gets `images`, `ids` and the `seconds` that each took.
        ids: (N,) ids of the images, N = the store's count; row i of the store belongs to ids[i].
        draw: Called as draw(ids, callback=callback) for one batch, (B, C, H, W) float32 on the CPU, that depends on the
            ids alone; its callback takes (steps done, steps in all).
        device: The device that it computes on.
        batch_size: Images drawn together, of whatever shards. It is halved where a GPU has no memory for it.
        work: Where this process gets the shards to make; by default all that the store lacks.
        measure: Gives what else is to be in a shard, by name, of its images (N, C, H, W).
        callback: Called as callback(steps of single images done, in all), by all processes.
    """
    work = Alone(store, store.shards) if work is None else work
    total = sum(stop - start for _, start, stop in work.missing)

    def report(done: int, steps: int) -> None:
        work.worked()
        if callback is not None:
            callback(min(done + work.elsewhere * steps, total * steps), total * steps)

    with graphs(), Writer(store, device, work.made) as writer:
        cut = Shards(work, writer)
        for x, seconds in batches(ids, draw, device, cut.rows, batch_size=batch_size, callback=report):
            for index, part, images, times in cut.add(x, seconds):
                more = {} if measure is None else measure(images)
                writer.write(index, {"images": images, "ids": ids[part], "seconds": times, **more})


def batches(
    ids: Tensor,
    draw: Callable[..., Tensor],
    device: torch.device,
    more: Callable[[int, bool], Tensor],
    *,
    batch_size: int,
    callback: Callable[[int, int], None],
) -> Iterator[tuple[Tensor, float]]:
    """Yields the images of one batch after the other, and the seconds that each of them took; see `fill`.

    A batch for which the GPU has no memory is done in halves, and so are those behind it.

    Arguments:
        more: Called as more(count, wait) for the rows of so many ids, or more, or of fewer if no more are to be had
            now. To be waited for is only with nothing else to do; none are left at all if it then gives none.
        ids, draw, device, batch_size: See `fill`.
        callback: Called as callback(steps of single images done here, steps of each).
    """
    finished, rows = 0, torch.empty(0, dtype=torch.int64)

    def progress(done: int, steps: int) -> None:
        callback(finished * steps + done * len(part), steps)

    while True:
        if len(rows) < batch_size:
            rows = torch.cat((rows, more(batch_size - len(rows), not len(rows))))
        if not len(rows):
            return
        part = ids[rows[:batch_size]]
        # One shape, one graph: a partial batch on a GPU is filled with its last image again.
        full = pad(part, batch_size) if device.type == "cuda" else part
        watch = Stopwatch()
        try:
            x = draw(full, callback=progress)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            torch.cuda.empty_cache()
            warnings.warn(f"e_step: out of memory, it goes on with batches of {batch_size}.", stacklevel=2)
            continue
        finished, rows = finished + len(part), rows[len(part) :]
        yield x[: len(part)], watch.seconds / len(part)


def pad(ids: Tensor, count: int) -> Tensor:
    """Returns the ids, the last one repeated until there are `count`.

    Arguments:
        ids: (n,) ids, n <= count.
        count: How many there shall be.
    """
    return torch.cat((ids, ids[-1:].expand(max(0, count - len(ids)))))


class Shards:
    """Takes shards, and cuts what batches give of them, in their order, into shards: batches need not fit them.

    Arguments:
        work: Where the shards come from.
        writer: Where they go.
    """

    def __init__(self, work: Work, writer: Writer) -> None:
        self.work, self.writer = work, writer
        self.todo: list[Shard] = []
        self.images: list[Tensor] = []  # of no whole shard yet
        self.seconds: list[Tensor] = []

    def rows(self, count: int, wait: bool) -> Tensor:
        """Returns the rows of shards taken now, so many or more; fewer if no more are to be had.

        Arguments:
            count: How many rows.
            wait: Whether to wait, if there are none, for what other processes do not bring to an end.
        """
        taken: list[Shard] = []
        while sum(stop - start for _, start, stop in taken) < count:
            shard = self.work.take()
            if shard is None and wait and not taken:
                self.writer.settle()
                shard = self.work.rest()
            if shard is None:
                break
            taken.append(shard)
        self.todo += taken
        return torch.cat([torch.arange(start, stop) for _, start, stop in taken] or [torch.arange(0)])

    def add(self, images: Tensor, seconds: float) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
        """Yields the index, the rows, the images and the seconds of every shard that is whole now.

        Arguments:
            images: (B, C, H, W) the next ones.
            seconds: The time that each of them took.
        """
        self.images.append(images)
        self.seconds.append(torch.full((len(images),), seconds))
        while self.todo and sum(map(len, self.images)) >= self.todo[0][2] - self.todo[0][1]:
            index, start, stop = self.todo.pop(0)
            yield index, slice(start, stop), _first(self.images, stop - start), _first(self.seconds, stop - start)


def _first(parts: list[Tensor], count: int) -> Tensor:
    """Returns the first rows of parts, which it takes out of them."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    parts[:] = [whole[count:]] if len(whole) > count else []
    return whole[:count]


class Writer:
    """A context that writes shards: on a GPU beside the next one's sampling, on a CPU, which has no core to spare, not.

    Arguments:
        store: The store.
        device: The device that samples.
        made: Called with the index of each shard that was written.
    """

    def __init__(self, store: Store, device: torch.device, made: Callable[[int], None]) -> None:
        self.store, self.made = store, made
        self.pool = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self.pending: tuple[int, Future[None]] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.settle()
        finally:
            if self.pool is not None:
                self.pool.shutdown()

    def write(self, index: int, shard: dict[str, Tensor]) -> None:
        """Writes a shard; raises what the writing of the one before raised.

        Arguments:
            index: The number of the shard.
            shard: Its tensors, by name.
        """
        if self.pool is None:
            self.store.write(index, shard)
            self.made(index)
            return
        self.settle()
        self.pending = (index, self.pool.submit(self.store.write, index, shard))

    def settle(self) -> None:
        """Waits until all shards are written; raises what the writing raised."""
        if self.pending is not None:
            (index, future), self.pending = self.pending, None
            future.result()
            self.made(index)
